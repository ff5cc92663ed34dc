"""SigLIP (arXiv 2303.15343): each pair of a picture and a caption of the whole batch, together or not."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from catlip.data.batches import Batch
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import READS, DualEncoder, Side, read_by
from catlip.models.encoder import Encoder
from catlip.models.sentences import Sentences
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context
from catlip.objectives.contrastive import pairwise_sigmoid


@dataclass(kw_only=True, slots=True)
class SigLip:
    """Settings of the objective."""

    name: ClassVar[str] = "siglip"

    embed: int = 512  # length of the vectors that are compared
    text: Side = "tower"  # frozen: sentence embeddings and a linear projection, instead of a text tower
    bias: float = -10.0  # of all pairs at the start: nearly all do not belong together (section 3.2)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({READS[self.text]})

    def build(self, encoder: Encoder, context: Context) -> "SigLipObjective":
        """The objective with its initial weights."""
        return SigLipObjective(encoder, context.reader(self.text), self, context.text)


class SigLipObjective(DualEncoder):
    """Dual encoder with learned temperature and bias. forward(batch) -> (loss, metrics); needs batch.tokens, or
    batch.sentences if the text side is frozen.

    Raises UsageError if the batch of all processes is a single picture: without negatives all vectors would collapse
    into one.
    """

    needs_global_batch = True  # every other caption of the batch is a negative

    def __init__(self, encoder: Encoder, reader: Tokenizer | Sentences, cfg: SigLip, text: TextConfig) -> None:
        """reader: what the loader reads captions with; text: a tower's size."""
        text = replace(text, causal=bool(text.causal))  # bidirectional, unless asked otherwise
        super().__init__(encoder, reader, text, embed=cfg.embed, scale=10.0, bias=cfg.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        scale, bias = self.scale(), self.bias()
        loss = pairwise_sigmoid(self.embed_pooled(pooled), self.embed_captions(read_by(self.text, batch)), scale, bias)
        return loss, {"loss": loss.detach(), "scale": scale.detach(), "bias": bias.detach()}
