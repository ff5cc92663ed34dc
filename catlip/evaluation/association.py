"""How much nearer one group of pictures is to a concept than another, with intervals, and what removing a direction
changes.

The measure is WEAT's (Caliskan et al. 2017, arXiv 1608.07187) with pictures as one side, as CLIP-Lite (arXiv
2112.07133) uses it; the direction and its removal are Bolukbasi et al.'s (2016, arXiv 1607.06520, section 5).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BOOTSTRAPS = 1000
PERMUTATIONS = 2000


@dataclass(frozen=True, slots=True)
class Association:
    """Of one target: mean similarity of group A less that of group B, in units of the deviation over both."""

    effect: float
    low: float  # 95 % interval, bootstrap over pictures
    high: float
    p: float  # permutation test of no difference, two-sided


def concept_direction(pairs: Tensor) -> tuple[Tensor, float]:
    """(unit vector [D] from side B to side A, share of the pairs' variance along it). pairs [K, 2, D]: A, B.

    The first principal component of the vectors about their pair's middle. Its sign: A is positive on average.
    """
    differences = (pairs[:, 0] - pairs[:, 1]).double()
    _, values, axes = torch.linalg.svd(differences, full_matrices=False)
    axis = axes[0]
    axis = axis if (differences @ axis).sum() >= 0 else -axis
    share = (values[0] ** 2 / values.square().sum().clamp_min(1e-24)).item()
    return axis.float(), share


def without(vectors: Tensor, direction: Tensor) -> Tensor:
    """Vectors [N, D] less their part along a unit vector [D], of unit length again."""
    return F.normalize(vectors - (vectors @ direction)[:, None] * direction, dim=1)


def association(group_a: Tensor, group_b: Tensor, seed: int = 0) -> Association:
    """group_a [A], group_b [B]: similarities of two groups of pictures with one target.

    All differences of a target are in units of the deviation over both groups (population, as in WEAT), which is
    drawn anew with every bootstrap. Zero throughout if no picture differs from another.
    """
    a, b = group_a.double(), group_b.double()
    generator = torch.Generator().manual_seed(seed)
    observed = _effect(a[None], b[None]).item()
    drawn_a = a[torch.randint(len(a), (BOOTSTRAPS, len(a)), generator=generator)]
    drawn_b = b[torch.randint(len(b), (BOOTSTRAPS, len(b)), generator=generator)]
    spread = _effect(drawn_a, drawn_b)
    both = torch.cat([a, b])
    order = torch.rand(PERMUTATIONS, len(both), generator=generator).argsort(1)
    shuffled = both[order]
    chance = _effect(shuffled[:, : len(a)], shuffled[:, len(a) :])
    extreme = chance.abs().ge(abs(observed) - 1e-12).sum().item()
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Association(observed, low, high, (extreme + 1) / (PERMUTATIONS + 1))


def _effect(a: Tensor, b: Tensor) -> Tensor:
    """[R, A], [R, B] -> [R]."""
    deviation = torch.cat([a, b], dim=1).std(1, correction=0)
    difference = a.mean(1) - b.mean(1)
    return torch.where(deviation > 1e-6, difference / deviation.clamp_min(1e-6), torch.zeros_like(difference))
