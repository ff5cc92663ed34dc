"""LiT (arXiv 2111.07991): a text tower learns to describe what a frozen encoder sees.

So an encoder that was trained without a text tower (CatLIP, SuperClass, any of timm's) classifies by class names and
finds pictures by sentences. The encoder's weights and running statistics do not change.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from catlip.data.batches import Batch
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import DualEncoder, read_by
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.objectives.contrastive import info_nce, pairwise_sigmoid


@dataclass(kw_only=True, slots=True)
class Align:
    """Settings of the objective."""

    embed: int = 0  # length of the vectors that are compared; 0: the encoder's own, without a projection, as in LiT
    contrast: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's loss (LiT) or SigLIP's (SigLiT)


class AlignObjective(DualEncoder):
    """Dual encoder whose encoder is frozen. forward(batch) -> (loss, metrics); needs batch.tokens.

    Raises UsageError if the batch of all processes is a single picture.
    """

    needs_global_batch = True  # every other caption of the batch is a negative

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, cfg: Align, text: TextConfig) -> None:
        """tokenizer: the one that makes batch.tokens."""
        scale, bias = (10.0, -10.0) if cfg.contrast == "sigmoid" else (1 / 0.07, None)
        super().__init__(encoder, tokenizer, text, embed=cfg.embed, scale=scale, bias=bias)
        encoder.requires_grad_(False)
        encoder.eval()

    def train(self, mode: bool = True) -> "AlignObjective":
        super().train(mode)
        self.encoder.eval()  # or batch norm would go on counting, and drop path would make its output noisy
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            pooled = self.encoder.pooled(batch.image)
        return self.loss(pooled, batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        pictures, captions, scale = (
            self.embed_pooled(pooled),
            self.embed_captions(read_by(self.text, batch)),
            self.scale(),
        )
        if self.logit_bias is None:
            loss = info_nce(pictures, captions, scale)
        else:
            loss = pairwise_sigmoid(pictures, captions, scale, self.bias())
        return loss, {"loss": loss.detach(), "scale": scale.detach()}
