"""Optimisers with weight decay where it belongs, and learning rates that are functions of samples seen."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import Any, Literal

import torch
from timm.models import group_parameters
from torch import nn

from catlip.errors import UsageError


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Settings of the optimiser."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the hidden matrices, AdamW for the rest
    lr: float = 1e-3  # peak learning rate
    lr_end: float = 0.0  # learning rate at the end, as a share of the peak
    weight_decay: float = 0.05  # not on norms, biases, positions and what else timm names for the backbone
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: warm-up, stable, linear decay
    warmup: float = 0.05  # share of the budget over which the learning rate rises
    decay: float = 0.2  # wsd: share of the budget over which it falls
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    layer_decay: float = 1.0  # learning rate of each encoder layer, as a share of that of the layer above it


def make_optimizers(task: nn.Module, cfg: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW in two groups: matrices and kernels decay; what is one-dimensional, and what timm's `no_weight_decay` names
    for the backbone (positions, class token, Swin's tables of relative positions), does not. With Muon, the hidden
    matrices of the backbone are taken out of them; kernels, embeddings and heads stay.

    With layer decay each layer of the encoder has groups of its own; a group's "lr_scale" is what its learning rate is
    multiplied with. Raises UsageError for a combination that cannot be.
    """
    if cfg.optimizer == "muon" and cfg.layer_decay != 1:
        raise UsageError("`layer_decay` goes with `optimizer` adamw")
    scales = layer_scales(task, cfg.layer_decay) if cfg.layer_decay != 1 else {}
    exempt, muon = set(_exempt(task)), []
    found_groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # (weight decay, scale) -> parameters
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in exempt:
            found_groups.setdefault((0.0, scales.get(name, 1.0)), []).append(parameter)
        elif cfg.optimizer == "muon" and parameter.ndim == 2 and ".blocks." in name:
            muon.append(parameter)
        else:
            found_groups.setdefault((cfg.weight_decay, scales.get(name, 1.0)), []).append(parameter)
    groups = [
        {"params": some, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), some in sorted(found_groups.items(), key=lambda group: group[0], reverse=True)
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)]
    if cfg.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise UsageError(f"`optimizer` muon needs torch 2.9 or newer; this is {torch.__version__}")
        if not muon:
            raise UsageError("`optimizer` muon is for backbones with transformer blocks; this one has none")
        # Updates scaled to AdamW's usual size (Liu et al. 2025), so that one learning rate serves both.
        found.append(torch.optim.Muon(muon, lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return found


def _exempt(task: nn.Module) -> Iterator[str]:
    """Names of the parameters that do not decay, by timm's own rule (`param_groups_weight_decay`)."""
    for name, parameter in task.named_parameters():
        if parameter.ndim < 2 or name.endswith((".bias", "positional_embedding")):  # the latter: of the text tower
            yield name
    asked: tuple[str, ...] = ()  # timm asks a whole model, not its parts
    for prefix, module in task.named_modules():
        rule: Any = getattr(module, "no_weight_decay", None)
        path = f"{prefix}." if prefix else ""
        if rule is not None and not path.startswith(asked):
            asked += (path,)
            names = [name for name, _ in module.named_parameters()]
            yield from (path + name for pattern in rule() for name in matching(names, pattern))


def layer_scales(task: Any, decay: float) -> dict[str, float]:
    """Share of the learning rate of each parameter of the encoder's backbone, by its name in the task.

    What is not of the backbone learns at the full rate; its last layer at decay, the one below at decay^2, and so on
    (ELECTRA's discriminative rates, as BEiT and ViTDet use them). Layers are timm's.
    """
    backbone = task.encoder.backbone
    layer_of: dict[str, Any] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    top = max(layer_of.values()) + 1
    prefix = next(name for name, module in task.named_modules() if module is backbone)
    return {f"{prefix}.{name}": decay ** (top - layer) for name, layer in layer_of.items()}


def learning_rate(seen: int, budget: int, cfg: OptimConfig) -> float:
    """Linear warm-up, then half a cosine, or a plateau and a line. seen: samples before this step, of `budget`."""
    share = seen / budget
    if share < cfg.warmup:
        return cfg.lr * (share + 1e-3) / (cfg.warmup + 1e-3)
    if cfg.schedule == "wsd":
        left = min(1.0, (1 - share) / max(cfg.decay, 1e-9))
        return cfg.lr * (cfg.lr_end + (1 - cfg.lr_end) * max(left, 0.0))
    done = (share - cfg.warmup) / max(1 - cfg.warmup, 1e-9)
    return cfg.lr * (cfg.lr_end + (1 - cfg.lr_end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
