"""Mask R-CNN (arXiv 1703.06870) on an encoder's pyramid: boxes, classes and masks of objects.

The detector is torchvision's; what is ours is what it stands on, and that pictures come as the task made them:
already at their size and in the encoder's input space.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from catlip.data.boxes import BoxBatch, unpacked
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.models.pyramid import Pyramid, freeze_lowest, freeze_unused

RATIOS = (0.5, 1.0, 2.0)


@dataclass(kw_only=True, slots=True)
class Boxes:
    """Settings of the detector. The defaults: those of Mask R-CNN."""

    masks: bool = True  # learn masks too; then every box needs one
    channels: int = 256  # of the pyramid and of the mask head
    hidden: int = 1024  # of the box head
    mask_layers: int = 4  # convolutions of the mask head
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels of a side, one for each level, the finest first
    proposals: int = 1000  # regions of a picture that are looked at; twice as many in training
    regions: int = 512  # of them that a training step learns from
    freeze: int = 0  # layers of the encoder that do not learn: the stem is one, then stages or blocks from below
    freeze_norm: bool = True  # BatchNorm of the encoder keeps its statistics; False for encoders without training
    min_score: float = 0.05  # of a detection
    detections: int = 100  # of a picture, at most


class _AsItIs(nn.Module):
    """Stands where torchvision would resize and normalise."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images)), targets

    def postprocess(self, result: Any, sizes: Any, original: Any) -> Any:
        return result


class BoxObjective(nn.Module):
    """forward(batch) -> (sum of the losses, metrics). Its sampled regions weigh the same within a micro-batch."""

    needs_global_batch = False

    def __init__(self, encoder: Encoder, classes: int, cfg: Boxes) -> None:
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

    def train(self, mode: bool = True) -> "BoxObjective":
        super().train(mode)
        if self.cfg.freeze_norm:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, batch: BoxBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.detector(batch.image, targets(batch, self.cfg.masks))
        loss = torch.stack(list(losses.values())).sum()
        names = {
            "loss_classifier": "class",
            "loss_box_reg": "box",
            "loss_mask": "mask",
            "loss_objectness": "object",
            "loss_rpn_box_reg": "anchor",
        }
        return loss, {"loss": loss.detach(), **{names[name]: value.detach() for name, value in losses.items()}}

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[dict[str, Tensor]]:
        """image: float [B, 3, H, W] in the encoder's input space -> for each picture boxes [n, 4] in its pixels,
        labels [n] counted from 1, scores [n], and masks [n, 1, 28, 28] of each box if there are some."""
        assert not self.training
        return self.detector(image)


def targets(batch: BoxBatch, masks: bool) -> list[dict[str, Tensor]]:
    """What torchvision's detectors want to be told; class 0 is the background."""
    size, found = batch.image.shape[-1], []
    for first, last in zip(batch.offsets.tolist(), batch.offsets[1:].tolist(), strict=False):
        target = {"boxes": batch.boxes[first:last], "labels": batch.labels[first:last] + 1}
        if masks:
            target["masks"] = unpacked(batch.masks[first:last], size)
        found.append(target)
    return found
