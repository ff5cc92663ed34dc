"""Augmentations of a batch on the device; RangeAugment is the one that comes with catlip.

An augmentation is a module. It is called with the images, float [B, 3, H, W] in [0, 1], and, if its forward takes a
second argument, with the share of the run that is done, from 0 to 1. It returns images of the same shape, or
(images, loss): a loss of no dimensions that is added to the objective's, so that it can learn.

    class Invert(nn.Module):
        def forward(self, images):
            return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.1, 1 - images, images)

RangeAugment (Mehta et al. 2022, arXiv 2212.10553) learns how strong it may be. Brightness, contrast and noise have
ranges with learnable ends. A second loss pulls the distance between the image before and after them (as PSNR) to a
target that falls from 40 to 20 dB over the run, so augmentation starts weak and grows. Constants and initial values are
those of the official code of CatLIP: three operations in a random order for each batch, each on a random half of the
images; distance measured on grey levels 0..255; the cosine is on the squared error, not on the decibels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.errors import UsageError

# Bounds of the ends of each range, and the ends' start before the soft clip.
MAGNITUDES = {
    "brightness": ((0.1, 0.9), (1.1, 10.0), 0.5, 1.5),
    "contrast": ((0.1, 0.9), (1.1, 10.0), 0.5, 1.5),
    "noise": ((0.0, 5e-5), (1e-4, 1.0), 0.0, 0.1),
}
LOSS_WEIGHT = 100 / 255**2


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Settings of RangeAugment."""

    range_augment: bool = False  # learn the strength of brightness, contrast and noise
    psnr: tuple[float, float] = (40.0, 20.0)  # decibels at the start and at the end of the run

    def build(self) -> nn.Module | None:
        """The augmentation with its initial weights, or None if there is none."""
        return RangeAugment(self.psnr) if self.range_augment else None


class RangeAugment(nn.Module):
    """forward(images, progress) -> (images, loss)."""

    def __init__(self, psnr: tuple[float, float] = (40.0, 20.0)) -> None:
        super().__init__()
        self.psnr = psnr
        # One element each, not none: FSDP shards no scalars.
        self.low = nn.ParameterDict({name: nn.Parameter(torch.tensor([m[2]])) for name, m in MAGNITUDES.items()})
        self.high = nn.ParameterDict({name: nn.Parameter(torch.tensor([m[3]])) for name, m in MAGNITUDES.items()})

    def range(self, name: str) -> tuple[Tensor, Tensor]:
        """The learned ends of an operation's strength."""
        (a, b), (c, d), _, _ = MAGNITUDES[name]
        return a + (b - a) * self.low[name].sigmoid(), c + (d - c) * self.high[name].sigmoid()

    def target(self, progress: float) -> float:
        """Mean squared error to aim at, on grey levels, after a share `progress` of the run."""
        start, end = (255.0**2 / 10 ** (db / 10) for db in self.psnr)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))

    def forward(self, images: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """images: float [B, 3, H, W] in [0, 1]. The gradient of the loss reaches the ranges alone."""
        before, names = images, list(MAGNITUDES)
        for i in torch.randperm(len(names)).tolist():
            images = self._change(names[i], images)
        images = images.clamp(0, 1)
        error = ((images - before) * 255).square().mean(dim=(1, 2, 3))
        loss = F.smooth_l1_loss(error, torch.full_like(error, self.target(progress))) * LOSS_WEIGHT
        return images, loss

    def _change(self, name: str, images: Tensor) -> Tensor:
        """One operation on a random half of the images, its strength random for each."""
        n = len(images)
        chosen = torch.zeros(n, dtype=torch.bool, device=images.device)
        chosen[torch.randperm(n, device=images.device)[: max(1, n // 2)]] = True
        low, high = self.range(name)
        m = low + (high - low) * torch.rand(n, 1, 1, 1, device=images.device)
        if name == "brightness":
            changed = images * m
        elif name == "contrast":
            changed = (1 - m) * images.mean(dim=(2, 3), keepdim=True) + m * images
        else:
            changed = images + torch.randn_like(images) * m
        return torch.where(chosen[:, None, None, None], changed, images)


def built_augment(augment: Any) -> nn.Module | None:
    """An augmentation from its config, or the module that was given. Raises UsageError for anything else."""
    if isinstance(augment, AugmentConfig):
        return augment.build()
    if not isinstance(augment, nn.Module):
        raise UsageError(f"`augment` is an AugmentConfig or a module on images, not {augment!r}")
    return augment
