"""Semantic segmentation: cross-entropy of every pixel that has a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.batches import Batch
from catlip.data.mask_classes import VOID
from catlip.data.maskbatches import MaskBatch
from catlip.models.segmenter import Segmenter


class MaskObjective(Segmenter):
    """The sum over all pixels that are not void, divided by all pixels, void or not.

    The usual mean over valid pixels has a denominator that each process and each micro-batch counts for itself, so
    that a pixel weighs more where others are void. With a constant one every pixel of the data weighs the same, the
    gradient is the same however a batch is divided, and a batch of nothing but void is 0, not 0 / 0. The loss is
    smaller by the share of void, which Adam's step does not see.
    """

    needs_global_batch = False

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(batch, MaskBatch)
        logits, mask = self.logits(batch.image), batch.mask.long()
        loss = F.cross_entropy(logits, mask, ignore_index=VOID, reduction="sum") / mask.numel()
        with torch.no_grad():
            valid = mask != VOID
            right = (logits.argmax(1) == mask).sum() / valid.sum().clamp_min(1)  # void is never predicted
        return loss, {"loss": loss.detach(), "pixel_accuracy": 100 * right, "valid": valid.float().mean()}
