"""A linear probe and kNN evaluation of frozen features.

The probe is logistic regression: exact, a block of logits at a time, with a penalty that pulls to a prior.

What Transfer Init means here. The loss is convex: trained to the end, the start is forgotten. So the penalty pulls
towards the transferred rows W0 instead of towards zero, which is the same as starting gradient descent at W0 and
stopping early, without its learning rate and number of steps to choose. Measured (CIFAR-10, resnet10t after Flickr8k,
five subsets, the best of eight penalties for each, standardised over all training images, the rows of zeroshot's
rule): with 1 image a class 16.2 % towards zero and 20.2 % towards W0, with 5 images 22.2 and 23.2, with 25 29.7 and
29.8, with 50 both 32.6; the rows alone 20.1. docs/probe.md has what the verb itself finds.

There is no mini-batch path: a set of N features fits in memory where its images did (ImageNet with ViT-B: 3.9 GB),
and all that grows with N times the number of classes, the logits and their gradient, is made a block at a time. So
large sets have the same exact optimum as small ones, and no learning rate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Strengths of the ridge on the probe's weights: a grid wide enough that its ends never win.
PENALTIES = tuple(10.0**e for e in (-5, -4, -3, -2.5, -2, -1.5, -1, 0))
STRONG = (10.0**0.5, 10.0)  # beside them, where there is a prior
FEW = tuple(10.0**e for e in (-3, -2, -1, -0.5, 0, 0.5, 1))  # where folds choose
BELIEFS = (1.0, 0.5, 0.0)  # shares of a prior that folds choose among
BLOCK = 2**24  # logits at a time, 64 MiB


def fit_logistic(
    x: Tensor,
    y: Tensor,
    penalty: float,
    start: Tensor | None = None,
    *,
    prior: Tensor | None = None,
    classes: int = 0,
    block: int = BLOCK,
) -> Tensor:
    """Minimise mean cross-entropy + penalty / 2 * |W - W0|^2 by L-BFGS. x [N, D] -> [D + 1, C], the last row the bias.

    prior [D + 1, C]: W0, zero without; also the start unless there is one. Its last row is only a start: biases are
    not penalised. classes: C, if `y` may lack the last ones. block: logits held at a time.
    """
    n_classes = classes or int(y.max()) + 1
    centre = x.new_zeros(x.shape[1] + 1, n_classes) if prior is None else prior
    weights = (centre if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")
    rows = max(1, block // n_classes)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = penalty / 2 * (weights[:-1] - centre[:-1]).square().sum()
        value.backward()
        for part, wanted in zip(x.split(rows), y.split(rows), strict=True):
            logits = part @ weights[:-1] + weights[-1]
            share = F.cross_entropy(logits, wanted) * (len(part) / len(x))
            share.backward()
            value = value.detach() + share.detach()
        return value

    optimizer.step(loss)
    return weights.detach()


def linear_probe(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    seed: int = 0,
    prior: tuple[Tensor, Tensor] | None = None,
    folds: int = 1,
) -> tuple[Tensor, float]:
    """(bool [M]: which images of the test set are right, penalty): logistic regression on standardised features.

    The penalty is chosen on a fifth of the training set by accuracy, or by cross-validation in so many folds. Folds are
    for few images, whose accuracy is a coarse number, so there the likelihood chooses, and with the penalty how much
    of the prior to believe. Where a class has nothing to spare the penalty is the strongest. prior: (weight [C, D],
    bias [C]) that the penalty pulls towards; made for the features as they are.
    """
    classes = int(torch.cat([y_train, y_test]).max()) + 1
    mean, std = x_train.mean(0), x_train.std(0, correction=1 if len(x_train) > 1 else 0).clamp_min(1e-6)
    x_train, x_test = (x_train - mean) / std, (x_test - mean) / std
    towards = x_train.new_zeros(x_train.shape[1] + 1, classes)
    if prior is not None:
        weight, bias = prior
        towards = torch.cat([weight.T * std[:, None], (bias + weight @ mean)[None]])
        classes = len(bias)
    grid = FEW if folds > 1 else PENALTIES if prior is None else (*PENALTIES, *STRONG)
    beliefs = BELIEFS if folds > 1 and prior is not None else (1.0,)
    found = dict.fromkeys(((belief, penalty) for belief in beliefs for penalty in sorted(grid, reverse=True)), 0.0)
    for some in _folds(y_train, folds, seed):
        used = ~torch.zeros(len(y_train), dtype=torch.bool).index_fill(0, some, True)
        for belief in beliefs:
            weights = None
            for penalty in sorted(grid, reverse=True):
                weights = fit_logistic(
                    x_train[used], y_train[used], penalty, weights, prior=belief * towards, classes=classes
                )
                measure = likelihood if folds > 1 else accuracy
                found[belief, penalty] += measure(x_train[some], y_train[some], weights) * len(some)
    belief, penalty = max(found, key=found.__getitem__)  # of equals the most trusted prior, the strongest penalty
    weights = fit_logistic(x_train, y_train, penalty, prior=belief * towards, classes=classes)
    return hits(x_test, y_test, weights), penalty


def likelihood(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Mean log-likelihood, in nats. weights [D + 1, C]."""
    return -F.cross_entropy(x @ weights[:-1] + weights[-1], y).item()


def accuracy(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """In percent; NaN without images. weights [D + 1, C]."""
    return 100 * hits(x, y, weights).float().mean().item()


def hits(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """bool [N]: which images the classifier has right. weights [D + 1, C]."""
    rows = max(1, BLOCK // weights.shape[1])
    right = [
        (part @ weights[:-1] + weights[-1]).argmax(1).eq(wanted)
        for part, wanted in zip(x.split(rows), y.split(rows), strict=True)
    ]
    return torch.cat(right)


def _folds(y: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Images to hold out, fold by fold: a random fifth, or every image once, classes spread evenly over the folds.

    Empty if a class could not be held out without being lost to training.
    """
    generator = torch.Generator().manual_seed(seed)
    if folds == 1:
        fifth = torch.randperm(len(y), generator=generator)[: len(y) // 5]
        return [fifth] if len(fifth) else []
    if y.bincount().where(y.bincount() > 0, y.new_tensor(2)).min() < 2:
        return []
    order = torch.randperm(len(y), generator=generator)
    order = order[torch.argsort(y[order], stable=True)]
    return [some for some in (order[start::folds] for start in range(folds)) if len(some)]
