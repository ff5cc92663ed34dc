"""A linear probe in closed form: ridge regression of the labels on frozen features, for sets of several labels an image
or one. Seconds where a support vector machine a class takes minutes, so one encoder can be judged many times.

For a yes-no label the solution is Fisher's linear discriminant up to its length (Duda, Hart and Stork 2000, section
5.8.2), which is all that a ranking needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from catlip.evaluation.multilabel import average_precision

PENALTIES = tuple(10.0 ** (e / 2) for e in range(-5, 5))  # as a share of the variance of a standardised feature
HELD_OUT = 5  # one in so many training images chooses the penalty
RESAMPLES = 200  # of the test images, for the standard error of a difference


@dataclass(frozen=True, slots=True)
class Ridge:
    """What was learned. scores(x) = (x - mean) / std @ weight, for x float [N, D]."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    weight: Tensor  # [D, V]
    penalty: float

    def scores(self, x: Tensor) -> Tensor:
        """float32 [N, V], comparable among the images of a class."""
        return (((x - self.mean) / self.std).double() @ self.weight).float()


def fit_ridge(x: Tensor, y: Tensor, *, single: bool = False, seed: int = 0) -> Ridge:
    """x float [N, D], y bool [N, V]. The penalty is the one that is best on a fifth of the images, by mean average
    precision, or with `single` by accuracy."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, used = order[: len(x) // HELD_OUT], order[len(x) // HELD_OUT :]
    mean, std = x.mean(0), spread(x)
    z, target = ((x - mean) / std).double(), y.double()
    parts = _Solver(z[used], target[used])
    measure = accuracy if single else mean_ap
    worth = [measure((z[held] @ parts.weight(penalty)).float(), y[held]) for penalty in PENALTIES]
    best = PENALTIES[max(range(len(worth)), key=worth.__getitem__)]
    return Ridge(mean, std, _Solver(z, target).weight(best), best)


def spread(x: Tensor) -> Tensor:
    """Standard deviation of each feature, [D]; at least a hundredth of their mean, so that a feature that hardly ever
    fires is not made loud."""
    std = x.std(0, correction=0)
    return std.clamp_min(0.01 * std.mean().item()).clamp_min(1e-12)


class _Solver:
    """One eigendecomposition serves all penalties."""

    def __init__(self, z: Tensor, y: Tensor) -> None:
        z = z - z.mean(0)
        self.values, self.vectors = torch.linalg.eigh(z.T @ z / len(z))
        self.right = self.vectors.T @ (z.T @ (y - y.mean(0)) / len(z))

    def weight(self, penalty: float) -> Tensor:
        return self.vectors @ (self.right / (self.values.clamp_min(0) + penalty)[:, None])


def mean_ap(scores: Tensor, positive: Tensor) -> float:
    """Mean average precision in percent over the classes that occur; 0 if none does."""
    return 100 * average_precision(scores, positive).nanmean().nan_to_num(0.0).item()


def accuracy(scores: Tensor, positive: Tensor) -> float:
    """Percent of the images whose best-scored class is theirs; positive [N, V] has one a row."""
    return 100 * positive.gather(1, scores.argmax(1, keepdim=True)).float().mean().item()


def cross_validated(x: Tensor, y: Tensor, *, single: bool, folds: int = HELD_OUT, seed: int = 0) -> float:
    """Accuracy (`single`) or mean average precision in percent, each image scored by a probe that has not seen it."""
    fold = torch.arange(len(x)) % folds
    fold = fold[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    scores = torch.zeros(y.shape)
    for k in range(folds):
        found = fit_ridge(x[fold != k], y[fold != k], single=single, seed=seed).scores(x[fold == k])
        scores[fold == k] = found
    return accuracy(scores, y) if single else mean_ap(scores, y)


def paired_error(before: Tensor, after: Tensor, positive: Tensor, *, seed: int = 0) -> float:
    """Standard error, in points, of the difference of two mean average precisions on the same images, from bootstrap
    samples of the images. Scores float [N, V], positive bool [N, V]."""
    random, differences = torch.Generator().manual_seed(seed), list[float]()
    some = positive.any(0)
    ranked = [_ranked(scores[:, some], positive[:, some]) for scores in (before, after)]
    for _ in range(RESAMPLES):
        rows = torch.randint(len(positive), (len(positive),), generator=random)
        often = rows.bincount(minlength=len(positive)).float()
        low, high = (_resampled(order, hit, often) for order, hit in ranked)
        differences.append(100 * (high - low).nanmean().item())
    return torch.tensor(differences).std().item()


def _ranked(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of the images from the best score to the worst, which of them are positives), both [N, V]."""
    order = scores.argsort(0, descending=True)
    return order, positive.gather(0, order)


def _resampled(order: Tensor, hit: Tensor, often: Tensor) -> Tensor:
    """Average precision [V] where image n is there often[n] times, equal ones in a row; NaN without positives."""
    times = often[order]
    found = times * hit
    return (found * found.cumsum(0) / times.cumsum(0).clamp_min(1)).sum(0) / found.sum(0)
