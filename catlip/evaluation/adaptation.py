"""Is an adapted encoder better than the one it started from? The same probe on both, on images that neither has seen.

The weights between start and end (WiSE-FT, arXiv 2109.01903) are candidates too. Which of them is best is decided on
one half of the held-out images and measured on the other, in turn, so that choosing does not flatter the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip import page
from catlip.data.class_labels import with_nouns
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable
from catlip.data.subsets import subset
from catlip.errors import UsageError
from catlip.evaluation.features import cached_features, features, positives
from catlip.evaluation.multilabel import average_precision
from catlip.evaluation.result import Result, Table, percent
from catlip.evaluation.ridge_probe import cross_validated, fit_ridge, mean_ap, paired_error
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder

SURE = 2.0  # standard errors by which an adapted encoder must be better
SHOWN = 12  # labels that gained most, and lost most
OFTEN = 5  # held-out images, below which the average precision of a label says nothing


@dataclass(slots=True)
class Candidate:
    """Weights a share `alpha` of the way from the start to the trained ones, and what they are worth."""

    alpha: float
    scores: Tensor  # float [M, V], of the held-out images by the probe
    mAP: float  # percent
    keep: float | None  # accuracy or mean average precision in percent on the labelled set, cross-validated
    drift: float

    def to_json(self) -> dict[str, float]:
        kept = {} if self.keep is None else {"keep": round(self.keep, 2)}
        return {"mAP": round(self.mAP, 2), **kept, "drift": round(self.drift, 4)}


class AdaptationProbe:
    """Measures encoders of one kind on the same images, with the start's features at hand."""

    def __init__(
        self,
        start: Encoder,
        learned: Dataset,
        held_out: Dataset,
        keep: Dataset | None,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> None:
        """learned: captioned images that the probe learns from. keep: labelled images."""
        self.device, self.data, self.start = device, list[Dataset](), list[Tensor]()
        for some in (learned, held_out, *([keep] if keep is not None else [])):
            pooled, readable = cached_features(start, some, device, Unreadable())
            self.data.append(some if len(readable) == len(some) else subset(some, readable.numpy()))
            self.start.append(pooled)
        self.learned, self.positive = (positives(with_nouns(some, vocabulary)) for some in self.data[:2])
        self.kept = labels_of(self.data[2]) if keep is not None else None

    def candidate(self, encoder: Encoder | None, alpha: float) -> Candidate:
        """encoder: None for the start."""
        found = self.start if encoder is None else [features(encoder, some, self.device)[0] for some in self.data]
        scores = fit_ridge(found[0], self.learned).scores(found[1])
        kept = None
        if self.kept is not None:
            labels, single = self.kept
            kept = cross_validated(found[2], labels, single=single)
        return Candidate(alpha, scores, mean_ap(scores, self.positive), kept, drift(self.start[1], found[1]))


@dataclass(slots=True)
class Choice:
    """The share of the way from the start to the trained weights that is best, and what it is worth."""

    alpha: float
    gain: float  # points of mean average precision on held-out images, of the alphas chosen on other ones
    error: float  # standard error of the gain

    @property
    def better(self) -> bool:
        return self.gain > SURE * self.error


def choose_alpha(candidates: Sequence[Candidate], positive: Tensor, keep_loss: float | None = None) -> Choice:
    """The best of them. candidates: the start, whose alpha is 0, first. positive bool [M, V], of the held-out images.
    keep_loss: points that a candidate may lose on the labelled set; None: any."""
    start, allowed = candidates[0], list(candidates)
    if keep_loss is not None and start.keep is not None:
        allowed = [c for c in candidates if c is start or (c.keep or 0.0) >= start.keep - keep_loss]
    half, after = torch.arange(len(positive)) % 2 == 0, start.scores.clone()
    for chosen_on, measured_on in ((half, ~half), (~half, half)):
        best = max(allowed, key=lambda c: mean_ap(c.scores[chosen_on], positive[chosen_on]))
        after[measured_on] = best.scores[measured_on]
    gain = mean_ap(after, positive) - mean_ap(start.scores, positive)
    alpha = max(allowed, key=lambda c: c.mAP).alpha
    return Choice(alpha, gain, paired_error(start.scores, after, positive))


def labels_of(data: Dataset) -> tuple[Tensor, bool]:
    """(bool [N, C], whether each image has one class) of a labelled set. Raises UsageError for a single class."""
    counts = data.counts()
    if ((counts > 0) & (counts < len(data))).sum() < (1 if data.multi else 2):
        only = data.classes[int(counts.argmax())]
        raise UsageError(f"`keep` {data.name} has a single class, {only!r}; two or more are needed")
    return positives(data), not data.multi


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
    path: dict[str, dict[str, float]] = field(default_factory=dict)  # alpha -> mAP, keep if there is one, drift
    classes: int
    train: int  # images
    test: int
    image_size: int
    data: list[str]
    labels: dict[str, list[float]] = field(default_factory=dict)  # name -> AP before and after, images that have it

    @property
    def verdict(self) -> str:
        """One sentence on what was kept and why."""
        noise = f"{self.gain:+.2f} ± {self.error:.2f} points of mean average precision on held-out images"
        if self.kept == "adapted":
            return f"The adapted encoder is kept: {noise}" + (", not beyond noise, as `force` says" * self.forced)
        why = "which is not beyond noise" if self.gain > 0 else "so nothing was gained"
        return f"The start is kept, with its new classifier: {noise}, {why}"

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
        for alpha, point in self.path.items():
            kept = [percent(point["keep"])] if self.keep_before is not None else []
            between.append([alpha, percent(point["mAP"]), *kept, f"{point['drift']:.3f}"])
        found.append(Table("Between the start (0) and the trained weights (1)", between, header))
        often = [item for item in self.labels.items() if item[1][2] >= OFTEN]
        moved = sorted(often, key=lambda item: item[1][0] - item[1][1])
        for title, some in (("gained", moved[:SHOWN]), ("lost", moved[::-1][:SHOWN])):
            each = [
                [name, f"{n:g}", percent(before), percent(after), f"{after - before:+.2f}"]
                for name, (before, after, n) in some
                if (after > before) == (title == "gained")
            ]
            if each:
                heading = f"Labels of {OFTEN} held-out images or more that {title} most"
                found.append(Table(heading, each, ["", "images", "before", "after", "points"]))
        return found

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables()[:2]))

    def drawings(self) -> list[page.Html]:
        shown = {"mAP": "labels of the captions, mAP"}
        if self.keep_before is not None:
            shown["keep"] = self.data[-1]
        charts = []
        for name, title in shown.items():  # apart, as their scales are
            points = [(float(alpha), point[name]) for alpha, point in self.path.items()]
            series = [page.Series(title, points)]
            charts += [page.chart(series, "share of the way to the trained weights", f"{title}, %", height=2.2)]
        return charts


def each_label(scores: Tensor, positive: Tensor) -> Tensor:
    """Average precision of each label in percent; NaN without positives. [V]"""
    return 100 * average_precision(scores, positive)


def drift(before: Tensor, after: Tensor) -> float:
    """How far features moved: 1 - the mean cosine of each image's vectors, both about the mean of the first. [N, D]."""
    centre = before.mean(0)
    return 1 - F.cosine_similarity(before - centre, after - centre, dim=1).mean().item()
