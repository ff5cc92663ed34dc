"""Weights that are a state dict and no model folder: torchvision's, a lab's own, a checkpoint of a training run.

Such a file says neither which architecture it is of nor which input space it was made for. The first the user names, as
NAME=FILE; the second is what timm has for that name. Names of tensors are matched to timm's as they are, behind a
prefix ("module.", "backbone."), by timm's own translation for the family, or, where none of these fits, in the order in
which they stand, if all shapes agree.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from catlip.atomic import whole
from catlip.errors import UsageError, first_line
from catlip.models.encoder import check_name, misfit, translated, without_classifier

# Where training code keeps the weights in its checkpoints, the averaged ones first.
INSIDE = (
    "ema_model_state_dict", "state_dict_ema", "model_ema", "teacher", "model_state_dict", "state_dict", "model",
    "student", "module", "weights",
)  # fmt: skip
COUNTER = "num_batches_tracked"  # of BatchNorm, which older files lack; it computes nothing with a fixed momentum


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a torch checkpoint; of a training checkpoint those of the averaged model.

    Raises UsageError for a file that is missing, damaged, or needs code to be run to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in the unpickler
        wants = re.search(r"GLOBAL ([\w.]+)|Can only [^.]* (\S+)\.", str(error))
        if isinstance(error, pickle.UnpicklingError) and ("weights_only" in str(error).lower() or wants):
            what = f" ({wants.group(1)})" if wants and wants.group(1) else ""
            raise UsageError(
                f"{path} wants to run code{what} while it is read, which weights do not; refused"
            ) from None
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise UsageError(f"{path} is no readable checkpoint, or cut off: {reason}") from None
    return tensors_of(found, str(path))


def tensors_of(found: Any, source: str) -> dict[str, Tensor]:
    """The state dict that a checkpoint holds, at its top or under one of the usual names. Raises UsageError."""
    while isinstance(found, Mapping) and (inside := [n for n in INSIDE if isinstance(found.get(n), Mapping)]):
        found = found[inside[0]]
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors or len(tensors) < len(found) / 2:
        raise UsageError(f"{source} holds no state dict: expected names and tensors")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises UsageError for a file that is no safetensors file, or cut off."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged or cut off: {first_line(error)}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, which appears whole or not at all."""
    with whole(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)


def named_file(source: str) -> tuple[str, str] | None:
    """(architecture, file) of "NAME=FILE"; None for anything else."""
    name, equals, file = source.partition("=")
    return (name, file) if equals and re.fullmatch(r"[\w.]+", name) and not Path(source).exists() else None


def timm_model(name: str) -> Any:
    """timm's model of this name, without classifier and with random weights. Raises UsageError."""
    check_name(name)
    return timm.create_model(name, pretrained=False, num_classes=0)


def matched_to(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """(a state dict for timm's backbone without classifier, how its names were found; "" if they are timm's).

    Raises UsageError for weights of another architecture.
    """
    wanted: dict[str, Tensor] = backbone.state_dict()
    cfg: Any = backbone.pretrained_cfg
    prefix = _prefix(wanted, state)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    plain, heads = _without_others(_completed(without_classifier(own, cfg), wanted), wanted)
    if not misfit(wanted, plain):
        told = [f"their names begin with {prefix!r}"] if prefix else []
        return plain, "; ".join([*told, *([f"without {', '.join(heads)}"] if heads else [])])
    of_family = _completed(without_classifier(translated(backbone, own), cfg), wanted)
    if not misfit(wanted, of_family):
        return of_family, "renamed as timm does for this family"
    if (ordered := _in_order(wanted, state)) is not None:
        first = f"{next(iter(state))} is {next(iter(wanted))}"
        return ordered, f"named otherwise, and matched in their order, as all shapes agree: {first}"
    raise UsageError(f"{source} does not fit {cfg['architecture']}: {misfit(wanted, plain)}")


def _prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What stands before timm's names in a state dict: of all that could, what most of them have."""
    ends = next(iter(wanted))
    found = {name[: -len(ends)] for name in state if name.endswith(ends)}
    return max(sorted(found), key=lambda prefix: sum(prefix + name in state for name in wanted), default="")


def _without_others(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(without what hangs on the backbone under a name of its own, such as a projection head; these names). A part that
    the backbone has too, with more in it, stays: such weights are of another architecture."""
    parts = {name.split(".")[0] for name in wanted}
    others = sorted({name.split(".")[0] for name in state} - parts)
    return {name: value for name, value in state.items() if name.split(".")[0] in parts}, others


def _completed(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the counters of BatchNorm that are missing, at 0."""
    return {**{name: torch.zeros_like(value) for name, value in wanted.items() if name.endswith(COUNTER)}, **state}


def _in_order(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors under other names, if the same shapes stand in the same order and only a classifier is left over."""
    ours = [name for name in wanted if not name.endswith(COUNTER)]
    theirs = [name for name in state if not name.endswith(COUNTER)]
    left = theirs[len(ours) :]
    if len(theirs) < len(ours) or len(left) > 2 or any(state[name].ndim > 2 for name in left):
        return None
    pairs = list(zip(ours, theirs, strict=False))
    if any(wanted[mine].shape != state[other].shape for mine, other in pairs):
        return None
    return _completed({mine: state[other] for mine, other in pairs}, wanted)
