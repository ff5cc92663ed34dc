"""An encoder with a head that gives every pixel a class: DeepLabv3's, or one linear layer.

The heads read the last feature map, whose positions are 8, 16 or 32 pixels apart (the output stride). Convolutional
backbones that timm can dilate are dilated (Chen et al. 2017, arXiv 1706.05587, section 3.2: the last stages lose their
stride, their kernels spread); the official CatLIP ViT takes smaller steps between patches; all others keep their own
map, enlarged where it is coarser than asked.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from catlip.atomic import write_text
from catlip.data.images import decode_upright
from catlip.data.mask_classes import MaskClasses
from catlip.errors import UsageError
from catlip.models.encoder import REFUSALS, Encoder, misfit, size_refused
from catlip.models.model_folders import ENCODER_FOLDER, read_json
from catlip.models.pyramid import freeze_unused
from catlip.models.sliding_window import segment
from catlip.models.state_dicts import read_tensors, write_tensors
from catlip.models.weights import Source, on_device, open_weights, origin

CARD, WEIGHTS = "segmentation.json", "segmentation.safetensors"


@dataclass(kw_only=True, slots=True)
class DecoderConfig:
    """Settings of the head, which makes classes of the encoder's features."""

    head: Literal["deeplab", "linear"] = "deeplab"
    stride: Literal[8, 16, 32] = 16  # pixels between positions of the feature map
    head_width: int = 256  # channels; 512 in the official models. deeplab only, as what follows
    head_dropout: float = 0.5  # .1 in the official models
    rates: tuple[int, ...] = ()  # dilations of its kernels; default: 12, 24, 36 at stride 8, and half that at 16


@dataclass(kw_only=True, slots=True)
class SegmentationCard:
    """What is needed to use a trained model, beside its weights."""

    names: list[str]
    image_size: int  # pixels of the square windows it was trained with
    short_side: int = 0  # pixels that images are brought to before; 0: as they are
    head: dict[str, Any] = field(default_factory=dict)  # fields of DecoderConfig
    first: int = 0  # number of the first class in mask files
    void: tuple[int, ...] = (255,)


class Segmenter(nn.Module):
    """x: square images [B, 3, S, S] in the encoder's input space -> logits [B, C, h, w] at the stride."""

    def __init__(self, encoder: Encoder, classes: int, cfg: DecoderConfig) -> None:
        """Raises UsageError for an image size that the encoder refuses."""
        super().__init__()
        self.encoder = encoder
        self.classes, self.stride = classes, cfg.stride
        width, self.own_stride = _prepare(encoder)
        self.head = _deeplab(width, classes, cfg) if cfg.head == "deeplab" else nn.Conv2d(width, classes, 1)

    def features(self, x: Tensor) -> Tensor:
        """[B, D, h, w], h = S / stride; finer where the encoder's own map is."""
        found = feature_map(self.encoder, x)
        size = -(-x.shape[-1] // self.stride)
        if found.shape[-1] < size:
            found = F.interpolate(found, size=(size, size), mode="bilinear", align_corners=False)
        return found

    def logits(self, x: Tensor) -> Tensor:
        """[B, C, S, S]: every pixel's, in float32."""
        return F.interpolate(
            self.head(self.features(x)).float(), size=x.shape[-2:], mode="bilinear", align_corners=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class TrainedSegmenter:
    """A trained model: images of any size in, class numbers out. names: of the classes."""

    def __init__(self, model: Segmenter, card: SegmentationCard) -> None:
        self.model, self.card = model, card
        self.names = card.names
        self.classes = MaskClasses(tuple(card.names), card.void)

    def __call__(self, image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
        """uint8 [h, w]: the class of each pixel. image: a PIL image, a file, or uint8 [h, w, 3].

        Files and PIL images are turned as their EXIF says. Raises UnreadableImageError for a file that is no image.
        """
        read = Path(image).read_bytes() if isinstance(image, str | Path) else image
        pixels = decode_upright(read)[0]
        return segment(self.model, pixels, window=self.card.image_size, short_side=self.card.short_side)


def feature_map(encoder: Encoder, x: Tensor) -> Tensor:
    """The last feature map, or the patches after the last norm, as a map: [B, D, h, w]. x is square."""
    backbone = encoder.backbone
    features = backbone.forward_features(x)
    if features.ndim == 4:
        return encoder.as_map(features)
    tokens = encoder.as_tokens(features)
    if isinstance(getattr(backbone, "fc_norm", None), nn.LayerNorm):  # the only norm of ViTs that pool by the mean
        tokens = backbone.fc_norm(tokens)
    side = round(tokens.shape[1] ** 0.5)
    assert side * side == tokens.shape[1], "a square image has a square of patches"
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _prepare(encoder: Encoder) -> tuple[int, int]:
    """(channels of the feature map, pixels between its positions). What the map does not depend on is frozen."""
    size = encoder.image_size
    try:
        (found,) = freeze_unused(encoder, size, lambda module, x: [feature_map(module, x)])
    except REFUSALS as error:
        raise size_refused(size, encoder.architecture, error) from None
    if hasattr(encoder.backbone, "patch_embed") and size % found.shape[2]:
        patch = size // found.shape[2]
        raise UsageError(f"`image_size` {size} is no multiple of the patches of {encoder.architecture} ({patch} px)")
    return found.shape[1], round(size / found.shape[2])


def _deeplab(width: int, classes: int, cfg: DecoderConfig) -> nn.Sequential:
    """torchvision's DeepLabHead, with the width and dropout as asked.

    The branch that sees the whole picture has no BatchNorm: over one number a picture it cannot be had for a batch of
    one, and depends on the micro-batch more than any other.
    """
    rates = cfg.rates or tuple(96 // cfg.stride * k for k in (1, 2, 3))
    aspp = ASPP(width, rates, cfg.head_width)
    whole: Any = aspp.convs[-1]
    whole[1], whole[2] = nn.Conv2d(width, cfg.head_width, 1), nn.Identity()
    last: Any = aspp.project[-1]
    last.p = cfg.head_dropout
    return nn.Sequential(
        aspp,
        nn.Conv2d(cfg.head_width, cfg.head_width, 3, padding=1, bias=False),
        nn.BatchNorm2d(cfg.head_width),
        nn.ReLU(),
        nn.Conv2d(cfg.head_width, classes, 1),
    )


def open_encoder(
    source: Source, *, image_size: int, stride: int, untrained: bool = False, drop_path: float = 0.0
) -> Encoder:
    """An encoder (see `catlip.load`) for square images of this size, dilated to the stride where that can be.

    untrained: the same architecture with random weights. Raises UsageError for anything else.
    """
    weights = open_weights(source, untrained)

    def build(**geometry: Any) -> Encoder:
        return weights.build(image_size=image_size, drop_path=drop_path, geometry=geometry)

    if weights.architecture.startswith("corenet_vit"):
        return build(stride=8 if stride == 8 else 16)  # it has no stride 32: a finer map does no harm
    try:
        return build(output_stride=stride) if stride < 32 else build()
    except UsageError:
        return build()  # timm cannot dilate this family; the map is enlarged instead


def save_segmenter(out: Path, model: Segmenter, card: SegmentationCard) -> None:
    """Write encoder/, as a folder that plain timm can load, and the head beside it."""
    model.encoder.save(out / ENCODER_FOLDER)
    write_tensors(out / WEIGHTS, {name: value.float() for name, value in model.head.state_dict().items()})
    write_text(out / CARD, json.dumps(asdict(card), indent=2) + "\n")


def load_segmenter(run: Source, device: str = "auto") -> TrainedSegmenter:
    """A trained model: catlip.load_segmenter("runs/seg")("photo.jpg") -> uint8 [h, w], the class of each pixel.

    run: the folder that `catlip segment` wrote, or the Run that it returned. device: auto, cpu, cuda, mps. Raises
    UsageError for a folder that holds no such model, and for a device that is not there.
    """
    folder = Path(origin(run))
    if not (folder / CARD).is_file():
        raise UsageError(f"{folder} holds no segmentation model: {folder / CARD} does not exist")
    try:
        card = SegmentationCard(**read_json(folder / CARD))
        card.void, settings = tuple(card.void), DecoderConfig(**card.head)
        settings.rates = tuple(settings.rates)
    except TypeError as error:
        raise UsageError(f"{folder / CARD} is of another version: {error}") from None
    encoder = open_encoder(str(folder), image_size=card.image_size, stride=settings.stride)
    model = Segmenter(encoder, len(card.names), settings)
    state = read_tensors(folder / WEIGHTS)
    if wrong := misfit(model.head.state_dict(), state):
        raise UsageError(f"{folder / WEIGHTS} does not fit {folder / CARD}: {wrong}")
    model.head.load_state_dict(state)
    return TrainedSegmenter(on_device(model.eval(), device), card)
