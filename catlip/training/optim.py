"""AdamW with weight decay where it belongs, and a learning rate that is a function of samples seen."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(kw_only=True, slots=True)
class Optim:
    """Settings of the optimiser."""

    lr: float = 1e-3  # peak learning rate
    lr_end: float = 0.0  # learning rate at the end, as a share of the peak
    weight_decay: float = 0.05  # not on norms, biases and position embeddings
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05  # share of the budget over which the learning rate rises
    clip: float = 1.0  # largest gradient norm; 0: no clipping


def make_optimizer(task: nn.Module, cfg: Optim) -> torch.optim.AdamW:
    """Two groups: matrices and kernels decay, everything else (one-dimensional, positions, class token) does not."""
    decayed, free = [], []
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token", "reg_token"))
            (free if small else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def learning_rate(seen: int, budget: int, cfg: Optim) -> float:
    """Linear warm-up, then half a cosine. seen: samples before this step; budget: samples of the whole run."""
    share = seen / budget
    if share < cfg.warmup:
        return cfg.lr * (share + 1e-3) / (cfg.warmup + 1e-3)
    done = (share - cfg.warmup) / max(1 - cfg.warmup, 1e-9)
    return cfg.lr * (cfg.lr_end + (1 - cfg.lr_end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
