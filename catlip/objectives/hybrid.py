"""A weighted sum of objectives that share the encoder, which sees each image once.

CLIP with sub-words is SuperCLIP (arXiv 2512.14480, both weights 1); SigLIP with synsets is its sibling here.

Losses of different kinds differ a hundredfold in how hard they pull, and the ratio changes while they fall. So weights
may also be shares of the first part's pull: of the norm of its gradient at the pooled features, the last place that
all parts have in common. Norms are those of the step before, over all pictures of the step, so that the weights are the
same for all of a step's pictures, on however many processes and in however many micro-batches they are.
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
from catlip.objectives import gather
from catlip.objectives.base import Context, build_objective, name_of, needs_of


@dataclass(kw_only=True, slots=True)
class Hybrid:
    """Settings of the objective."""

    parts: tuple[Any, ...]  # configs, or classes of one's own
    weights: tuple[float, ...] = ()  # of the parts' losses, in their order; empty: 1 each
    balance: bool = False  # weights are of the gradients' norms at the pooled features, which are made alike

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
        return HybridObjective(parts, self.weights or (1.0,) * len(parts), self.balance)


class HybridObjective(nn.Module):
    """forward(batch) -> (loss, metrics); metrics also has each part's own, as NAME.METRIC.

    With balance each part's head learns from its own loss as it is, and what the part wants of the encoder is scaled;
    NAME.weight in the metrics is the factor. after_step() then belongs after every step of the optimiser.
    """

    def __init__(self, parts: Mapping[str, Any], weights: Sequence[float], balance: bool = False) -> None:
        """parts: objectives by name, made with the same encoder; each has loss(pooled, batch) -> (loss, metrics).

        Raises UsageError if there are not as many weights, and for a balance against a first weight of 0.
        """
        super().__init__()
        if len(parts) != len(weights) or not parts:
            raise UsageError(f"`weights` {tuple(weights)}: there are {len(parts)} parts ({', '.join(parts)})")
        self.encoder = next(iter(parts.values())).encoder
        self.parts = nn.ModuleDict(parts)
        self.weights, self.balance = tuple(weights), balance
        if balance:
            if not weights[0] > 0:
                raise UsageError(
                    f"`weights` {self.weights}: with `balance` the first one is what the others are shares of"
                )
            self.norms: Tensor  # of the parts' gradients in the step before, relative to the first one's; 0: unknown
            self.squares: Tensor  # of this step's, on this process so far
            self.register_buffer("norms", torch.zeros(len(parts)))
            self.register_buffer("squares", torch.zeros(len(parts)), persistent=False)
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
        factors = self.factors() if self.balance else None
        for i, (name, part) in enumerate(self.parts.items()):
            mine, weight = pooled, self.weights[i]
            if factors is not None:
                mine = _Scaled.apply(pooled, factors[i], self.squares[i]) if torch.is_grad_enabled() else pooled
                weight, metrics[f"{name}.weight"] = 1.0, factors[i]
            loss, of_part = part.loss(mine, batch)  # pyright: ignore[reportCallIssue]
            total = total + weight * loss
            metrics |= {f"{name}.{key}": value for key, value in of_part.items()}
        return total, {"loss": total.detach(), **metrics}

    def factors(self) -> Tensor:
        """What each part's gradient at the pooled features is multiplied with, [parts]: what gives it its share of the
        first one's norm. Where a norm is not known yet, the weight."""
        weights = torch.tensor(self.weights, device=self.norms.device)
        return torch.where(self.norms > 0, weights / self.norms.clamp_min(1e-30), weights)

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn the norms of the step of the optimiser that is over, and tell the parts that want to know."""
        if self.balance:
            found = gather.all_sum(self.squares).sqrt()
            found = found / found[0]
            # A step in fp16 may overflow, and then nothing was measured.
            self.norms.copy_(torch.where(found.isfinite().all(), found, self.norms))
            self.squares.zero_()
        for part in self.parts.values():
            if hasattr(part, "after_step"):
                part.after_step()  # pyright: ignore[reportCallIssue]

    def save(self, out: Path) -> None:
        """What the parts have to save."""
        for part in self.parts.values():
            if hasattr(part, "save"):
                part.save(out)  # pyright: ignore[reportCallIssue]


class _Scaled(torch.autograd.Function):
    """The pooled features as they are; their gradient is measured, then multiplied."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, factor: Tensor, squares: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.factor, ctx.squares = factor, squares  # the latter is written to, so it is not saved for backward
        return pooled.view_as(pooled)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.squares.add_(grads[0].float().square().sum())
        return grads[0] * ctx.factor.to(grads[0].dtype), None, None
