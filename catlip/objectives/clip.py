"""CLIP (arXiv 2103.00020): which caption of the whole batch belongs to which picture."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from catlip.data.batches import Batch
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import READS, DualEncoder, Side, read_by
from catlip.models.encoder import Encoder
from catlip.models.sentences import Sentences
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context
from catlip.objectives.contrastive import info_nce


@dataclass(kw_only=True, slots=True)
class Clip:
    """Settings of the objective."""

    name: ClassVar[str] = "clip"

    embed: int = 512  # length of the vectors that are compared
    text: Side = "tower"  # frozen: sentence embeddings and a linear projection, instead of a text tower

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({READS[self.text]})

    def build(self, encoder: Encoder, context: Context) -> "ClipObjective":
        """The objective with its initial weights."""
        return ClipObjective(encoder, context.reader(self.text), self, context.text)


class ClipObjective(DualEncoder):
    """Dual encoder with a learned temperature. forward(batch) -> (loss, metrics); needs batch.tokens, or
    batch.sentences if the text side is frozen.

    Raises UsageError if the batch of all processes is a single picture.
    """

    needs_global_batch = True  # every other caption of the batch is a negative

    def __init__(self, encoder: Encoder, reader: Tokenizer | Sentences, cfg: Clip, text: TextConfig) -> None:
        """reader: what the loader reads captions with; text: a tower's size."""
        super().__init__(encoder, reader, text, embed=cfg.embed, scale=1 / 0.07)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        scale = self.scale()
        loss = info_nce(self.embed_pooled(pooled), self.embed_captions(read_by(self.text, batch)), scale)
        return loss, {"loss": loss.detach(), "scale": scale.detach()}
