"""Metrics of a multi-label classifier: exact ones from all scores, or counted batch by batch in memory that does not
grow with the images.

Ties count against the classifier: among equal scores, positives come last (scikit-learn takes equal scores as one
threshold; without ties the two are equal).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**22  # scores that are sorted at a time
POINTS = 11  # of VOC07's interpolated precision: recall 0, .1, ... 1


def average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """AP of each class: mean precision at the ranks of its positives. scores, positive [N, V] -> [V], NaN without any.

    A score of NaN counts as the worst. Memory: a few blocks of classes, whatever V is.
    """
    return _by_block(scores, positive, lambda precision, found: (precision * found).sum(0) / found.sum(0))


def voc07_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """VOC07's AP (Everingham et al. 2010, section 4.2): the mean over 11 recalls of the best precision at that recall
    or a higher one. scores, positive [N, V] -> [V], NaN without positives."""

    def mean_of_best(precision: Tensor, found: Tensor) -> Tensor:
        positives = found.cumsum(0)
        best = (precision * found).flip(0).cummax(0).values.flip(0)
        values = 0.0
        for point in range(POINTS):
            # The first rank that reaches the recall, in whole numbers: found / all >= point / 10.
            enough = positives * (POINTS - 1) >= point * positives[-1]
            values = values + best.gather(0, enough.double().argmax(0, keepdim=True))[0]
        return torch.where(positives[-1] > 0, values / POINTS, torch.nan)

    return _by_block(scores, positive, mean_of_best)


def _by_block(scores: Tensor, positive: Tensor, measure) -> Tensor:
    """float32 [V]: measure(precision at every rank, which of them are positives), float64 [N, some classes] each."""
    assert scores.shape == positive.shape
    if not len(scores):
        return torch.full((scores.shape[1],), torch.nan)
    rank = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)[:, None]
    width, found = max(1, BLOCK // len(scores)), []
    for some, right in zip(scores.split(width, 1), positive.split(width, 1), strict=True):
        some = some.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # Negatives first, then a stable sort by score: a tie is never broken in the classifier's favour.
        first = torch.argsort(right.byte(), dim=0, stable=True)
        order = first.gather(0, torch.argsort(some.gather(0, first), dim=0, descending=True, stable=True))
        hit = right.gather(0, order).double()
        found.append(measure(hit.cumsum(0) / rank, hit).float())
    return torch.cat(found).cpu()


def exact_metrics(scores: Tensor, positive: Tensor, threshold: float = 0.0) -> dict[str, float]:
    """In percent, from all scores [N, V] and what is right, bool [N, V].

    {"mAP", "mAP_voc07": means over the classes that occur, "mAP_micro": of all classes as one, "F1_macro": mean over
    the classes that occur, "F1_micro": over all decisions}; F1 is of what scores above the threshold. NaN where there
    is no positive at all.
    """
    chosen = scores > threshold
    right = (chosen & positive).sum(0)
    return {
        "mAP": 100 * average_precision(scores, positive).nanmean().item(),
        "mAP_voc07": 100 * voc07_precision(scores, positive).nanmean().item(),
        "mAP_micro": 100 * average_precision(scores.reshape(-1, 1), positive.reshape(-1, 1)).item(),
        **_f1(right, chosen.sum(0), positive.sum(0)),
    }


def _f1(right: Tensor, chosen: Tensor, positives: Tensor) -> dict[str, float]:
    """Counts of each class [V]."""
    each = (2 * right / (chosen + positives).clamp_min(1)).double()
    both = 2 * right.sum() / (chosen + positives).sum().clamp_min(1)
    return {"F1_macro": 100 * each[positives > 0].mean().item(), "F1_micro": 100 * both.item()}


def top1(scores: Tensor, positive: Tensor) -> float:
    """Share of images with labels whose best-scored class is one of their labels."""
    some = positive.any(1)
    best = scores[some].argmax(1, keepdim=True)
    return positive[some].gather(1, best).float().mean().item()


@dataclass(frozen=True, slots=True)
class Bounds:
    """A measure that is known to lie between two values."""

    low: Tensor
    high: Tensor

    @property
    def middle(self) -> Tensor:
        return (self.low + self.high) / 2


class Counted:
    """The metrics of a set of any size: histograms of the scores of each class, 8 bytes a class and bin.

    24,320 classes in 512 bins take 100 MB, whatever the number of images. Within a bin the order of images is
    lost, so average precision comes with bounds that hold for certain: all negatives of a bin before its positives,
    and after them. F1 is exact. Processes each count their own images; `reduce` adds them up, in whole numbers, so
    the result is the same bits on any number of processes.
    """

    def __init__(
        self, classes: int, *, low: float = -20.0, high: float = 12.0, bins: int = 512, threshold: float = 0.0
    ) -> None:
        """low, high: of the scores, logits by default; what lies outside is counted in the first or last bin."""
        assert low < high
        self.low, self.high, self.bins, self.threshold = low, high, bins, threshold
        self.positives = torch.zeros(classes, bins, dtype=torch.int32)
        self.negatives = torch.zeros(classes, bins, dtype=torch.int32)
        self.right = torch.zeros(classes, dtype=torch.int64)  # above the threshold, and positive
        self.chosen = torch.zeros(classes, dtype=torch.int64)  # above the threshold
        self.pictures = torch.zeros((), dtype=torch.int64)

    def update(self, scores: Tensor, positive: Tensor) -> None:
        """scores float [B, V], positive bool [B, V]; NaN counts as the worst score."""
        scores, positive = scores.detach().float().cpu(), positive.cpu()
        place = ((scores - self.low) * (self.bins / (self.high - self.low))).nan_to_num(nan=0.0)
        place = place.clamp(0, self.bins - 1).long() + self.bins * torch.arange(len(self.right))
        one = torch.ones((), dtype=torch.int32)
        for counts, which in ((self.positives, positive), (self.negatives, ~positive)):
            at = place[which]
            counts.view(-1).index_add_(0, at, one.expand(len(at)))
        chosen = scores > self.threshold
        self.right += (chosen & positive).sum(0)
        self.chosen += chosen.sum(0)
        self.pictures += len(scores)
        assert self.pictures < 2**31, "a count of 32 bits would overflow"

    def average_precision(self) -> Bounds:
        """Of each class, float64 [V]; NaN without positives. The exact AP lies between the bounds."""
        return self._each(_area)

    def voc07_precision(self) -> Bounds:
        """As `voc07_precision`, of each class."""
        return self._each(_eleven)

    def _each(self, measure) -> Bounds:
        found = [
            (measure(*counts, optimistic=False), measure(*counts, optimistic=True))
            for counts in zip(self.positives.split(1024), self.negatives.split(1024), strict=True)
        ]
        return Bounds(torch.cat([low for low, _ in found]), torch.cat([high for _, high in found]))

    def metrics(self) -> dict[str, float]:
        """As `exact_metrics`; beside "mAP", "mAP_voc07" and "mAP_micro" the most that each can be off."""
        together = [counts.sum(0, keepdim=True, dtype=torch.int64) for counts in (self.positives, self.negatives)]
        found: dict[str, float] = {}
        for name, bounds in (
            ("mAP", self.average_precision()),
            ("mAP_voc07", self.voc07_precision()),
            ("mAP_micro", Bounds(_area(*together, optimistic=False), _area(*together, optimistic=True))),
        ):
            found[name] = 100 * bounds.middle.nanmean().item()
            found[f"{name}_error"] = 50 * (bounds.high - bounds.low).nanmean().item()
        return found | _f1(self.right, self.chosen, self.positives.sum(1))


def _ranked(positives: Tensor, negatives: Tensor, optimistic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """float64 [V, bins], best bin first: positives in the bin, positives before it, negatives before its positives."""
    here, others = positives.flip(1).double(), negatives.flip(1).double()
    return here, here.cumsum(1) - here, others.cumsum(1) - (others if optimistic else 0)


def _area(positives: Tensor, negatives: Tensor, *, optimistic: bool) -> Tensor:
    """Average precision from histograms. The i-th positive of a bin has precision (P + i) / (P + i + M), P positives
    and M negatives before it; the sum over i of 1 - M / (P + i + M) is a difference of digamma functions."""
    here, before, missed = _ranked(positives, negatives, optimistic)
    start = before + missed + 1
    area = here - missed * (torch.digamma(start + here) - torch.digamma(start))
    return area.sum(1) / here.sum(1)


def _eleven(positives: Tensor, negatives: Tensor, *, optimistic: bool) -> Tensor:
    """VOC07's AP from histograms: in a bin, precision is best at its last positive, and so is recall."""
    here, before, missed = _ranked(positives, negatives, optimistic)
    found, total = before + here, here.sum(1, keepdim=True)
    precision = torch.where(here > 0, found / (found + missed).clamp_min(1), 0.0)
    best = precision.flip(1).cummax(1).values.flip(1)
    values = torch.zeros(len(here), dtype=torch.float64)
    for point in range(POINTS):
        enough = found * (POINTS - 1) >= point * total
        values += best.gather(1, enough.double().argmax(1, keepdim=True))[:, 0]
    return torch.where(total[:, 0] > 0, values / POINTS, torch.nan)
