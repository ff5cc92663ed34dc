"""Text targets: predict what a frozen sentence encoder says of the captions, by one linear layer.

The target of a picture is the sentence embedding of its captions, centred and whitened (models/sentences.py). The
encoder ran over the captions beforehand, so a step costs no text tower, and a picture needs no other one. As a teacher
beside another objective this is TextTeacher's idea; the balance of the two is `Hybrid.balance`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.batches import Batch
from catlip.models.dual_encoder import DualEncoder, read_by
from catlip.models.encoder import Encoder
from catlip.models.sentences import Sentences
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context


@dataclass(kw_only=True, slots=True)
class Text:
    """Settings of the objective."""

    name: ClassVar[str] = "text"
    needs: ClassVar[frozenset[str]] = frozenset({"sentences"})

    distance: Literal["cosine", "smooth_l1"] = "cosine"  # 1 - cosine, or the mean over the target's components

    def build(self, encoder: Encoder, context: Context) -> "TextObjective":
        """The objective with its initial weights."""
        assert context.sentences is not None
        return TextObjective(encoder, context.sentences, self)


class TextObjective(DualEncoder):
    """Encoder and linear head. forward(batch) -> (loss, metrics); needs batch.sentences.

    A picture without captions contributes no gradient. For zero-shot and retrieval it is a dual encoder.
    """

    needs_global_batch = False  # a picture's loss needs no other picture

    def __init__(self, encoder: Encoder, sentences: Sentences, cfg: Text) -> None:
        """sentences: what makes batch.sentences, with the whitening."""
        super().__init__(encoder, sentences, TextConfig(), embed=0, scale=1.0)
        self.logit_scale.requires_grad_(False)  # nothing is compared but a picture with its own captions
        self.cfg = cfg

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        target = self.text(read_by(self.text, batch))
        found = self.image_projection(pooled).float()
        with torch.autocast(found.device.type, enabled=False):
            if self.cfg.distance == "cosine":
                each = 1 - F.cosine_similarity(found, target, dim=1)
            else:
                each = F.smooth_l1_loss(found, target, reduction="none").mean(1)
        loss = (each * target.any(1)).mean()
        return loss, {"loss": loss.detach()}
