"""Accuracy from class scores, of one class an image; and what a classifier measures on a labelled set.

Ties count against the classifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable
from catlip.evaluation.features import decoded, positives
from catlip.evaluation.multilabel import Counted, exact_metrics
from catlip.evaluation.result import NOT_SAVED, Result, Table, percent

EXACT = 2**27  # scores of a multi-label set that are kept to be sorted
NEVER = 10**9  # rank of what cannot be right, beyond every K
# What the measures are called, for people.
MEASURES = {
    "top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "mAP": "mean average precision",
    "mAP_voc07": "by VOC07's eleven points", "mAP_micro": "of all classes as one", "F1_micro": "F1 over all decisions",
    "F1_macro": "F1 a class",
}  # fmt: skip


@dataclass(kw_only=True)
class ClassificationResult(Result):
    """What a fine-tuned classifier measures on its test set."""

    task: ClassVar[str] = "finetune"
    heading: ClassVar[str] = "Fine-tuned classifier"

    # One class an image:
    top1: float | None = None
    top5: float | None = None  # of more than five classes
    mean_per_class: float | None = None  # mean over classes of their own top-1
    # Several (see `exact_metrics`), and how far a counted value can be off (see `Counted`):
    mAP: float | None = None
    mAP_voc07: float | None = None
    mAP_micro: float | None = None
    F1_macro: float | None = None
    F1_micro: float | None = None
    mAP_error: float | None = None
    mAP_voc07_error: float | None = None
    mAP_micro_error: float | None = None
    classes: int
    train: int  # images
    test: int
    fraction: float  # of the training images of every class
    head: str  # how the classifier began: random, or transfer
    wise: float  # WiSE-FT's alpha: 0 the weights of the start, 1 the fine-tuned ones
    image_size: int
    data: list[str]  # training set, test set
    backbone: str
    names: dict[str, str] = field(default_factory=dict)  # class -> the rows that it started from
    baseline: float | None = field(default=None, metadata=NOT_SAVED)  # top-1 of naming the commonest class always

    @property
    def accuracy(self) -> float:
        """The one number to compare runs by: top-1, of several labels an image mAP."""
        found = self.top1 if self.mAP is None else self.mAP
        assert found is not None
        return found

    def tables(self) -> list[Table]:
        rows = []
        for name, told in MEASURES.items():
            if (value := getattr(self, name)) is not None:
                off = getattr(self, f"{name}_error", None)
                rows.append([told, percent(value), *([f"at most {off:.2f} off"] if off else [])])
        if self.baseline is not None:
            rows.append(["the commonest class of `train`", percent(self.baseline)])
        title = f"{self.encoder}: {self.classes} classes, {self.train:,} to learn, {self.test:,} to test"
        started = [Table("What each class started from", list(self.names.items()))] if self.names else []
        return [Table(title, rows), *started]

    def __str__(self) -> str:
        return str(self.tables()[0])  # what the classes started from was said before the run


def combine(logits: Tensor, rows: Sequence[Sequence[int]], calibrate: bool) -> Tensor:
    """Scores of classes that stand for several rows each: logits [N, V] -> [N, len(rows)]; -inf without rows.

    calibrate: every row's scores are standardised over the N images, averaged within a class, and standardised
    again, so that a class with a rare label, or with many labels, starts from the same line as the others.
    """
    found = []
    for own in rows:
        if not own:
            found.append(logits.new_full((len(logits),), float("-inf")))
            continue
        scores = logits[:, list(own)]
        found.append(standard(standard(scores).mean(1)) if calibrate else scores.mean(1))
    return torch.stack(found, dim=1)


def standard(scores: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the first axis; a constant becomes 0."""
    return (scores - scores.mean(0)) / scores.std(0, correction=0).clamp_min(1e-12)


def ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    """int64 [N]: how many other classes score at least as well as the right one. scores [N, C], wanted int64 [N].

    A score of -inf or NaN is never right, nor among the first five of a few.
    """
    right = scores.gather(1, wanted[:, None])
    rank = (~(scores < right)).sum(1) - 1
    return torch.where(right[:, 0].isfinite(), rank, NEVER)


def accuracies(rank: Tensor, wanted: Tensor) -> dict[str, float]:
    """In percent: {"top1", "top5", "mean_per_class"}; the last is the mean over classes of their own top-1."""
    hit = rank.eq(0).double()
    per_class = [hit[wanted == c].mean() for c in wanted.unique()]
    return {
        "top1": 100 * hit.mean().item(),
        "top5": 100 * rank.lt(5).double().mean().item(),
        "mean_per_class": 100 * torch.stack(per_class).mean().item(),
    }


def per_class(rank: Tensor, wanted: Tensor, names: Sequence[str]) -> dict[str, float]:
    """{class: its own top-1 in percent}, of the classes that occur."""
    hit = rank.eq(0).double()
    return {names[c]: round(100 * hit[wanted == c].mean().item(), 2) for c in map(int, wanted.unique())}


@torch.no_grad()
def evaluate(
    objective: Any, data: Dataset, device: torch.device, unreadable: Unreadable | None = None
) -> dict[str, float]:
    """In percent: "top1", "top5", "mean_per_class"; of multi-label sets mAP and F1. objective: a `ClassObjective`, an
    encoder with a head.

    Where all scores together would take over half a gigabyte, average precision is counted (see `Counted`), and its
    error stated. Images that cannot be read: as in `features`.
    """
    objective.eval()
    scores, kept, left_out = [], [], Unreadable() if unreadable is None else unreadable
    counted = Counted(len(data.classes)) if data.multi and len(data) * len(data.classes) > EXACT else None
    for numbers, _, pixels in decoded(data, range(len(data)), objective.encoder.pixels, left_out, batch_size=64):
        some = objective.logits(pixels.to(device)).float().cpu()
        if counted is None:
            scores.append(some)
            kept += numbers
        else:
            counted.update(some, positives(data, numbers))
    if counted is not None:
        return counted.metrics()
    if data.multi:
        return exact_metrics(torch.cat(scores), positives(data, kept))
    wanted = torch.from_numpy(data.labels)[kept]
    found = accuracies(ranks(torch.cat(scores), wanted), wanted)
    return found if len(data.classes) > 5 else {name: value for name, value in found.items() if name != "top5"}
