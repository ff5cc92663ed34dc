"""Mask R-CNN (arXiv 1703.06870) on an encoder's pyramid: boxes, classes and masks of objects.

The detector is torchvision's; what is ours is what it stands on, and that images come as the task made them: already at
their size and in the encoder's input space.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from catlip.data.boxes import GREY, Placed, place
from catlip.data.crops import Box, decode_part, empty
from catlip.errors import UsageError
from catlip.models.encoder import Encoder, misfit
from catlip.models.model_folders import read_json
from catlip.models.pyramid import Pyramid, freeze_lowest, freeze_unused
from catlip.models.state_dicts import read_tensors
from catlip.models.weights import Source, on_device, open_weights, origin

WEIGHTS, CLASSES = "objective.safetensors", "classes.json"
ENCODER = "detector.backbone.encoder."  # begins the names of the encoder's weights
RATIOS = (0.5, 1.0, 2.0)


@dataclass(kw_only=True, slots=True)
class DetectorConfig:
    """Settings of the detector. The defaults: those of Mask R-CNN."""

    masks: bool = True  # learn masks too; then every box needs one
    channels: int = 256  # of the pyramid and of the mask head
    hidden: int = 1024  # of the box head
    mask_layers: int = 4  # convolutions of the mask head
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels of a side, one for each level, the finest first
    proposals: int = 1000  # regions of an image that are looked at; twice as many in training
    regions: int = 512  # of them that a training step learns from
    freeze: int = 0  # layers of the encoder that do not learn: the stem is one, then stages or blocks from below
    freeze_norm: bool = True  # BatchNorm of the encoder keeps its statistics; False for encoders without training
    min_score: float = 0.05  # of a detection
    detections: int = 100  # of an image, at most


class _AsItIs(nn.Module):
    """Stands where torchvision would resize and normalise."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images)), targets

    def postprocess(self, result: Any, sizes: Any, original: Any) -> Any:
        return result


class Detector(nn.Module):
    """x: float [B, 3, H, W] in the encoder's input space -> what `detect` returns."""

    def __init__(self, encoder: Encoder, classes: int, cfg: DetectorConfig) -> None:
        """Raises UsageError for settings that contradict each other or the encoder."""
        super().__init__()
        self.cfg = cfg
        pyramid = Pyramid(encoder, cfg.channels)
        freeze_lowest(encoder, cfg.freeze)
        freeze_unused(pyramid, encoder.image_size, lambda module, x: list(module(x).values()))
        if len(cfg.anchors) != pyramid.n_levels + 1:
            raise UsageError(
                f"`anchors` names {len(cfg.anchors)} sizes, and the pyramid of {encoder.architecture} has "
                f"{pyramid.n_levels + 1} levels"
            )
        pool = MultiScaleRoIAlign(pyramid.names, output_size=7, sampling_ratio=2)
        sides = tuple((side,) for side in cfg.anchors)
        common: dict[str, Any] = {
            "rpn_anchor_generator": AnchorGenerator(sides, (RATIOS,) * len(sides)),
            "rpn_pre_nms_top_n_train": 2 * cfg.proposals,
            "rpn_post_nms_top_n_train": 2 * cfg.proposals,
            "rpn_pre_nms_top_n_test": cfg.proposals,
            "rpn_post_nms_top_n_test": cfg.proposals,
            "box_roi_pool": pool,
            "box_head": TwoMLPHead(cfg.channels * 49, cfg.hidden),
            "box_predictor": FastRCNNPredictor(cfg.hidden, classes + 1),
            "box_batch_size_per_image": cfg.regions,
            "box_score_thresh": cfg.min_score,
            "box_detections_per_img": cfg.detections,
        }
        if cfg.masks:
            self.detector: Any = MaskRCNN(
                pyramid,
                **common,
                mask_roi_pool=MultiScaleRoIAlign(pyramid.names, output_size=14, sampling_ratio=2),
                mask_head=MaskRCNNHeads(cfg.channels, (cfg.channels,) * cfg.mask_layers, 1),
                mask_predictor=MaskRCNNPredictor(cfg.channels, cfg.channels, classes + 1),
            )
        else:
            self.detector = FasterRCNN(pyramid, **common)
        self.detector.transform = _AsItIs()

    @property
    def encoder(self) -> Encoder:
        return self.detector.backbone.encoder

    def train(self, mode: bool = True) -> "Detector":
        super().train(mode)
        if self.cfg.freeze_norm:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return self.detect(x)

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[dict[str, Tensor]]:
        """image: float [B, 3, H, W] in the encoder's input space -> for each image boxes [n, 4] in its pixels,
        labels [n] counted from 1, scores [n], and masks [n, 1, 28, 28] of each box if there are some."""
        assert not self.training
        return self.detector(image)

    def own_state(self) -> dict[str, Tensor]:
        """The weights of pyramid and heads, without the encoder's."""
        return {name: v for name, v in self.state_dict().items() if not name.startswith(ENCODER)}


@dataclass(frozen=True, slots=True)
class Detection:
    """An object in an image."""

    name: str  # of its class
    score: float  # 0..1
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    mask: np.ndarray | None = None  # bool [h, w] of the image


class TrainedDetector:
    """A trained detector: images of any size in, objects out, the surest first. names: of the classes."""

    def __init__(self, model: Detector, names: list[str], image_size: int) -> None:
        """image_size: pixels of the square canvas that whole images are fitted onto."""
        self.model, self.names, self.image_size = model, names, image_size

    def __call__(self, image: Any, min_score: float = 0.5) -> list[Detection]:
        """image: a file, encoded bytes, a PIL image, or uint8 [h, w, 3].

        Raises UnreadableImageError for a file that is no image.
        """
        image = Path(image).read_bytes() if isinstance(image, str | Path) else image
        canvas = empty(self.image_size).fill_(GREY)
        size, placed = (0, 0), Placed((0, 0, 1, 1), 1, 1)

        def choose(width: int, height: int) -> tuple[Box, Tensor]:
            nonlocal size, placed
            size, placed = (width, height), place(width, height, self.image_size)
            return placed.box, canvas[:, : placed.height, : placed.width]

        decode_part(image, choose)
        device = next(self.model.parameters()).device
        result = self.model.detect(self.model.encoder.normalize(canvas[None].to(device)))[0]
        return [
            Detection(self.names[label - 1], score, box, mask)
            for label, score, box, mask in in_image(result, placed, *size)
            if score >= min_score
        ]


def in_image(
    result: dict[str, Tensor], placed: Placed, width: int, height: int
) -> Iterator[tuple[int, float, tuple[float, float, float, float], np.ndarray | None]]:
    """What `detect` found on a canvas -> (class from 1 on, score, box, bool mask [height, width]) in the image that was
    placed there; boxes that have no area in it are left out. One at a time: a hundred masks of a large photo are
    gigabytes."""
    scale, limits = torch.tensor(placed.scale * 2), torch.tensor([width, height] * 2)
    boxes = torch.minimum((result["boxes"].cpu() / scale).clamp_min(0), limits)
    for row, box in enumerate(boxes):
        left, top, right, bottom = box.tolist()
        if right <= left or bottom <= top:
            continue
        mask = None
        if "masks" in result:
            pasted = paste_masks_in_image(result["masks"][row : row + 1].cpu(), box[None], (height, width))
            mask = (pasted[0, 0] >= 0.5).numpy()
        yield int(result["labels"][row]), float(result["scores"][row]), (left, top, right, bottom), mask


def load_detector(run: Source, device: str = "auto") -> TrainedDetector:
    """A trained detector: catlip.load_detector("runs/det")("photo.jpg") -> its objects.

    run: the folder that `catlip detect` wrote, or the Run that it returned. device: auto, cpu, cuda, mps. Raises
    UsageError for a folder that holds no detector, and for a device that is not there.
    """
    folder = Path(origin(run))
    for file in (CLASSES, WEIGHTS, "config.json"):
        if not (folder / file).is_file():
            raise UsageError(f"{folder} holds no detector: {folder / file} does not exist")
    names = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    record = read_json(folder / "config.json").get("config", {})
    try:
        size, settings = record["image_size"], record["objective"]
        cfg = DetectorConfig(**settings)
        cfg.anchors = tuple(cfg.anchors)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / 'config.json'} does not describe a detector: {error}") from None
    model = Detector(open_weights(str(folder)).build(image_size=size), len(names), cfg)
    state = read_tensors(folder / WEIGHTS)
    if wrong := misfit(model.own_state(), state):
        raise UsageError(f"{folder / WEIGHTS} does not fit {folder / 'config.json'}: {wrong}")
    model.load_state_dict(state, strict=False)
    return TrainedDetector(on_device(model.eval(), device), names, size)
