"""The vision transformer of the official CatLIP models (CoreNet), as a timm architecture of its own.

It is timm's VisionTransformer but for two things. Patches come from three convolutions with BatchNorm, the first of
which is padded by one pixel; timm's nearest relative, vit_base_mci_224, is not padded, so that its patches lie one
pixel further down and to the right. And the official code interpolates the 196 learned positions as if they stood in
one row, not on a 14 x 14 grid: wherever an image is not 224 px wide, a position's column is lost.

    positions="1d"  as the official code: exact for the official weights at any size
    positions="2d"  on the grid, bicubic, as timm does for its own models; the same at 224 px

Importing this file tells timm the names below; a folder with such weights then loads with `timm.create_model` too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

GRID = (14, 14)  # of the learned positions: 224 px, 16 px a patch
# name -> (width, layers); a head is 64 wide in all of them
SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}


class ConvStem(nn.Module):
    """Images [B, 3, H, W] -> patches [B, H / stride, W / stride, D].

    stride: 16, or 8 as DeepLabv3 uses it: the first convolution then takes half the step with the same kernel.
    """

    def __init__(self, width: int, stride: int, in_chans: int = 3, **where: Any) -> None:
        super().__init__()
        narrow = max(32, width // 4)
        self.grid_size, self.num_patches = GRID, GRID[0] * GRID[1]  # timm sizes the position table by these
        self.stride = stride
        step = stride // 4
        self.conv1 = nn.Conv2d(in_chans, narrow, 4, step, padding=1, bias=False, **where)
        self.norm1 = nn.BatchNorm2d(narrow, **where)
        self.conv2 = nn.Conv2d(narrow, narrow, 2, 2, bias=False, **where)
        self.norm2 = nn.BatchNorm2d(narrow, **where)
        self.proj = nn.Conv2d(narrow, width, 2, 2, **where)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))
        x = F.gelu(self.norm2(self.conv2(x)))
        return self.proj(x).permute(0, 2, 3, 1)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        return self.stride if as_scalar else (self.stride, self.stride)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image: the convolutions' own arithmetic, for sizes that do not divide."""
        step = self.conv1.stride[0]
        height, width = (((size - 2) // step + 1) // 4 for size in img_size)
        return height, width


class CorenetVit(VisionTransformer):
    """x: [B, 3, H, W], RGB in [0, 1] for the official weights; any size from 32 px on."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        positions: str = "2d",
        stride: int = 16,
        class_token: bool = True,
        **kwargs: Any,
    ) -> None:
        """class_token=False: as the official detectors use it; pooled is then the mean over all patches.

        Raises ValueError for settings that no official model has.
        """
        if positions not in ("1d", "2d") or stride not in (8, 16):
            raise ValueError(f"positions={positions!r}, stride={stride}: expected '1d' or '2d', and 8 or 16")
        for name in ("img_size", "dynamic_img_size", "global_pool", "strict_img_size", "patch_size", "embed_layer"):
            kwargs.pop(name, None)  # every size is fine here, so there is nothing to set
        # What `timm.create_model` needs beside the name to make this model again.
        self_args: dict[str, Any] = {"positions": positions, "stride": stride, "class_token": class_token}

        def stem(embed_dim: int, in_chans: int = 3, device: Any = None, dtype: Any = None, **_: Any) -> ConvStem:
            return ConvStem(embed_dim, stride, in_chans, device=device, dtype=dtype)

        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // 64,
            no_embed_class=True,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            embed_layer=stem,
            class_token=class_token,
            fc_norm=False,
            global_pool="token" if class_token else "avg",
            **kwargs,
        )
        self.positions = positions
        self.build_args = self_args

    def _pos_embed(self, x: Tensor) -> Tensor:
        """x [B, h, w, D] -> tokens [B, (1 +) h * w, D]. The class token has no position."""
        assert self.pos_embed is not None
        batch, height, width, dim = x.shape
        position: Tensor = self.pos_embed
        if self.positions == "1d":
            # Also at 224 px, where it returns the same numbers: a branch would fix an exported graph's size.
            size = (height * width, dim)
            position = F.interpolate(position[None], size=size, mode="bilinear", align_corners=False)[0]
        else:
            position = resample_abs_pos_embed(position, [height, width], list(GRID), num_prefix_tokens=0)
        x = x.reshape(batch, -1, dim) + position
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1)
        return self.pos_drop(x)


def architecture_of(width: int, depth: int) -> str | None:
    """The name of the official model of this size, if there is one."""
    return next((f"corenet_vit_{name}" for name, size in SIZES.items() if size == (width, depth)), None)


default_cfgs = generate_default_cfgs(
    {
        f"corenet_vit_{name}": {
            "num_classes": 0,
            "input_size": (3, 224, 224),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "interpolation": "bilinear",
            "crop_pct": 224 / 232,
            "fixed_input_size": False,
            "first_conv": "patch_embed.conv1",
            "classifier": "head",
        }
        for name in SIZES
    }
)


def _entry(size: str) -> Callable[..., CorenetVit]:
    """What `timm.create_model` calls for a name."""

    def create(pretrained: bool = False, **kwargs: Any) -> CorenetVit:
        width, depth = SIZES[size]
        name = f"corenet_vit_{size}"
        return build_model_with_cfg(CorenetVit, name, pretrained, embed_dim=width, depth=depth, **kwargs)  # pyright: ignore[reportReturnType]

    create.__name__ = f"corenet_vit_{size}"
    return create


for _size in SIZES:
    register_model(_entry(_size))
