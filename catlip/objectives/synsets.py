"""CatLIP (arXiv 2404.15653): name the synsets of the caption's nouns, as multi-label classification.

Binary cross-entropy of a picture, summed over the V classes, is sum_v softplus(z_v) - sum_{v in labels} z_v: the
dense target of the official code (195 kB a picture at 24,320 classes) is never made, and neither are the logits.

The bias starts at each class's log-odds. The official code starts at 0, that is at "every picture shows half of all
nouns": a loss of 17,036 and a gradient norm of 2,732 on 24,320 classes, clipped 2,700-fold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.models.encoder import Encoder
from catlip.objectives.base import Context
from catlip.objectives.frequency import DocumentFrequency
from catlip.objectives.linear import linear_asymmetric, linear_bce, linear_softmax

LOSSES = {"bce": linear_bce, "softmax": linear_softmax, "asymmetric": linear_asymmetric}


@dataclass(kw_only=True, slots=True)
class Synsets:
    """Settings of the objective."""

    name: ClassVar[str] = "synsets"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    loss: Literal["bce", "softmax", "asymmetric"] = "bce"  # softmax: each label gets its share of the target
    idf: bool = False  # rare labels weigh more, by their inverse document frequency, counted while training
    prior_bias: bool = True  # start the bias at the log-odds of each class's frequency; softmax: at its logarithm

    def build(self, encoder: Encoder, context: Context) -> "SynsetObjective":
        """The objective with its initial weights."""
        vocabulary = context.vocabulary
        return SynsetObjective(encoder, vocabulary.counts, vocabulary.samples, self, vocabulary.weights)


class SynsetObjective(nn.Module):
    """Encoder and linear head. forward(batch) -> (loss, metrics)."""

    needs_global_batch = False  # a picture's loss needs no other picture: accumulation and uneven shares are exact

    def __init__(
        self, encoder: Encoder, counts: list[int], samples: int, cfg: Synsets, weights: Sequence[float] = ()
    ) -> None:
        """counts: pictures that have each class's label, of `samples` pictures. weights: of its own term, for idf to
        multiply; empty: 1 for all."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, len(counts))
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.cfg = cfg
        if cfg.prior_bias:
            odds = log_odds(counts, samples)
            self.head.bias.data = odds if cfg.loss != "softmax" else torch.tensor(counts).add(1).float().log()
        self.met = DocumentFrequency(len(counts)) if cfg.idf else None
        self.weights: Tensor | None
        self.register_buffer("weights", torch.tensor(weights) if weights else None, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """batch.image: float [B, 3, H, W] in the encoder's input space."""
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        weights = self.weights
        if self.met is not None:
            if self.training:
                self.met.update(batch.labels, len(pooled))
            # A softmax shares the target out, so only the weights' ratios matter to it.
            idf = self.met.idf() if self.cfg.loss == "softmax" else self.met.evened_idf()
            weights = idf if weights is None else idf * weights
        loss = LOSSES[self.cfg.loss](
            pooled.float(), self.head.weight, self.head.bias, batch.labels, batch.offsets, weights
        )
        return loss, {"loss": loss.detach()}

    def after_step(self) -> None:
        """Count the step's labels."""
        if self.met is not None:
            self.met.after_step()

    @property
    def classifier(self) -> nn.Linear:
        """A row a class of the vocabulary."""
        return self.head


def log_odds(counts: list[int], samples: int) -> Tensor:
    """log(p / (1 - p)) of each class, with one picture added on either side so that no class is certain."""
    return torch.tensor([math.log((n + 1) / (max(samples - n, 0) + 1)) for n in counts])
