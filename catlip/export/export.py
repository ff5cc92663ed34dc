"""A run in the formats of other programs. The verb `export`.

Whatever is written is loaded again, by the program it is for, and 16 images go through both: an export that computes
something else is an error, and the largest difference is part of the result.
"""

import copy
import gzip
import io
import json
import shutil
import tarfile
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from catlip.atomic import write_text
from catlip.config import configure
from catlip.data.image_files import is_image
from catlip.data.images import UnreadableImageError, read_image
from catlip.data.open import open_images
from catlip.errors import UsageError
from catlip.export.graphs import Outputs, Run, facts_of, other_size, takes_any_size, to_onnx, to_torch
from catlip.export.open_clip import text_tower_of, to_open_clip
from catlip.models.encoder import Encoder, has_fixed_size
from catlip.models.model_folders import TIMM_FILES, check_empty, model_folder, read_json
from catlip.models.state_dicts import read_tensors, write_tensors
from catlip.models.weights import load, origin
from catlip.notices import say

FORMATS = ("timm", "open_clip", "onnx", "torch-export", "state-dict")
BATCHES = (1, 2, 5, 8)  # of the 16 images; 1, 2 and 5 are the sizes at which a batch that was baked in shows
TOLERANCE = 1e-3  # of the largest value: beyond that an export computes something else


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Settings of `catlip export`."""

    run: str  # run folder, or a model folder; in Python also an Encoder or a Run
    format: str = "timm"  # timm, open_clip, onnx, torch-export or state-dict
    out: str | None = None  # new folder; default: RUN/export/FORMAT
    images: str | None = None  # pictures to compare on: a folder or tars; default: the run's data, else catlip's own


@dataclass(kw_only=True, slots=True)
class ExportResult:
    """What was written, and how far it is from the original."""

    out: str  # the folder
    format: str
    architecture: str
    image_size: int  # pixels
    any_size: bool  # whether images of another size can be given to it
    differences: dict[str, float]  # of each result (pooled, tokens, logits, text): the largest absolute difference
    images: int  # that went through both
    images_from: str  # whose they are

    @property
    def largest(self) -> float:
        """The largest absolute difference of all results."""
        return max(self.differences.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        size = "any size" if self.any_size else f"{self.image_size} px"
        shown = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return (
            f"{self.out}: {self.architecture}, any batch, {size}; reloaded, {self.images} pictures of "
            f"{self.images_from} through both: largest absolute difference {shown}"
        )


def export(
    encoder: Any = None,
    format: str | None = None,
    out: str | Path | None = None,
    *,
    config: ExportConfig | None = None,
    **settings: Any,
) -> ExportResult:
    """Write an encoder into a folder in another program's format, load it there, and compare.

    encoder: an Encoder, a Run, or where one lies. format: "timm", "open_clip", "onnx", "torch-export" or "state-dict".
    out: a new folder; by default RUN/export/FORMAT. settings: fields of ExportConfig.

    Raises UsageError for a format that cannot carry the encoder, or that computes something else once reloaded.

    >>> import tempfile
    >>> encoder = Encoder.create("test_resnet", image_size=64)
    >>> result = export(encoder, "state-dict", tempfile.mkdtemp())
    >>> result.largest < 1e-4
    True
    """
    cfg = configure(ExportConfig, config, run=encoder, format=format, out=out, **settings)
    if cfg.format not in FORMATS:
        raise UsageError(f"`format` {cfg.format!r}: there are {', '.join(FORMATS)}")
    name = origin(cfg.run)
    if not cfg.out and not (name and Path(name).is_dir()):
        raise UsageError(f"{name or 'this encoder'} is no folder on this machine, so `out` has to say where it goes")
    source = copy.deepcopy(cfg.run).cpu() if isinstance(cfg.run, Encoder) else cfg.run  # the user's own stays as it is
    model = load(source).eval()
    folder = Path(cfg.out or Path(name) / "export" / cfg.format)
    check_empty(folder, "`out`")
    images, images_from = _images(model, cfg.images, name)
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ours, theirs, any_size = _write(source, cfg.format, model, folder)
        differences = compare(model, images, ours, theirs, any_size)
    except BaseException:
        if fresh:  # a half-written folder would be taken for a whole one
            shutil.rmtree(folder)
        raise
    return ExportResult(
        out=str(folder),
        format=cfg.format,
        architecture=model.architecture,
        image_size=model.image_size,
        any_size=any_size,
        differences=differences,
        images=len(images),
        images_from=images_from,
    )


def _write(source: Any, format: str, encoder: Encoder, out: Path) -> tuple[Run, Run, bool]:
    """(what the encoder computes, what the reloaded export computes, whether the image size is free)."""
    ours = Outputs(encoder).run
    if format == "onnx":
        return ours, *to_onnx(encoder, out)
    if format == "torch-export":
        return ours, *to_torch(encoder, out)
    if format == "open_clip":
        text, said = text_tower_of(source)
        ours, theirs = to_open_clip(encoder, out, text)
        say(said)
        return ours, theirs, False
    theirs = _to_timm(source, encoder, out) if format == "timm" else _to_state_dict(encoder, out)
    return ours, theirs, takes_any_size(encoder)


def _to_timm(source: Any, encoder: Encoder, out: Path) -> Run:
    """A run's encoder folder is timm's layout already: it is copied, with its label names and input constants."""
    if not encoder.in_timm:
        raise UsageError(
            f"plain timm has no {encoder.architecture}: its ViTs lack the convolutional stem of the official models. "
            f"`format` onnx, torch-export and state-dict carry it, catlip.load({encoder.name!r}) opens it"
        )
    if isinstance(source, Encoder):  # whatever has become of it since it was loaded
        encoder.save(out)
    else:
        folder = model_folder(origin(source))
        for name in (*TIMM_FILES, "README.md"):
            if (folder / name).is_file():
                shutil.copy(folder / name, out / name)
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    return Outputs(Encoder(model, encoder.labels, encoder.names)).run


def _to_state_dict(encoder: Encoder, out: Path) -> Run:
    """Tensors under timm's names, and beside them what has to be known to use them."""
    write_tensors(out / "state_dict.safetensors", encoder.backbone.state_dict(), {"format": "pt"})
    args = dict(encoder.arguments)
    if has_fixed_size(encoder.architecture):
        args |= {"img_size": encoder.image_size}
    write_text(out / "model.json", json.dumps({**facts_of(encoder), "model_args": args}, indent=2) + "\n")
    model: Any = timm.create_model(encoder.architecture, num_classes=encoder.backbone.num_classes, **args)
    model.load_state_dict(read_tensors(out / "state_dict.safetensors"))
    model.pretrained_cfg = encoder.backbone.pretrained_cfg
    return Outputs(Encoder(model, encoder.labels, encoder.names)).run


@torch.no_grad()
def compare(encoder: Encoder, images: list[Any], ours: Run, other: Run, any_size: bool) -> dict[str, float]:
    """Largest absolute difference of each result of `other` from ours, the images in batches of 1, 2, 5 and 8.

    any_size: one more batch of two at another image size. Raises UsageError if the two do not agree.
    """
    batches = torch.stack([to_input(encoder, image) for image in images]).split(list(BATCHES))
    if any_size:
        batches = (*batches, torch.stack([to_input(encoder, image, other_size(encoder)) for image in images[:2]]))
    worst: dict[str, float] = {}
    for batch in batches:
        expected = ours(batch)
        for name, found in other(batch).items():
            if found.shape != expected[name].shape:
                shapes = f"{list(found.shape)} instead of {list(expected[name].shape)}"
                raise UsageError(f"the export computes something else: {name} is {shapes}")
            apart = float((found - expected[name]).abs().max())
            if not apart <= TOLERANCE * max(1.0, float(expected[name].abs().max())):  # nan is no agreement
                raise UsageError(f"the export computes something else: {name} is off by {apart:.2g}")
            worst[name] = max(worst.get(name, 0.0), apart)
    return worst


def to_input(encoder: Encoder, image: Any, size: int | None = None) -> Tensor:
    """An image, encoded or not, as the encoder's input [3, H, W]; `size` overrides the encoder's own.

    Raises UnreadableImageError.
    """
    picture = read_image(image)
    if size is None:
        return encoder.transform(picture)
    square = torch.frombuffer(bytearray(picture.resize((size, size)).tobytes()), dtype=torch.uint8)
    return encoder.normalize(square.view(1, size, size, 3).permute(0, 3, 1, 2))[0]


def _images(encoder: Encoder, images: Any, run: str) -> tuple[list[Any], str]:
    """(16 images that can be read, whose they are): those asked for; else the run's data, if it is still there."""
    wanted, where = sum(BATCHES), images or _data_of(run)
    found: list[Any] = []
    try:
        dataset = open_images(where) if where else ()
        for index in range(min(len(dataset), 10 * wanted)):
            sample = dataset[index]
            try:
                to_input(encoder, sample.image)
            except UnreadableImageError as error:
                say(f"{sample.key} is skipped: {error}")
                continue
            found.append(sample.image)
            if len(found) == wanted:
                return found, getattr(where, "name", None) or str(where)
    except UsageError:
        if images:
            raise
    if images:
        raise UsageError(f"`images` {images} holds {len(found)} pictures that can be read; {wanted} are compared")
    return sample_images(wanted), "catlip's own"


def _data_of(run: str) -> str | None:
    path = Path(run) / "config.json"
    config = read_json(path).get("config") if path.is_file() else None
    return config.get("data") if isinstance(config, dict) else None


def sample_images(number: int) -> list[bytes]:
    """Drawings that come with catlip, for comparing where the user has named no images."""
    packed = resources.files("catlip.demo").joinpath("sample", "noto.tar.gz").read_bytes()
    found: list[bytes] = []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        for member in tar:
            file = tar.extractfile(member) if is_image(Path(member.name)) else None
            if file is not None:
                found.append(file.read())
            if len(found) == number:
                break
    return found
