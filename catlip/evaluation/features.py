"""A dataset and an encoder -> one feature vector an image, by one preprocessing: the encoder's own, `Encoder.pixels`.

Features for probes are cached: the same weights and images give the same vectors. They lie in $CATLIP_CACHE/features
(else ~/.cache/catlip/features), one safetensors file each, and may be deleted at any time. A file's name is a hash of
all that decides its content: weights, input space, image size, the images themselves.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catlip import machine
from catlip.atomic import whole
from catlip.data.cache import cache_folder
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import Unreadable, UnreadableImageError, image_content, read_image
from catlip.data.open import open_dataset
from catlip.data.subsets import with_classes
from catlip.errors import UsageError, first_line
from catlip.models.encoder import Encoder
from catlip.models.weights import load, origin
from catlip.notices import Progress, warn

FORMAT = 3  # part of every name in the cache: raise it when images are decoded or cropped in another way


def open_encoder(run: Any, image_size: int | None = None) -> Encoder:
    """The encoder of whatever `catlip.load` takes, for images of this size; default: its own. Raises UsageError."""
    encoder = load(run)
    if image_size and image_size != encoder.image_size:
        encoder = copy.deepcopy(encoder) if encoder is run else encoder  # the caller's stays as it is
        encoder.resize(image_size)
    return encoder


def folder_of(run: Any) -> Path | None:
    """The run or model folder that an encoder is from, if there is one: its vocabulary and its results lie there."""
    name = origin(run)
    return Path(name) if name and Path(name).is_dir() else None


def data_name(given: Any, dataset: Dataset) -> str:
    """What a result calls the data."""
    return given if isinstance(given, str) else dataset.name


def open_labelled(data: Any, field: str = "", **columns: Any) -> Dataset:
    """A dataset with one class an image, of whatever `open_dataset` takes. columns: image_col and label_col of a table.

    Raises UsageError.
    """
    found = open_dataset(data, target="classes", **columns)
    if found.multi:
        where = f"`{field}` {found.name}" if field else repr(found.name)
        raise UsageError(f"{where}: its pictures have several labels, and one each is needed here")
    return found


def class_indices(train: Dataset, test: Dataset) -> tuple[list[str], Tensor, Tensor]:
    """(class names, int64 [train], int64 [test]). Raises UsageError for a test label that training never saw."""
    y_test = with_classes(test, train.classes, field="`test`").labels
    if len(train.classes) < 2:
        raise UsageError(f"`train` {train.name} has a single class, {train.classes[0]!r}; two or more are needed")
    return train.classes, torch.from_numpy(train.labels), torch.from_numpy(y_test)


def positives(data: Dataset, numbers: Sequence[int] | None = None) -> Tensor:
    """bool [len(numbers), classes]: which classes these images have; None: all images."""
    numbers = range(len(data)) if numbers is None else numbers
    found = torch.zeros(len(numbers), len(data.classes), dtype=torch.bool)
    for row, number in enumerate(numbers):
        found[row, torch.from_numpy(data.labels[data.offsets[number] : data.offsets[number + 1]])] = True
    return found


def decoded(
    dataset: Dataset,
    numbers: Sequence[int],
    pixels: Callable[[Any], Tensor],
    unreadable: Unreadable,
    *,
    batch_size: int = 256,
) -> Iterator[tuple[list[int], list[Sample], Tensor]]:
    """(numbers, samples, uint8 [b, 3, H, W]) of those samples whose images can be read, in order, by several threads.

    pixels: PIL image -> uint8 [3, H, W], mostly `Encoder.pixels`. The others are added to `unreadable`. Raises
    UsageError at the end if these are more than 1 %.
    """

    def decode(number: int) -> tuple[int, Sample, Tensor] | None:
        sample = dataset[number]
        try:
            return number, sample, pixels(read_image(sample.image))
        except UnreadableImageError as error:
            unreadable.add(sample.key, str(error))
            return None

    with ThreadPoolExecutor(machine.cores()) as pool:
        for start in range(0, len(numbers), batch_size):
            good = [one for one in pool.map(decode, numbers[start : start + batch_size]) if one is not None]
            if good:
                some, samples, images = zip(*good, strict=True)
                yield list(some), list(samples), torch.stack(images)
    unreadable.check(len(numbers))


@torch.no_grad()
def features(
    encoder: Encoder,
    dataset: Dataset,
    device: torch.device,
    unreadable: Unreadable | None = None,
    *,
    batch_size: int = 256,
    met: Callable[[list[int], list[Sample]], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(float32 [N, D], what `Encoder.pooled` returns; int64 [N], the samples that they belong to, ascending).

    met: told the numbers and samples of each batch. Images that cannot be read are left out and added to `unreadable`.
    Raises UsageError if these are more than 1 %, or there is no image.
    """
    # Depthwise convolutions on a CPU are almost three times as fast with channels last; values differ in the last bits.
    encoder.to(device).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    unreadable = Unreadable() if unreadable is None else unreadable
    rows, kept = [], []
    with Progress("images through the encoder", len(dataset)) as progress:
        for numbers, samples, pixels in decoded(
            dataset, range(len(dataset)), encoder.pixels, unreadable, batch_size=batch_size
        ):
            image = encoder.normalize(pixels.to(device, memory_format=torch.channels_last))
            rows.append(encoder.pooled(image).float().cpu())
            kept += numbers
            progress.advance(len(numbers))
            if met is not None:
                met(numbers, samples)
    if not rows:
        raise UsageError(f"{dataset.name} holds no pictures")
    return torch.cat(rows), torch.tensor(kept)


@dataclass(slots=True)
class CaptionFeatures:
    """N images as vectors, and their captions."""

    keys: list[str]
    captions: list[list[str]]
    pooled: Tensor  # float32 [N, D]
    unreadable: Unreadable

    def __len__(self) -> int:
        return len(self.keys)

    def owners(self) -> Tensor:
        """int64 [all captions]: the image of each caption, ascending."""
        lengths = torch.tensor([len(captions) for captions in self.captions], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self)), lengths)


def caption_features(
    encoder: Encoder, dataset: Dataset, device: torch.device, captions: list[list[str]] | None = None
) -> CaptionFeatures:
    """`features` with keys and captions. captions: instead of the dataset's own, a list a sample."""
    keys: list[str] = []
    texts: list[list[str]] = []
    unreadable = Unreadable()

    def met(numbers: list[int], samples: list[Sample]) -> None:
        keys.extend(sample.key for sample in samples)
        texts.extend(captions[n] if captions else s.captions for n, s in zip(numbers, samples, strict=True))

    pooled, _ = features(encoder, dataset, device, unreadable, batch_size=128, met=met)
    return CaptionFeatures(keys, texts, pooled, unreadable)


def cached_features(
    encoder: Encoder, dataset: Dataset, device: torch.device, unreadable: Unreadable, *, cache: bool = True
) -> tuple[Tensor, Tensor]:
    """What `features` returns, from the cache if it is there. cache: False neither reads nor writes."""
    if not cache:
        return features(encoder, dataset, device, unreadable)
    path = cache_folder() / "features" / f"{_cache_key(encoder, dataset, device)}.safetensors"
    if (found := _read(path, encoder.width, len(dataset))) is not None:
        for number in sorted(set(range(len(dataset))) - set(found[1].tolist())):
            unreadable.add(dataset[number].key, "could not be read when the features were made")
        unreadable.check(len(dataset))
        return found
    pooled, kept = features(encoder, dataset, device, unreadable)
    _write(path, {"pooled": pooled.contiguous(), "kept": kept})
    return pooled, kept


def _cache_key(encoder: Encoder, dataset: Dataset, device: torch.device) -> str:
    """Of the weights without the classifier, which pooled features do not pass."""
    # Devices round differently: what one of them measured is not mixed with what another did.
    found = hashlib.sha256(repr([FORMAT, encoder.architecture, sorted(encoder.view.items()), device.type]).encode())
    classifier = encoder.backbone.pretrained_cfg.get("classifier")
    for name, value in sorted(encoder.backbone.state_dict().items()):
        if not (isinstance(classifier, str) and name.startswith(f"{classifier}.")):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for number in range(len(dataset)):
        image = image_content(dataset[number].image)
        found.update(len(image).to_bytes(8, "big"))
        found.update(image)
    return found.hexdigest()[:40]


def _read(path: Path, width: int, images: int) -> tuple[Tensor, Tensor] | None:
    """None for a file that is not there, damaged, or not of these images."""
    try:
        with safe_open(path, framework="pt") as file:
            pooled, kept = file.get_tensor("pooled"), file.get_tensor("kept")
    except (OSError, SafetensorError, ValueError):
        return None
    sound = (
        pooled.shape == (len(kept), width)
        and pooled.dtype == torch.float32
        and kept.dtype == torch.int64
        and 0 < len(kept) <= images
        and bool((kept[1:] > kept[:-1]).all())
        and int(kept[0]) >= 0
        and int(kept[-1]) < images
    )
    return (pooled, kept) if sound else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """In one step, so that a file is whole or not there; a cache that cannot be written costs a line, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, rivals=True) as part:
            save_file(tensors, str(part))
    except (OSError, SafetensorError) as error:
        warn(f"the features are not kept: {first_line(error)}")
