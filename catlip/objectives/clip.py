"""Which caption belongs to which picture: CLIP (arXiv 2103.00020) asks for each picture of the whole batch, SigLIP
(arXiv 2303.15343) for each pair, together or not, and LiT (arXiv 2111.07991) either, of an encoder that stays as it is.

With LiT's text tower an encoder that was trained without one (CatLIP, SuperClass, any of timm's) classifies by class
names and finds pictures by sentences.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from catlip.data.batches import Batch
from catlip.models.dual_encoder import READS, DualEncoder, Side, read_by
from catlip.models.encoder import Encoder
from catlip.objectives.base import Context
from catlip.objectives.contrastive import info_nce, pairwise_sigmoid


@dataclass(kw_only=True, slots=True)
class Clip:
    """Settings of the objective."""

    name: ClassVar[str] = "clip"

    embed: int = 512  # length of the vectors that are compared
    text: Side = "tower"  # frozen: sentence embeddings and a linear projection, instead of a text tower

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({READS[self.text]})

    def build(self, encoder: Encoder, context: Context) -> "DualObjective":
        """The objective with its initial weights."""
        return DualObjective(encoder, context.reader(self.text), context.text, embed=self.embed, scale=1 / 0.07)


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

    def build(self, encoder: Encoder, context: Context) -> "DualObjective":
        """The objective with its initial weights."""
        reader = context.reader(self.text)
        size = replace(context.text, causal=bool(context.text.causal))  # bidirectional, unless asked otherwise
        return DualObjective(encoder, reader, size, embed=self.embed, scale=10.0, bias=self.bias)


@dataclass(kw_only=True, slots=True)
class Align:
    """Settings of the objective."""

    name: ClassVar[str] = "align"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})

    embed: int = 0  # length of the vectors that are compared; 0: the encoder's own, without a projection, as in LiT
    contrast: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's loss (LiT) or SigLIP's (SigLiT)

    def build(self, encoder: Encoder, context: Context) -> "DualObjective":
        """The objective with its initial weights."""
        scale, bias = (10.0, -10.0) if self.contrast == "sigmoid" else (1 / 0.07, None)
        return DualObjective(encoder, context.reader("tower"), context.text, embed=self.embed, scale=scale, bias=bias)


class DualObjective(DualEncoder):
    """Dual encoder with a learned temperature, and with a learned bias if each pair is asked about.

    forward(batch) -> (loss, metrics); needs batch.tokens, or batch.sentences if the text side is frozen. Raises
    UsageError if the batch of all processes is a single picture: without negatives all vectors would collapse into one.
    """

    needs_global_batch = True  # every other caption of the batch is a negative

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        both = self.embed_pooled(pooled), self.embed_captions(read_by(self.text, batch))
        learned = {"scale": self.scale()}
        if self.logit_bias is None:
            loss = info_nce(*both, **learned)
        else:
            learned["bias"] = self.bias()
            loss = pairwise_sigmoid(*both, **learned)
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in learned.items()}}
