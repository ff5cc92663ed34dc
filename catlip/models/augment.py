"""RangeAugment (Mehta et al. 2022, arXiv 2212.10553): how strong an augmentation may be is learned with the encoder.

Brightness, contrast and noise have ranges with learnable ends. A second loss pulls the distance between the picture
before and after them (as PSNR) to a target that falls from 40 to 20 dB over the run, so augmentation starts weak and
grows. Facts and initial values as in the official code of CatLIP: three operations in a random order a batch, each
on a random half of the pictures; distance measured on grey levels 0..255; the cosine is on the squared error, not on
the decibels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class RangeAugment(nn.Module):
    """forward(image in [0, 1], progress) -> (image, loss)."""

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

    def forward(self, image: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """image: float [B, 3, H, W] in [0, 1]. The loss is 0-d; its gradient reaches the ranges alone."""
        before, names = image, list(MAGNITUDES)
        for i in torch.randperm(len(names)).tolist():
            image = self._change(names[i], image)
        image = image.clamp(0, 1)
        error = ((image - before) * 255).square().mean(dim=(1, 2, 3))
        loss = F.smooth_l1_loss(error, torch.full_like(error, self.target(progress))) * LOSS_WEIGHT
        return image, loss

    def _change(self, name: str, image: Tensor) -> Tensor:
        """One operation on a random half of the pictures, its strength drawn anew for each."""
        n = len(image)
        chosen = torch.zeros(n, dtype=torch.bool, device=image.device)
        chosen[torch.randperm(n, device=image.device)[: max(1, n // 2)]] = True
        low, high = self.range(name)
        m = low + (high - low) * torch.rand(n, 1, 1, 1, device=image.device)
        if name == "brightness":
            changed = image * m
        elif name == "contrast":
            changed = (1 - m) * image.mean(dim=(2, 3), keepdim=True) + m * image
        else:
            changed = image + torch.randn_like(image) * m
        return torch.where(chosen[:, None, None, None], changed, image)
