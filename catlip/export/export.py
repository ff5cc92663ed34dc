"""A run in the formats of other programs. The verb `export`.

Whatever is written is loaded again, by the program it is for, and 16 pictures go through both: an export that computes
something else is an error, and the largest difference is printed.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from torch import Tensor

from catlip.data.images import UnreadableImageError
from catlip.data.open import open_images
from catlip.errors import UsageError
from catlip.export import graphs
from catlip.export.files import check_empty
from catlip.export.open_clip import text_tower_of, to_open_clip
from catlip.export.outputs import BATCHES, Outputs, Results, compare, takes_any_size
from catlip.export.pictures import sample_pictures, to_input
from catlip.models.encoder import Encoder
from catlip.models.weights import TIMM_FILES, load, model_folder, read_json, read_tensors
from catlip.notices import say

FORMATS = ("timm", "open_clip", "onnx", "torch-export", "state-dict")


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Settings of `catlip export`."""

    run: str  # run folder, or a model folder
    format: str = "timm"  # timm, open_clip, onnx, torch-export or state-dict
    out: str | None = None  # new folder; default: RUN/export/FORMAT
    images: str | None = None  # pictures to compare on: a folder or tars; default: the run's data, else catlip's own


def export(cfg: ExportConfig) -> dict[str, float]:
    """Write the folder; the largest absolute difference of each output, over 16 pictures.

    Raises UsageError for a format that cannot carry the encoder, or that computes something else once reloaded.
    """
    if cfg.format not in FORMATS:
        raise UsageError(f"`format` {cfg.format!r}: there are {', '.join(FORMATS)}")
    if not cfg.out and not Path(cfg.run).is_dir():
        raise UsageError(f"{cfg.run} is no folder on this machine, so `out` has to say where the export goes")
    encoder = load(cfg.run)
    out = Path(cfg.out or Path(cfg.run) / "export" / cfg.format)
    check_empty(out, "`out`")
    images, whose = _images(encoder, cfg)
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        ours, theirs, any_size = _write(cfg, encoder, out)
        apart = compare(encoder, images, ours, theirs, any_size)
    except BaseException:
        if fresh:  # a half-written folder would be taken for a whole one
            shutil.rmtree(out)
        raise
    size = "any size" if any_size else f"{encoder.image_size} px"
    shown = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
    what = f"{encoder.architecture}, any batch, {size}"
    say(f"{out}: {what}; reloaded, {len(images)} pictures of {whose} through both: largest absolute difference {shown}")
    return apart


def _write(
    cfg: ExportConfig, encoder: Encoder, out: Path
) -> tuple[Callable[[Tensor], Results], Callable[[Tensor], Results], bool]:
    """(what the encoder computes, what the reloaded export computes, whether the picture's size is free)."""
    ours = Outputs(encoder).results
    if cfg.format == "onnx":
        return ours, *graphs.to_onnx(encoder, out)
    if cfg.format == "torch-export":
        return ours, *graphs.to_torch(encoder, out)
    if cfg.format == "open_clip":
        text, said = text_tower_of(cfg.run)
        ours, theirs = to_open_clip(encoder, out, text)
        say(said)
        return ours, theirs, False
    theirs = _to_timm(cfg, encoder, out) if cfg.format == "timm" else _to_state_dict(encoder, out)
    return ours, theirs, takes_any_size(encoder)


def _to_timm(cfg: ExportConfig, encoder: Encoder, out: Path) -> Callable[[Tensor], Results]:
    """The run's encoder folder is timm's layout already: it is copied, with its label names and input constants."""
    if not encoder.in_timm:
        raise UsageError(
            f"plain timm has no {encoder.architecture}: its ViTs lack the convolutional stem of the official models. "
            f"`format` onnx, torch-export and state-dict carry it, catlip.load({cfg.run!r}) opens it"
        )
    source = model_folder(cfg.run)
    for name in (*TIMM_FILES, "README.md"):
        if (source / name).is_file():
            shutil.copy(source / name, out / name)
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    return Outputs(Encoder(model.eval(), encoder.labels, encoder.names)).results


def _to_state_dict(encoder: Encoder, out: Path) -> Callable[[Tensor], Results]:
    """Tensors under timm's names, and beside them what has to be known to use them."""
    state = {name: value.contiguous() for name, value in encoder.backbone.state_dict().items()}
    save_file(state, out / "state_dict.safetensors", metadata={"format": "pt"})
    facts = {name: _plain(value) for name, value in graphs.facts_of(encoder).items()}
    args: dict[str, Any] = dict(encoder.arguments)
    if timm.get_pretrained_cfg_value(encoder.architecture, "fixed_input_size"):
        args = {"img_size": encoder.image_size}
    facts["model_args"] = args
    (out / "model.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    model: Any = timm.create_model(encoder.architecture, num_classes=encoder.backbone.num_classes, **args)
    model.load_state_dict(read_tensors(out / "state_dict.safetensors"))
    model.pretrained_cfg = encoder.backbone.pretrained_cfg
    return Outputs(Encoder(model.eval(), encoder.labels, encoder.names)).results


def _plain(value: str) -> Any:
    """facts_of gives text, lists and objects as JSON."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _images(encoder: Encoder, cfg: ExportConfig) -> tuple[list[bytes], str]:
    """(16 pictures that can be read, whose they are): those asked for; else the run's data, if it is still there."""
    wanted, where = sum(BATCHES), cfg.images or _data_of(cfg.run)
    found: list[bytes] = []
    try:
        source = open_images(where) if where else ()
        for record in map(source.__getitem__, range(min(len(source), 10 * wanted))) if source else ():
            try:
                to_input(encoder, record.image)
            except UnreadableImageError as error:
                say(f"{record.key} is skipped: {error}")
                continue
            found.append(record.image)
            if len(found) == wanted:
                return found, str(where)
    except UsageError:
        if cfg.images:
            raise
    if cfg.images:
        raise UsageError(f"`images` {cfg.images} holds {len(found)} pictures that can be read; {wanted} are compared")
    return sample_pictures(wanted), "catlip's own"


def _data_of(run: str) -> str | None:
    path = Path(run) / "config.json"
    config = read_json(path).get("config") if path.is_file() else None
    return config.get("data") if isinstance(config, dict) else None
