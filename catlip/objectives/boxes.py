"""Detection: the losses of Mask R-CNN (arXiv 1703.06870), regions, boxes, classes and masks alike."""

import torch
from torch import Tensor

from catlip.data.boxes import BoxBatch, unpacked
from catlip.models.detector import Detector


class BoxObjective(Detector):
    """forward(batch) -> (sum of the losses, metrics). Its sampled regions weigh the same within a micro-batch."""

    needs_global_batch = False

    def forward(self, batch: BoxBatch) -> tuple[Tensor, dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
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


def targets(batch: BoxBatch, masks: bool) -> list[dict[str, Tensor]]:
    """What torchvision's detectors want to be told; class 0 is the background."""
    size, found = batch.image.shape[-1], []
    for first, last in zip(batch.offsets.tolist(), batch.offsets[1:].tolist(), strict=False):
        target = {"boxes": batch.boxes[first:last], "labels": batch.labels[first:last] + 1}
        if masks:
            target["masks"] = unpacked(batch.masks[first:last], size)
        found.append(target)
    return found
