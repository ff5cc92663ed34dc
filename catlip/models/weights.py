"""Weights in: an encoder from a run folder, a model folder, timm, open_clip's folders, the Hugging Face Hub, or a plain
state dict.

`load` opens an encoder as it is, with its classifier. Training that starts from weights takes `open_weights`: the
backbone gets the weights and the input space (mean, std) they were made for; of a classifier the rows of synsets that
both vocabularies have are kept bit for bit, wherever they stand; rows of new synsets stay as they are.

Folders are read from safetensors files only, and torch's checkpoints as tensors alone: opening them runs nothing.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from catlip.errors import UsageError, first_line
from catlip.models.encoder import (
    MEAN,
    STD,
    Encoder,
    check_name,
    classifiers,
    misfit,
    own_arguments,
    translated,
    without_classifier,
)
from catlip.models.model_folders import (
    OPEN_CLIP,
    OPEN_CLIP_FILES,
    TIMM_FILES,
    model_folder,
    open_clip_folder,
    read_folder,
    read_json,
)
from catlip.models.state_dicts import matched_to, named_file, read_state, read_tensors, tensors_of, timm_model
from catlip.notices import say

TIMM = "timm:"
OPEN_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what open_clip assumes where a folder says nothing
OPEN_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

M = TypeVar("M", bound=nn.Module)
# An Encoder; a Run, which is anything with `encoder` and `out`; a timm model; or where one lies: a run folder, a model
# folder in timm's layout, "hf-hub:org/name", "timm:NAME", or "NAME=FILE", a state dict of timm's architecture NAME.
Source = Any


def load(source: Source, backbone: str = "") -> Encoder:
    """An encoder, in evaluation mode, from a run folder, a model folder in timm's layout, "hf-hub:org/name",
    "timm:NAME" (pretrained), or "NAME=FILE": a state dict (.safetensors, .pth) of timm's architecture NAME. An
    Encoder, and the encoder of a Run, is returned as it is; a timm model becomes one.

    backbone: timm's name of the architecture, where source is a state dict, its file, or a module of somebody else's
    (torchvision's resnet50, say, which has timm's names).

    Raises UsageError, with one clear line, for anything else.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> Encoder.create("test_resnet", image_size=64).save(folder)
    >>> load(folder).architecture
    'test_resnet'
    """
    found = source if isinstance(source, Encoder) else getattr(source, "encoder", None)
    if isinstance(found, Encoder):
        return found
    if isinstance(source, nn.Module | Mapping):
        return _from_memory(source, backbone)
    name = f"{backbone}={os.fspath(source)}" if backbone else origin(source)
    if name.startswith(TIMM):
        encoder = Encoder(pretrained(name.removeprefix(TIMM)).eval()).eval()
        encoder.source, encoder.multi_label = name, False
        return encoder
    if named_file(name) is not None:
        return _with_own_view(open_weights(name), name)
    folder, card, state = read_folder(name)
    architecture = card.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UsageError(f"{folder / 'config.json'}: timm {timm.__version__} has no architecture {architecture!r}")
    try:
        made: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except (TypeError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise UsageError(f"{folder / 'config.json'}: {architecture} cannot be made: {first_line(error)}") from None
    if wrong := misfit(made.state_dict(), state):
        raise UsageError(f"{folder}: the weights are not those of {architecture}, which config.json names: {wrong}")
    made.load_state_dict(state)
    labels, names = card.get("label_names") or [], card.get("label_descriptions") or {}
    encoder = Encoder(made.eval(), labels, [names.get(label, label) for label in labels]).eval()
    encoder.arguments |= own_arguments(card.get("model_args"))
    encoder.multi_label = _is_multi_label(card)
    encoder.source = name
    return encoder


def _from_memory(source: Any, backbone: str) -> Encoder:
    """Of a timm model, or of a state dict (or a module that has one) of timm's architecture `backbone`."""
    if not backbone and isinstance(source, nn.Module) and hasattr(source, "pretrained_cfg"):
        encoder = Encoder(source.eval()).eval()
        encoder.multi_label = False
        return encoder
    what = "a state dict" if isinstance(source, Mapping) else f"a {type(source).__name__}"
    if not backbone:
        raise UsageError(f"{what} does not say which of timm's architectures it is; name it: load(..., backbone=NAME)")
    state = tensors_of(source if isinstance(source, Mapping) else source.state_dict(), what)
    return _with_own_view(_of_state(state, backbone, what), "")


def _with_own_view(weights: "Weights", source: str) -> Encoder:
    """An encoder that is shown images as these weights were."""
    encoder = weights.build().eval()
    encoder.backbone.pretrained_cfg |= weights.view
    encoder.source = source
    return encoder


def _is_multi_label(card: Mapping[str, Any]) -> bool:
    """Whether a folder's classifier was trained label by label. Ours say so, or are of an earlier version, which wrote
    descriptions beside such labels; one that catlip did not write knows one class an image."""
    return card.get("multi_label", "label_descriptions" in card) is not False


def origin(source: Source) -> str:
    """Where a source lies: its path or name, a Run's folder, where an Encoder was loaded from; "" if nowhere."""
    if isinstance(source, Encoder):
        return source.source
    try:
        return "" if isinstance(source, nn.Module) else os.fspath(getattr(source, "out", source))
    except TypeError:
        raise UsageError(f"an Encoder, a Run or where one lies is expected, not {type(source).__name__}") from None


@dataclass(kw_only=True, slots=True)
class Weights:
    """A backbone's weights, the input space they want, and the rows of a classifier by label."""

    source: str
    state: dict[str, Tensor]  # {}: random ones
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    architecture: str = ""  # if it is known
    arguments: dict[str, Any] = field(default_factory=dict)  # what else its making wants
    image_size: int = 224  # pixels
    labels: list[str] = field(default_factory=list)
    weight: Tensor | None = None  # [len(labels), D]
    bias: Tensor | None = None  # [len(labels)]
    multi_label: bool = True  # whether the rows were trained label by label; else they compete (softmax)
    view: dict[str, Any] = field(default_factory=dict)  # crop_pct and crop_mode that they are evaluated with

    def build(self, *, image_size: int = 0, **options: Any) -> Encoder:
        """An encoder of the weights' architecture with these weights, without classifier.

        image_size: pixels; 0: the weights' own. options: see `Encoder.create`. Raises UsageError for weights that do
        not say which architecture they are of.
        """
        if not self.architecture:
            raise UsageError(
                f"{self.source} does not say which architecture it is; name a run, a model folder, timm:NAME or "
                "NAME=FILE"
            )
        size = image_size or self.image_size
        encoder = Encoder.create(self.architecture, image_size=size, arguments=self.arguments, **options)
        if self.state:
            self.fill(encoder)
        return encoder

    def fill(self, encoder: Encoder) -> None:
        """Put the weights into an encoder; positions for another image size are interpolated.

        Raises UsageError for weights of another architecture.
        """
        backbone = encoder.backbone
        wanted, state = backbone.state_dict(), self.state
        if misfit(wanted, state):
            state = without_classifier(translated(backbone, state), backbone.pretrained_cfg)
        if wrong := misfit(wanted, state):
            other = self.architecture not in ("", encoder.architecture)
            known = f" (it is a {self.architecture})" if other else ""
            resized = not other and self.image_size != encoder.image_size
            hint = f"; they are for `image_size` {self.image_size}" if resized else ""
            raise UsageError(f"{self.source} does not fit `backbone` {encoder.architecture}{known}: {wrong}{hint}")
        backbone.load_state_dict(state)
        space = {"mean": tuple(self.mean), "std": tuple(self.std), "interpolation": self.interpolation}
        backbone.pretrained_cfg = {**backbone.pretrained_cfg, **space}
        encoder.mean.copy_(torch.tensor(self.mean).view(3, 1, 1))
        encoder.std.copy_(torch.tensor(self.std).view(3, 1, 1))

    @torch.no_grad()
    def keep_rows(self, head: nn.Linear, synsets: list[str]) -> int:
        """Copy the rows of synsets that both classifiers have, weight and bias; how many there are."""
        if self.weight is None:
            return 0
        if self.weight.shape[1] != head.in_features:
            theirs = self.weight.shape[1]
            raise UsageError(
                f"`start` {self.source}: its classifier reads {theirs} features, this one {head.in_features}"
            )
        row_of = {label: row for row, label in enumerate(self.labels)}
        here = [i for i, synset in enumerate(synsets) if synset in row_of]
        there = [row_of[synsets[i]] for i in here]
        head.weight[here] = self.weight[there].to(head.weight)
        if self.bias is not None and head.bias is not None:
            head.bias[here] = self.bias[there].to(head.bias)
        return len(here)


def start_from(source: Source, encoder: Encoder, head: nn.Linear | None, synsets: list[str]) -> str:
    """Fill encoder and head in place; a line that says what was kept.

    synsets: of the head's rows. Raises UsageError for weights that cannot be had or are of another architecture.
    """
    weights = open_weights(source)
    weights.fill(encoder)
    mean, std = ("/".join(f"{number:.3g}" for number in numbers) for numbers in (weights.mean, weights.std))
    told = f"weights from {weights.source}, input space mean {mean}, std {std}"
    if head is None or weights.weight is None:
        return told
    if not weights.multi_label:  # under a sigmoid they say yes to hundreds of labels at once
        return f"{told}; the rows of its classifier are not taken over, as they were trained to compete (softmax)"
    kept = weights.keep_rows(head, synsets)
    return f"{told}; {kept:,} of {len(synsets):,} classes keep their row of its classifier"


def named(source: Any, untrained: bool = False) -> str:
    """What results and messages call an encoder: where it is from, or its architecture."""
    return f"{origin(source) or load(source).architecture}{' untrained' if untrained else ''}"


def open_weights(source: Source, untrained: bool = False) -> Weights:
    """The weights of what `load` takes, or of "open_clip:FOLDER".

    untrained: what they are for, without weights; nothing is downloaded for timm:NAME. Raises UsageError, with one
    clear line, for anything that holds no weights.
    """
    if isinstance(source, nn.Module):
        encoder = load(source)
        cfg, state = encoder.backbone.pretrained_cfg, encoder.backbone.state_dict()
        weights = _weights(encoder.name, cfg, state, encoder.arguments, encoder.labels)
        weights.multi_label = encoder.multi_label
    elif (name := origin(source)).startswith(TIMM):
        architecture = name.removeprefix(TIMM)
        if untrained:
            check_name(architecture)
            size: Any = timm.get_pretrained_cfg_value(architecture, "input_size") or (3, 224, 224)
            return Weights(source=name, state={}, mean=MEAN, std=STD, architecture=architecture, image_size=size[-1])
        backbone = pretrained(architecture, num_classes=0)
        weights = Weights(source=name, state=backbone.state_dict(), **_space(backbone.pretrained_cfg))
    elif name.startswith(OPEN_CLIP):
        weights = _from_open_clip(name)
    elif (named := named_file(name)) is not None:
        weights = _of_state(read_state(named[1]), named[0], name)
    else:
        _, card, state = read_folder(name)
        cfg = {**(card.get("pretrained_cfg") or {}), "architecture": card.get("architecture")}
        weights = _weights(name, cfg, state, card.get("model_args") or {}, card.get("label_names") or [])
        weights.multi_label = _is_multi_label(card)
    return replace(weights, state={}, labels=[], weight=None, bias=None) if untrained else weights


def interpolated(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """WiSE-FT (arXiv 2109.01903): weights on the way from `start` (0) to `end` (1); whole numbers are the end's."""
    return {
        name: torch.lerp(start[name].float().cpu(), value.float().cpu(), alpha).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in end.items()
    }


def fingerprint(source: Source, untrained: bool = False) -> str:
    """Identifies the weights for the record of a run: a run that resumes must have started from the same ones."""
    if untrained:
        return f"untrained {origin(source) or load(source).architecture}"
    if isinstance(source, nn.Module):
        source = load(source)
        digest = hashlib.sha256(source.architecture.encode())
        for name, value in source.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]
    name = origin(source)
    if name.startswith(TIMM):
        return name
    if (named := named_file(name)) is not None:
        file = Path(named[1])
    elif name.startswith(OPEN_CLIP):
        file = open_clip_folder(name) / OPEN_CLIP_FILES[1]
    else:
        file = model_folder(name) / TIMM_FILES[1]
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def pretrained(name: str, **changes: Any) -> Any:
    """timm's model of this name with its weights, from the cache or the net. Raises UsageError if there are none."""
    check_name(name)
    try:
        return timm.create_model(name, pretrained=True, **changes)
    except Exception as error:  # timm, the hub and the net below it each raise their own
        raise UsageError(f"timm:{name} cannot be had: {first_line(error)}") from None


def on_device(module: M, device: str) -> M:
    """The module on a device; "auto": the accelerator if there is one. Raises UsageError for one that is not there."""
    if device == "auto":
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device` {device!r} cannot be used: {first_line(error)}") from None


def _weights(
    source: str, cfg: Mapping[str, Any], state: dict[str, Tensor], arguments: Mapping[str, Any], labels: list[str]
) -> Weights:
    """cfg: timm's configuration of the backbone. Rows without names cannot be matched: nothing is kept of them."""
    own, state_without = own_arguments(arguments), without_classifier(state, cfg)
    found = Weights(source=source, state=state_without, arguments=own, **_space(cfg))
    rows = next((state[f"{name}.weight"].flatten(1) for name in classifiers(cfg) if f"{name}.weight" in state), None)
    if labels and rows is not None:
        found.labels, found.weight = list(labels), rows
        found.bias = state.get(f"{classifiers(cfg)[0]}.bias")
    return found


def _of_state(state: dict[str, Tensor], backbone: str, source: str) -> Weights:
    """A state dict of timm's architecture `backbone`, under whichever names. Raises UsageError."""
    model = timm_model(backbone)
    matched, how = matched_to(model, state, source)
    found = Weights(source=source, state=matched, **_space(model.pretrained_cfg))
    mean, std = ("/".join(f"{number:.3g}" for number in numbers) for numbers in (found.mean, found.std))
    _say_once(
        f"{source}: {len(matched)} tensors of {backbone}{f', {how}' if how else ''}; mean {mean}, std {std} and "
        "crop are timm's for it, as the weights do not say"
    )
    return found


@cache
def _say_once(text: str) -> None:
    say(text)


def _from_open_clip(source: str) -> Weights:
    """The image side of a dual encoder: a timm backbone, or open_clip's own ViT, which timm can translate."""
    folder = open_clip_folder(source)
    card = read_json(folder / OPEN_CLIP_FILES[0])
    state = read_tensors(folder / OPEN_CLIP_FILES[1])
    trunk = {k.removeprefix("visual.trunk."): v for k, v in state.items() if k.startswith("visual.trunk.")}
    state = trunk or {name: value for name, value in state.items() if name.startswith("visual.")}
    if not state:
        raise UsageError(f"{folder} holds no image side: none of its tensors is named visual.*")
    cfg = {"mean": OPEN_CLIP_MEAN, "std": OPEN_CLIP_STD, **(card.get("preprocess_cfg") or {})}
    return Weights(source=source, state=state, **_space(cfg))


def _space(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architecture": cfg.get("architecture") or "",
        "mean": tuple(cfg.get("mean") or (0.5,) * 3),
        "std": tuple(cfg.get("std") or (0.5,) * 3),
        "interpolation": cfg.get("interpolation") or "bilinear",
        "image_size": (cfg.get("input_size") or (3, 224, 224))[-1],
        "view": {name: cfg[name] for name in ("crop_pct", "crop_mode") if cfg.get(name)},
    }
