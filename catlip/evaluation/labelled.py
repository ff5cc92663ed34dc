"""Labelled pictures of an image-classification set, and their frozen features."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from catlip.data.crops import decode_center
from catlip.data.images import Unreadable, UnreadableImageError
from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.data.sources import TarSource, expand
from catlip.errors import UsageError
from catlip.models.encoder import Encoder


@dataclass(slots=True)
class Labelled:
    """Encoded pictures with a class each."""

    name: str
    images: list[bytes]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def open_labelled(data: str) -> Labelled:
    """A set given as tars (a picture and KEY.cls) or as a folder with a sub-folder per class.

    Raises UsageError for anything else.
    """
    path = Path(data)
    if path.is_dir():
        return _from_folders(path)
    paths = expand(data)
    if any(p.suffix != ".tar" for p in paths):
        raise UsageError(
            f"{data!r}: expected .tar files with KEY.jpg and KEY.cls, or a folder with one folder per class"
        )
    source = TarSource(paths, data)
    records = [source.read(i) for i in range(len(source))]
    unlabelled = [r.key for r in records if r.label is None]
    if unlabelled:
        raise UsageError(
            f"{data!r}: {len(unlabelled):,} of {len(records):,} samples have no .cls, e.g. {unlabelled[0]}"
        )
    return Labelled(data, [r.image for r in records], [r.label or "" for r in records])


def _from_folders(folder: Path) -> Labelled:
    images, labels = [], []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
        for file in sorted(sub.rglob("*")):
            if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
                images.append(file.read_bytes())
                labels.append(sub.name)
    if not images:
        raise UsageError(f"{folder} holds no pictures in sub-folders, one sub-folder per class")
    return Labelled(str(folder), images, labels)


def class_indices(train: Labelled, test: Labelled) -> tuple[list[str], Tensor, Tensor]:
    """(class names, int64 [train], int64 [test]). Raises UsageError for a test label that training never saw."""
    classes = sorted(set(train.labels), key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    index = {name: i for i, name in enumerate(classes)}
    unseen = sorted(set(test.labels) - set(classes))
    if unseen:
        raise UsageError(f"--test {test.name}: {len(unseen)} of its classes are not in --train, e.g. {unseen[0]!r}")
    if len(classes) < 2:
        raise UsageError(f"--train {train.name} has a single class, {classes[0]!r}; a probe needs two or more")
    y_train, y_test = (torch.tensor([index[label] for label in part.labels]) for part in (train, test))
    return classes, y_train, y_test


@torch.no_grad()
def features(encoder: Encoder, data: Labelled, device: torch.device, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """(float [N, D] pooled features, int64 [N] which pictures they belong to: unreadable ones are left out)."""

    unreadable = Unreadable()

    def decode(number: int) -> Tensor | None:
        try:
            return decode_center(data.images[number], encoder.image_size)
        except UnreadableImageError as error:
            unreadable.add(f"number {number}", str(error))
            return None

    encoder.to(device).eval()
    rows, kept = [], []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(data), batch_size):
            pixels = list(pool.map(decode, range(start, min(start + batch_size, len(data)))))
            good = [(start + i, p) for i, p in enumerate(pixels) if p is not None]
            if good:
                batch = torch.stack([p for _, p in good])
                rows.append(encoder.pooled(encoder.normalize(batch.to(device))).float().cpu())
                kept += [i for i, _ in good]
    unreadable.check(len(data))
    return torch.cat(rows), torch.tensor(kept)
