"""Training that starts from weights there are already: `--init timm:NAME`, `--init open_clip:FOLDER`, `--init RUN`.

The backbone takes the weights and the input space (mean, std) they were made for. Of a run's classifier the rows of
synsets that both vocabularies have are kept bit for bit, wherever they stand; rows of new synsets stay as they are.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from catlip.errors import UsageError
from catlip.models.encoder import MEAN, STD, Encoder, check_name, classifiers, pretrained, translated
from catlip.models.folders import misfit, model_folder, open_clip_folder, read_json, read_tensors

OPEN_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what open_clip assumes where a folder says nothing
OPEN_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(kw_only=True, slots=True)
class Weights:
    """A backbone's weights, the input space they want, and the rows of a classifier by label."""

    source: str
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    architecture: str = ""  # if it is known
    arguments: dict[str, Any] = field(default_factory=dict)  # what else its making wants
    image_size: int = 224  # pixels
    labels: list[str] = field(default_factory=list)
    weight: Tensor | None = None  # [len(labels), D]
    bias: Tensor | None = None  # [len(labels)]


def start_from(source: str, encoder: Encoder, head: nn.Linear | None, synsets: list[str]) -> str:
    """Fill encoder and head in place; a line that says what was kept.

    synsets: of the head's rows. Raises UsageError for weights that cannot be had or are of another architecture.
    """
    weights = open_weights(source)
    load_backbone(encoder, weights)
    told = f"weights from {source}, input space mean {_short(weights.mean)}, std {_short(weights.std)}"
    if head is None or weights.weight is None:
        return told
    kept = keep_rows(head, synsets, weights)
    return f"{told}; {kept:,} of {len(synsets):,} classes keep their row of its classifier"


def open_start(source: str, untrained: bool = False) -> Weights:
    """What fine-tuning begins with: the weights of a run folder, a model folder, hf-hub:ORG/NAME or timm:NAME.

    untrained: only what they are for, without weights; nothing is downloaded for timm:NAME. Raises UsageError for
    anything else, and for weights that do not say which architecture they are of.
    """
    if untrained and source.startswith("timm:"):
        name = source.removeprefix("timm:")
        check_name(name)
        size: Any = timm.get_pretrained_cfg_value(name, "input_size") or (3, 224, 224)
        return Weights(source=source, state={}, mean=MEAN, std=STD, architecture=name, image_size=size[-1])
    weights = open_weights(source)
    if not weights.architecture:
        raise UsageError(f"{source} does not say which architecture it is; name a run, a model folder or timm:NAME")
    return replace(weights, state={}, labels=[], weight=None, bias=None) if untrained else weights


def started(weights: Weights, *, image_size: int, **options: Any) -> Encoder:
    """An encoder of the weights' architecture with these weights, or random ones if there are none.

    image_size: pixels; 0: the weights' own. options: see `Encoder.create`. Raises UsageError.
    """
    size = image_size or weights.image_size
    encoder = Encoder.create(weights.architecture, image_size=size, arguments=weights.arguments, **options)
    if weights.state:
        load_backbone(encoder, weights)
    return encoder


def fingerprint(source: str, untrained: bool = False) -> str:
    """Identifies the weights for the record of a run: a run that goes on must have started from the same ones."""
    if untrained:
        return f"untrained {source}"
    if source.startswith("timm:"):
        return source
    if source.startswith("open_clip:"):
        file = open_clip_folder(source.removeprefix("open_clip:")) / "open_clip_model.safetensors"
    else:
        file = model_folder(source) / "model.safetensors"
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def open_weights(source: str) -> Weights:
    """Raises UsageError, with one clear line, for anything that holds no weights."""
    if source.startswith("timm:"):
        backbone = pretrained(source.removeprefix("timm:"), num_classes=0)
        cfg = backbone.pretrained_cfg
        return Weights(source=source, state=backbone.state_dict(), **_space(cfg))
    if source.startswith("open_clip:"):
        return _from_open_clip(source)
    folder = model_folder(source)
    card, state = read_json(folder / "config.json"), read_tensors(folder / "model.safetensors")
    cfg = {**(card.get("pretrained_cfg") or {}), "architecture": card.get("architecture")}
    weights = Weights(source=source, state=state, **_space(cfg), arguments=dict(card.get("model_args") or {}))
    heads = [state.pop(f"{name}.{part}", None) for name in classifiers(cfg) for part in ("weight", "bias")]
    labels = list(card.get("label_names") or [])
    if not labels or not heads or heads[0] is None:
        return weights  # rows without names cannot be matched, so there is nothing to keep of them
    weights.labels, weights.weight, weights.bias = labels, heads[0], heads[1]
    if len(labels) != len(heads[0]):
        raise UsageError(f"{folder}: {len(labels):,} labels for a classifier of {len(heads[0]):,} rows")
    return weights


def load_backbone(encoder: Encoder, weights: Weights) -> None:
    """Raises UsageError for weights of another architecture; positions for another picture size are interpolated."""
    backbone = encoder.backbone
    wanted, state = backbone.state_dict(), weights.state
    if misfit(wanted, state):
        state = translated(backbone, state)
        heads = tuple(f"{name}." for name in classifiers(backbone.pretrained_cfg))
        state = {name: value for name, value in state.items() if not name.startswith(heads)}
    if wrong := misfit(wanted, state):
        known = f" (it is a {weights.architecture})" if weights.architecture not in ("", encoder.architecture) else ""
        size = weights.image_size
        hint = f"; they are for `image_size` {size}" if not known and size != encoder.image_size else ""
        raise UsageError(
            f"`init` {weights.source} does not fit `backbone` {encoder.architecture}{known}: {wrong}{hint}"
        )
    backbone.load_state_dict(state)
    space = {"mean": tuple(weights.mean), "std": tuple(weights.std), "interpolation": weights.interpolation}
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **space}
    encoder.mean.copy_(torch.tensor(weights.mean).view(3, 1, 1))
    encoder.std.copy_(torch.tensor(weights.std).view(3, 1, 1))


@torch.no_grad()
def keep_rows(head: nn.Linear, synsets: list[str], weights: Weights) -> int:
    """Copy the rows of synsets that both have, weight and bias; how many there are."""
    assert weights.weight is not None
    if weights.weight.shape[1] != head.in_features:
        theirs = weights.weight.shape[1]
        raise UsageError(
            f"`init` {weights.source}: its classifier reads {theirs} features, this one {head.in_features}"
        )
    row_of = {label: row for row, label in enumerate(weights.labels)}
    here = [i for i, synset in enumerate(synsets) if synset in row_of]
    there = [row_of[synsets[i]] for i in here]
    head.weight[here] = weights.weight[there].to(head.weight)
    if weights.bias is not None and head.bias is not None:
        head.bias[here] = weights.bias[there].to(head.bias)
    return len(here)


def _from_open_clip(source: str) -> Weights:
    """The image side of a dual encoder: a timm backbone, or open_clip's own ViT, which timm can translate."""
    folder = open_clip_folder(source.removeprefix("open_clip:"))
    card = read_json(folder / "open_clip_config.json")
    state = read_tensors(folder / "open_clip_model.safetensors")
    trunk = {k.removeprefix("visual.trunk."): v for k, v in state.items() if k.startswith("visual.trunk.")}
    state = trunk or {name: value for name, value in state.items() if name.startswith("visual.")}
    if not state:
        raise UsageError(f"{folder} holds no image side: none of its tensors is named visual.*")
    cfg = {"mean": OPEN_CLIP_MEAN, "std": OPEN_CLIP_STD, **(card.get("preprocess_cfg") or {})}
    return Weights(source=source, state=state, **_space(cfg))


def _space(cfg: dict[str, Any]) -> dict[str, Any]:
    return {
        "architecture": cfg.get("architecture") or "",
        "mean": tuple(cfg.get("mean") or (0.5,) * 3),
        "std": tuple(cfg.get("std") or (0.5,) * 3),
        "interpolation": cfg.get("interpolation") or "bilinear",
        "image_size": (cfg.get("input_size") or (3, 224, 224))[-1],
    }


def _short(numbers: tuple[float, ...]) -> str:
    return "/".join(f"{number:.3g}" for number in numbers)
