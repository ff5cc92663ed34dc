"""A weighted sum of objectives that share the encoder, which sees each picture once.

CLIP with sub-words is SuperCLIP (arXiv 2512.14480, both weights 1); SigLIP with synsets is its sibling here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.errors import UsageError


@dataclass(kw_only=True, slots=True)
class Hybrid:
    """Settings of the objective."""

    parts: tuple[str, ...] = ("clip", "subwords")  # names of objectives, with their default settings
    weights: tuple[float, ...] = (1.0, 1.0)  # of the parts' losses, in their order


class HybridObjective(nn.Module):
    """forward(batch) -> (loss, metrics); metrics also has each part's own, as NAME.METRIC."""

    def __init__(self, parts: Mapping[str, Any], cfg: Hybrid) -> None:
        """parts: objectives by name, made with the same encoder; each has loss(pooled, batch) -> (loss, metrics).

        Raises UsageError if there are not as many weights.
        """
        super().__init__()
        if len(parts) != len(cfg.weights) or not parts:
            raise UsageError(f"`weights` {cfg.weights}: there are {len(parts)} parts ({', '.join(parts)})")
        self.encoder = next(iter(parts.values())).encoder
        self.parts = nn.ModuleDict(parts)
        self.weights = cfg.weights
        for part in parts.values():
            assert part.encoder is self.encoder, "the parts do not share the encoder"
            # Kept by the part as a plain attribute: registered there too, it would be saved and averaged once a part.
            del part.encoder
            object.__setattr__(part, "encoder", self.encoder)

    @property
    def needs_global_batch(self) -> bool:
        return any(part.needs_global_batch for part in self.parts.values())

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
