"""A weighted sum of objectives that share the encoder, which sees each image once.

CLIP with sub-words is SuperCLIP (arXiv 2512.14480, both weights 1); SigLIP with synsets is its sibling here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.objectives.base import Context, build_objective, name_of, needs_of


@dataclass(kw_only=True, slots=True)
class Hybrid:
    """Settings of the objective."""

    parts: tuple[Any, ...]  # configs, or classes of one's own
    weights: tuple[float, ...] = ()  # of the parts' losses, in their order; empty: 1 each

    @property
    def name(self) -> str:
        return "+".join(map(name_of, self.parts))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*map(needs_of, self.parts))

    def build(self, encoder: Encoder, context: Context) -> "HybridObjective":
        """The objective with its initial weights. Raises UsageError for a part that is named twice."""
        names = [name_of(part) for part in self.parts]
        if len(set(names)) < len(names):
            raise UsageError(f"`objective` {self.name}: each part can be there once")
        parts = {n: build_objective(part, encoder, context) for n, part in zip(names, self.parts, strict=True)}
        return HybridObjective(parts, self.weights or (1.0,) * len(parts))


class HybridObjective(nn.Module):
    """forward(batch) -> (loss, metrics); metrics also has each part's own, as NAME.METRIC."""

    def __init__(self, parts: Mapping[str, Any], weights: Sequence[float]) -> None:
        """parts: objectives by name, made with the same encoder; each has loss(pooled, batch) -> (loss, metrics).

        Raises UsageError if there are not as many weights.
        """
        super().__init__()
        if len(parts) != len(weights) or not parts:
            raise UsageError(f"`weights` {tuple(weights)}: there are {len(parts)} parts ({', '.join(parts)})")
        self.encoder = next(iter(parts.values())).encoder
        self.parts = nn.ModuleDict(parts)
        self.weights = tuple(weights)
        for part in parts.values():
            assert part.encoder is self.encoder, "the parts do not share the encoder"
            # Kept by the part as a plain attribute: registered there too, it would be saved and averaged once a part.
            del part.encoder
            object.__setattr__(part, "encoder", self.encoder)

    @property
    def needs_global_batch(self) -> bool:
        return any(getattr(part, "needs_global_batch", False) for part in self.parts.values())

    @property
    def classifier(self) -> nn.Linear | None:
        """Of the first part that has one."""
        found = (getattr(part, "classifier", None) for part in self.parts.values())
        return next((each for each in found if each is not None), None)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        total, metrics = pooled.new_zeros((), dtype=torch.float32), {}
        for weight, (name, part) in zip(self.weights, self.parts.items(), strict=True):
            loss, of_part = part.loss(pooled, batch)  # pyright: ignore[reportCallIssue]
            total = total + weight * loss
            metrics |= {f"{name}.{key}": value for key, value in of_part.items()}
        return total, {"loss": total.detach(), **metrics}

    def after_step(self) -> None:
        """Tell those parts that want to know that a step of the optimiser is over."""
        for part in self.parts.values():
            if hasattr(part, "after_step"):
                part.after_step()  # pyright: ignore[reportCallIssue]

    def save(self, out: Path) -> None:
        """What the parts have to save."""
        for part in self.parts.values():
            if hasattr(part, "save"):
                part.save(out)  # pyright: ignore[reportCallIssue]
