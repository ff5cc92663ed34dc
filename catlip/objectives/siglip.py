"""SigLIP (arXiv 2303.15343): each pair of a picture and a caption of the whole batch, together or not."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from catlip.data.batches import Batch
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import DualEncoder
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context
from catlip.objectives.contrastive import pairwise_sigmoid


@dataclass(kw_only=True, slots=True)
class SigLip:
    """Settings of the objective."""

    name: ClassVar[str] = "siglip"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})

    embed: int = 512  # length of the vectors that are compared
    bias: float = -10.0  # of all pairs at the start: nearly all do not belong together (section 3.2)

    def build(self, encoder: Encoder, context: Context) -> "SigLipObjective":
        """The objective with its initial weights."""
        assert context.tokenizer is not None
        return SigLipObjective(encoder, context.tokenizer, self, context.text)


class SigLipObjective(DualEncoder):
    """Dual encoder with learned temperature and bias. forward(batch) -> (loss, metrics); needs batch.tokens.

    Raises UsageError if the batch of all processes is a single picture: without negatives all vectors would collapse
    into one.
    """

    needs_global_batch = True  # every other caption of the batch is a negative

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, cfg: SigLip, text: TextConfig) -> None:
        """tokenizer: the one that makes batch.tokens; text: the tower's size."""
        text = replace(text, causal=bool(text.causal))  # bidirectional, unless asked otherwise
        super().__init__(encoder, tokenizer, text, embed=cfg.embed, scale=10.0, bias=cfg.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        assert batch.tokens is not None, "the loader was given no tokenizer"
        scale, bias = self.scale(), self.bias()
        loss = pairwise_sigmoid(self.embed_pooled(pooled), self.embed_captions(batch.tokens), scale, bias)
        return loss, {"loss": loss.detach(), "scale": scale.detach(), "bias": bias.detach()}
