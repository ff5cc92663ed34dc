"""Is an adapted encoder better than the one it started from? The same probe on both, on images that neither has seen.

The weights between start and end (WiSE-FT, arXiv 2109.01903) are candidates too. Which of them is best is decided on
one half of the held-out images and measured on the other, in turn, so that choosing does not flatter the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip import page
from catlip.data.dataset import Dataset
from catlip.errors import UsageError
from catlip.evaluation.features import positives
from catlip.evaluation.multilabel import average_precision
from catlip.evaluation.result import Result, Table, percent
from catlip.evaluation.ridge_probe import cross_validated, fit_ridge, mean_ap, paired_error

SURE = 2.0  # standard errors by which an adapted encoder must be better
SHOWN = 12  # labels that gained most, and lost most


@dataclass(slots=True)
class Judge:
    """What encoders are measured by: features of the domain, and of what should not be forgotten."""

    learned: Tensor  # bool [N, V]: labels of the images that the probe learns from
    held_out: Tensor  # bool [M, V]
    keep: Tensor | None = None  # bool [K, C]: classes of the labelled set; None: there is none
    single: bool = True  # whether its images have one class each

    def scores(self, learned: Tensor, held_out: Tensor) -> Tensor:
        """Of the held-out images, float [M, V], by a probe of features [N, D] and [M, D]."""
        return fit_ridge(learned, self.learned).scores(held_out)

    def kept(self, pooled: Tensor) -> float | None:
        """Accuracy or mean average precision in percent of the labelled set's features [K, D], cross-validated."""
        return None if self.keep is None else cross_validated(pooled, self.keep, single=self.single)


@dataclass(slots=True)
class Choice:
    """The share of the way from the start to the trained weights that is best, and what it is worth."""

    alpha: float
    gain: float  # points of mean average precision on held-out images, of the alphas chosen on other ones
    error: float  # standard error of the gain

    @property
    def better(self) -> bool:
        return self.gain > SURE * self.error


def choose(scores: Mapping[float, Tensor], positive: Tensor, allowed: Mapping[float, bool]) -> Choice:
    """scores: alpha -> float [M, V] of the held-out images; 0, the start, is among them. positive bool [M, V].
    allowed: alpha -> whether it may be chosen."""
    alphas = [alpha for alpha in sorted(scores) if allowed.get(alpha, True) or alpha == 0]
    half = torch.arange(len(positive)) % 2 == 0
    gains, errors = [], []
    for chosen_on, measured_on in ((half, ~half), (~half, half)):
        best = max(alphas, key=lambda alpha: mean_ap(scores[alpha][chosen_on], positive[chosen_on]))
        truth = positive[measured_on]
        before, after = scores[0][measured_on], scores[best][measured_on]
        gains.append(mean_ap(after, truth) - mean_ap(before, truth))
        errors.append(paired_error(before, after, truth) if best else 0.0)
    alpha = max(alphas, key=lambda alpha: mean_ap(scores[alpha], positive))
    return Choice(alpha, sum(gains) / 2, sum(error**2 for error in errors) ** 0.5 / 2)


def labels_of(data: Dataset) -> tuple[Tensor, bool]:
    """(bool [N, C], whether each image has one class) of a labelled set. Raises UsageError for a single class."""
    counts = data.counts()
    if ((counts > 0) & (counts < len(data))).sum() < (1 if data.multi else 2):
        only = data.classes[int(counts.argmax())]
        raise UsageError(f"`keep` {data.name} has a single class, {only!r}; two or more are needed")
    return positives(data, range(len(data))), not data.multi


@dataclass(kw_only=True)
class AdaptResult(Result):
    """Before and after, in percent, by the same linear probe of frozen features on held-out images."""

    task: ClassVar[str] = "adapt"
    heading: ClassVar[str] = "Before and after"
    page_name: ClassVar[str] = "adapt.html"

    mAP_before: float  # of the labels of captions
    mAP: float  # of the encoder that was kept
    gain: float  # points, of interpolations chosen on other images than those measured on
    error: float  # standard error of the gain, paired, over images
    kept: str  # "adapted", or "start": nothing better came of it
    wise: float  # share of the way from the start to the trained weights; 0: the start
    drift: float  # 1 - mean cosine between the features before and after, about their mean
    keep_before: float | None = None  # of the labelled set, cross-validated
    keep: float | None = None
    forced: bool = False  # kept although it is not better
    path: dict[str, list[float | None]] = field(default_factory=dict)  # alpha -> [mAP, keep, drift]
    classes: int
    train: int  # images
    test: int
    image_size: int
    data: list[str]
    labels: dict[str, list[float]] = field(default_factory=dict)  # name -> average precision before and after

    @property
    def verdict(self) -> str:
        """One sentence on what was kept and why."""
        noise = f"{self.gain:+.2f} ± {self.error:.2f} points of mean average precision on held-out images"
        if self.kept == "adapted":
            return f"the adapted encoder is kept: {noise}" + (", not beyond noise, as `force` says" * self.forced)
        why = "which is not beyond noise" if self.gain > 0 else "so nothing was gained"
        return f"the start is kept, with its new classifier: {noise}, {why}"

    def tables(self) -> list[Table]:
        rows = [["labels of the captions, mAP", percent(self.mAP_before), percent(self.mAP)]]
        if self.keep_before is not None:
            rows.append([f"{self.data[-1]}, cross-validated", percent(self.keep_before), percent(self.keep)])
        rows.append(["drift of the features (1 - cosine)", "0.000", f"{self.drift:.3f}"])
        title = (
            f"{self.encoder}: linear probe of {self.classes:,} labels, {self.train:,} images to learn from, "
            f"{self.test:,} held out"
        )
        found = [Table(title, rows, ["", "before", "after"], note=self.verdict)]
        header = ["share of the way", "labels, mAP", *(["keep"] if self.keep_before is not None else []), "drift"]
        between = []
        for alpha, (mean, keep, moved) in self.path.items():
            kept = [percent(keep)] if self.keep_before is not None else []
            between.append([alpha, percent(mean), *kept, f"{moved:.3f}"])
        found.append(Table("Between the start (0) and the trained weights (1)", between, header))
        moved = sorted(self.labels.items(), key=lambda item: item[1][0] - item[1][1])
        for title, some in (("Labels that gained most", moved[:SHOWN]), ("lost most", moved[::-1][:SHOWN])):
            each = [[name, *map(percent, pair), f"{pair[1] - pair[0]:+.2f}"] for name, pair in some]
            found.append(Table(title, each, ["", "before", "after", "points"]))
        return found

    def table(self) -> str:
        return "\n".join(map(str, self.tables()[:2]))

    def drawings(self) -> list[page.Html]:
        series = [page.Series("labels of the captions", [(float(a), v[0]) for a, v in self.path.items()])]
        if self.keep_before is not None:
            series.append(page.Series(self.data[-1], [(float(a), v[1]) for a, v in self.path.items()]))
        return [page.chart(series, "share of the way from the start to the trained weights", "percent")]


def each_label(scores: Tensor, positive: Tensor) -> Tensor:
    """Average precision of each label in percent; NaN without positives. [V]"""
    return 100 * average_precision(scores, positive)


def drift(before: Tensor, after: Tensor) -> float:
    """How far features moved: 1 - the mean cosine of each image's vectors, both about the mean of the first. [N, D]."""
    centre = before.mean(0)
    return 1 - F.cosine_similarity(before - centre, after - centre, dim=1).mean().item()
