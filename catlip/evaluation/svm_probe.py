"""VOC07's protocol for frozen features of images with several labels: a linear SVM a class, its cost chosen by
cross-validation, and 11-point mAP.

The squared hinge loss, weights and costs are those of Goyal et al. (2019, arXiv 1905.01235) and VISSL, which call
scikit-learn's LinearSVC class by class. Here all classes are solved together by L-BFGS; the objective is LinearSVC's,
so the solution is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.subsets import with_classes
from catlip.errors import UsageError
from catlip.evaluation.features import cached_features, positives
from catlip.evaluation.multilabel import average_precision, exact_metrics
from catlip.evaluation.result import NOT_SAVED, Result, Table, percent
from catlip.models.encoder import Encoder

COSTS = tuple(10.0**e for e in range(-4, 3))
POSITIVE_WEIGHT = 2.0  # a positive's hinge counts twice
FOLDS = 3


@dataclass(kw_only=True)
class MultiLabelProbeResult(Result):
    """Measures in percent (see `exact_metrics`) of a linear SVM a class."""

    task: ClassVar[str] = "probe_labels"
    heading: ClassVar[str] = "How good are the features?"

    mAP: float
    mAP_voc07: float
    mAP_micro: float
    F1_macro: float
    F1_micro: float
    classes: int
    left_out: int  # classes that no training image has, or all of them: they cannot be learned
    costs: list[float]  # chosen for each class
    train: int  # images
    test: int
    image_size: int
    data: list[str]
    chance: float = field(default=0.0, metadata=NOT_SAVED)  # share of the classes that an image has
    per_class: dict[str, float] = field(default_factory=dict, metadata=NOT_SAVED)  # class -> average precision

    def tables(self) -> list[Table]:
        rows = {
            "mean average precision, VOC07's eleven points": self.mAP_voc07,
            "mean average precision": self.mAP,
            "F1 over all decisions": self.F1_micro,
            "a picture's labels, as often as they occur": self.chance,
        }
        title = (
            f"{self.encoder}: {self.classes} of {self.classes + self.left_out} classes, {self.train:,} to train on, "
            f"{self.test:,} to test"
        )
        best = sorted(self.per_class.items(), key=lambda item: -item[1])
        each = Table("Average precision of each class", [[name, percent(value)] for name, value in best])
        return [Table(title, [[name, percent(value)] for name, value in rows.items()]), each]

    def __str__(self) -> str:
        return str(self.tables()[0])


def svm_probe(
    encoder: Encoder, train: Dataset, test: Dataset, device: torch.device, *, seed: int = 0, cache: bool = True
) -> MultiLabelProbeResult:
    """Classes that no training image has, or all of them, are left out. Raises UsageError if nothing can be learned, or
    tested."""
    test = with_classes(test, train.classes, field="`test`")
    counts = torch.from_numpy(train.counts())
    learned = (counts > 0) & (counts < len(train))
    if not learned.any() or not test.counts()[learned.numpy()].any():
        which, data = ("test", test) if learned.any() else ("train", train)
        raise UsageError(f"`{which}` {data.name} has no class that can be told apart")
    bad_train, bad_test = Unreadable(), Unreadable()
    x_train, kept = cached_features(encoder, train, device, bad_train, cache=cache)
    x_test, tested = cached_features(encoder, test, device, bad_test, cache=cache)
    positive = positives(train, kept.tolist())
    learned = positive.any(0) & ~positive.all(0)  # what can be read decides
    found = voc07_svm(x_train, positive[:, learned], x_test, seed=seed)
    truth = positives(test, tested.tolist())[:, learned]
    names = [name for name, here in zip(train.classes, learned.tolist(), strict=True) if here]
    each = zip(names, average_precision(found.scores, truth).tolist(), strict=True)
    return MultiLabelProbeResult(
        **{name: round(value, 2) for name, value in exact_metrics(found.scores, truth).items()},
        classes=int(learned.sum()),
        left_out=int((~learned).sum()),
        costs=found.costs.tolist(),
        train=len(kept),
        test=len(tested),
        encoder=encoder.architecture,
        image_size=encoder.image_size,
        data=[train.name, test.name],
        chance=100 * truth.float().mean().item(),
        per_class={name: round(100 * value, 2) for name, value in each if value == value},
        **left_out(train=bad_train, test=bad_test),
    )


@dataclass(frozen=True, slots=True)
class Machines:
    """What the protocol found."""

    scores: Tensor  # of the test set, float [M, V]; above 0: the class is named
    costs: Tensor  # that were chosen [V]


def voc07_svm(
    x_train: Tensor, positive_train: Tensor, x_test: Tensor, *, costs: Sequence[float] = COSTS, seed: int = 0
) -> Machines:
    """x float [N, D], x_test float [M, D], positive bool [N, V]. Features are brought to unit length; the cost with the
    best mean AP over the folds wins, of several the smallest. Raises UsageError for a class that no training image
    has, or all."""
    wrong = (positive_train.all(0) | ~positive_train.any(0)).nonzero()[:, 0].tolist()
    if wrong:
        raise UsageError(f"class {wrong[0]} (and {len(wrong) - 1} others) has all training pictures or none")
    if len(x_train) < FOLDS:
        raise UsageError(f"{len(x_train)} training pictures are too few for {FOLDS} folds")
    x_train, x_test = F.normalize(x_train, dim=1), F.normalize(x_test, dim=1)
    fold = torch.arange(len(x_train)) % FOLDS
    fold = fold[torch.randperm(len(fold), generator=torch.Generator().manual_seed(seed))]
    scores = torch.zeros(len(costs), positive_train.shape[1])
    for k in range(FOLDS):
        used, held = fold != k, fold == k
        weights = None
        for i, cost in enumerate(costs):
            per_class = torch.full((positive_train.shape[1],), cost)
            weights = fit_svm(x_train[used], positive_train[used], per_class, start=weights)
            found = average_precision(x_train[held] @ weights[:-1] + weights[-1], positive_train[held])
            scores[i] += found.nan_to_num(0.0)  # a fold without positives says nothing about any cost
    best = torch.tensor(list(costs))[scores.argmax(0)]
    weights = fit_svm(x_train, positive_train, best)
    return Machines(x_test @ weights[:-1] + weights[-1], best)


def fit_svm(
    x: Tensor, positive: Tensor, costs: Tensor, *, start: Tensor | None = None, positive_weight: float = POSITIVE_WEIGHT
) -> Tensor:
    """[D + 1, V], the last row the bias, which is penalised like a weight, as LIBLINEAR does.

    Minimises for each class |w|^2 / 2 + cost * sum of weight * max(0, 1 - y f(x))^2. costs [V].
    """
    wanted = torch.where(positive, 1.0, -1.0)
    share = torch.where(positive, positive_weight, 1.0) * costs
    # Divided by the cost's size, so that the tolerance means the same for all of them.
    scale = 1 / (1 + costs * len(x))
    weights = (x.new_zeros(x.shape[1] + 1, positive.shape[1]) if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        hinge = (1 - wanted * (x @ weights[:-1] + weights[-1])).clamp_min(0).square()
        value = ((weights.square().sum(0) / 2 + (share * hinge).sum(0)) * scale).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()
