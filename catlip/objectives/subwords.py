"""SuperClass (arXiv 2411.03313): name the tokens of the raw caption, as classification; no text tower, no word list.

The label of a picture is the set of its caption's tokens. Each has a share of the target by how rare it is (inverse
document frequency, counted while training); softmax over all tokens. The marks and the padding are no labels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.labels.tokenizer import Tokenizer
from catlip.models.encoder import Encoder
from catlip.objectives.base import Context
from catlip.objectives.frequency import DocumentFrequency
from catlip.objectives.linear import linear_softmax


@dataclass(kw_only=True, slots=True)
class Subwords:
    """Settings of the objective."""

    name: ClassVar[str] = "subwords"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})

    idf: bool = True  # rare tokens have a larger share of the target; false: equal shares
    mlp_head: bool = True  # a residual MLP before the linear layer, as released; false: linear, as in SuperCLIP

    def build(self, encoder: Encoder, context: Context) -> "SubwordObjective":
        """The objective with its initial weights."""
        assert context.tokenizer is not None
        return SubwordObjective(encoder, context.tokenizer, self)


class SubwordObjective(nn.Module):
    """Encoder and head. forward(batch) -> (loss, metrics); needs batch.tokens.

    after_step() belongs after every step of the optimiser, on all processes: without it nothing is ever counted. A
    picture with an empty caption, or whose tokens were all in every caption so far, contributes no gradient.
    """

    needs_global_batch = False  # a picture's loss needs no other picture of its step

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, cfg: Subwords) -> None:
        """tokenizer: the one that makes batch.tokens."""
        super().__init__()
        self.encoder = encoder
        self.marks = tokenizer.bos  # from here on ids are no labels
        self.head = _Head(encoder.width, tokenizer.size, cfg.mlp_head)
        self.met = DocumentFrequency(tokenizer.size) if cfg.idf else None

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        assert batch.tokens is not None, "the loader was given no tokenizer"
        labels, offsets = bag_of_tokens(batch.tokens, self.marks)
        if self.met is not None and self.training:
            self.met.update(labels, len(pooled))
        weights = self.met.idf() if self.met is not None else None
        last = self.head.classifier
        loss = linear_softmax(self.head(pooled), last.weight, last.bias, labels, offsets, weights)
        return loss, {"loss": loss.detach()}

    def after_step(self) -> None:
        """Count the step's captions."""
        if self.met is not None:
            self.met.after_step()


class _Head(nn.Module):
    def __init__(self, width: int, classes: int, mlp: bool) -> None:
        super().__init__()
        layers = [nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        self.mlp = nn.Sequential(*layers) if mlp else None
        self.norm = nn.LayerNorm(width) if mlp else nn.Identity()
        self.classifier = nn.Linear(width, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What the classifier reads, [B, D]. Its logits are never made: see linear.py."""
        return self.norm(x + self.mlp(x) if self.mlp is not None else x)


def bag_of_tokens(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sparse labels of captions: int64 [sum L] and [B + 1]. tokens [B, T]; those from `size` on and 0 are dropped."""
    ordered = tokens.sort(dim=1).values
    kept = (ordered > 0) & (ordered < size)
    kept[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    return ordered[kept], F.pad(kept.sum(1).cumsum(0), (1, 0))
