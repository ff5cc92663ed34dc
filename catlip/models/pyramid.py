"""Feature pyramids over an Encoder, as torchvision's detectors take a backbone.

Plain ViTs have one scale: ViTDet's simple pyramid (arXiv 2203.16527) makes the others from their last map by
deconvolution and pooling. Backbones with stages get a feature pyramid network (arXiv 1612.03144). Left out of ViTDet:
window attention with a few global blocks; all blocks see the whole picture, which costs time and memory at 1024 px,
and nothing in accuracy. The official detector runs an FPN on top of the simple pyramid; here the pyramid's own two
convolutions a level, as in ViTDet, are all there is.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from catlip.errors import UsageError
from catlip.models.encoder import Encoder

M = TypeVar("M", bound=nn.Module)
STRIDES = (4, 8, 16, 32)  # and 64, by taking every second place of the last


class SimplePyramid(nn.Module):
    """[B, D, h, w] at a stride that is a power of two -> four maps [B, channels, .., ..] at strides 4, 8, 16, 32."""

    def __init__(self, width: int, stride: int, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([self._level(width, stride, wanted, channels) for wanted in STRIDES])

    def _level(self, width: int, stride: int, wanted: int, channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        while stride > wanted:
            if layers:
                layers += [LayerNorm2d(width), nn.GELU()]
            layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
            width, stride = width // 2, stride // 2
        if stride < wanted:
            layers.append(nn.MaxPool2d(wanted // stride))
        layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


class Pyramid(nn.Module):
    """An encoder as a detector's backbone: images -> {"0": finest map, "1": ..., "pool": coarsest}."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        """Raises UsageError for a backbone whose maps do not fit."""
        super().__init__()
        self.encoder, self.out_channels = encoder, channels
        backbone: Any = encoder.backbone
        info = [(stage["reduction"], stage["num_chs"]) for stage in getattr(backbone, "feature_info", [])]
        strides = {stride for stride, _ in info}
        if len(strides) == 1 and len(info) > 1:  # all blocks of a plain ViT have the same map
            stride, width = info[-1]
            if stride not in STRIDES:
                raise UsageError(
                    f"{encoder.architecture} has patches of {stride} pixels; a pyramid needs 4, 8, 16 or 32"
                )
            self.indices: Any = 1  # the last block
            self.neck: nn.Module = SimplePyramid(width, stride, channels)
            self.n_levels = len(STRIDES)
        else:
            self.indices = [i for i, (stride, _) in enumerate(info) if stride in STRIDES]
            if len(self.indices) < 2:
                raise UsageError(f"{encoder.architecture} has no stages at strides of 4 to 32 pixels")
            self.neck = FeaturePyramidNetwork([info[i][1] for i in self.indices], channels)
            self.n_levels = len(self.indices)

    @property
    def names(self) -> list[str]:
        """Of the maps from which regions are cut; the coarsest only proposes some."""
        return [str(level) for level in range(self.n_levels)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.encoder.backbone
        if isinstance(self.neck, SimplePyramid):
            last = backbone.forward_intermediates(x, indices=self.indices, norm=True, intermediates_only=True)[-1]
            maps = self.neck(last)
        else:
            stages = backbone.forward_intermediates(x, indices=self.indices, intermediates_only=True)
            maps = list(self.neck(dict(zip(self.names, stages, strict=True))).values())
        # fp32 whatever autocast does: torchvision places its anchors in the maps' own precision.
        maps = [each.float() for each in maps]
        found = OrderedDict(zip(self.names, maps, strict=True))
        found["pool"] = F.max_pool2d(maps[-1], kernel_size=1, stride=2)
        return found


def freeze_lowest(encoder: Encoder, layers: int) -> None:
    """The lowest layers (timm's: the stem is one, then stages or blocks) do not train, which is where time goes."""
    backbone = encoder.backbone
    layer_of: Any = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    for name, parameter in backbone.named_parameters():
        if layer_of[name] < layers:
            parameter.requires_grad_(False)


def freeze_unused(module: M, size: int, maps: Callable[[M, Tensor], list[Tensor]]) -> list[Tensor]:
    """Parameters that no map depends on (a norm after the last stage, a pooling head) do not train: several processes
    wait for the gradient of each parameter that does.

    maps(module, x [1, 3, size, size]): feature maps. Returns them, on the meta device: nothing is computed.
    """
    shadow = copy.deepcopy(module).to("meta").eval()
    found = maps(shadow, torch.empty(1, 3, size, size, device="meta"))
    learned = {name: parameter for name, parameter in shadow.named_parameters() if parameter.requires_grad}
    if learned:
        total = torch.stack([value.sum() for value in found]).sum()
        grads = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
        used = {name for name, grad in zip(learned, grads, strict=True) if grad is not None}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in used)
    return found
