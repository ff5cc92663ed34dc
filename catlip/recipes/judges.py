"""What encoders are compared by: pairs of datasets, one that a linear classifier learns from, one that tests it.

Every judge's number is a mean over many things that are right or wrong on their own: test images, or classes. They are
kept, since two encoders that were judged on the same ones differ with less error than either number has.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catlip.data.class_labels import with_nouns
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.data.subsets import subset, with_classes
from catlip.errors import UsageError
from catlip.evaluation.features import class_indices, data_name, features, positives
from catlip.evaluation.knn import knn
from catlip.evaluation.linear_probe import linear_probe
from catlip.evaluation.multilabel import average_precision
from catlip.evaluation.ridge_probe import fit_ridge
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder

LEAST = 10  # images that a noun needs among those learned from: below, its classifier is a matter of luck
FEW = 500  # images to learn from, below which a fifth of them is too few to choose anything by


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found of one encoder."""

    measure: str  # top-1, or mAP
    value: float  # in percent: the mean of `each`
    each: list[float]  # in percent: of every test image 100 or 0, of every class its average precision
    knn: float | None = None  # accuracy of kNN evaluation in percent, where an image has one class


@dataclass(frozen=True, slots=True)
class Judge:
    """Labelled images to learn from, and others for the test, of the same classes."""

    name: str
    train: Dataset
    test: Dataset

    @property
    def measure(self) -> str:
        return "mAP" if self.train.multi else "top-1"

    def __call__(self, encoder: Encoder, device: torch.device) -> Verdict:
        """Logistic regression on frozen features; of images with several classes ridge regression of each.

        Classes of the latter that no image that is learned from has, or all, or that the test lacks, are left out.
        """
        (x, kept), (x_test, tested) = (features(encoder, one, device) for one in (self.train, self.test))
        if not self.train.multi:
            _, y, y_test = class_indices(self.train, self.test)
            y, y_test = y[kept], y_test[tested]
            right, _ = linear_probe(x, y, x_test, y_test)
            nearest = knn(x, y, x_test, y_test)
            return _verdict(self.measure, 100 * right.float(), round(nearest, 2))
        positive, truth = positives(self.train, kept.tolist()), positives(self.test, tested.tolist())
        usable = positive.any(0) & ~positive.all(0) & truth.any(0)
        scores = fit_ridge(x, positive[:, usable]).scores(x_test)
        return _verdict(self.measure, 100 * average_precision(scores, truth[:, usable]))

    def held_out(self) -> "Judge":
        """The same judge without its test set: a fifth of what is learned from takes its place."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(1)).numpy()
        fifth, rest = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
        return Judge(self.name, subset(self.train, rest), subset(self.train, fifth))

    def fingerprint(self) -> list[Any]:
        return [self.train.fingerprint(), self.test.fingerprint()]


def _verdict(measure: str, each: torch.Tensor, nearest: float | None = None) -> Verdict:
    return Verdict(measure, round(each.mean().item(), 3), [round(value, 2) for value in each.tolist()], nearest)


def open_judges(
    train: Sequence[Any], test: Sequence[Any], nouns: Sequence[Any] = (), vocabulary: Vocabulary | None = None
) -> list[Judge]:
    """One judge for each pair of labelled sets, and one for the nouns of captions.

    train, test: whatever `open_dataset` takes, with one class an image or several. nouns: captioned images to learn
    from, and others for the test; classes are the vocabulary's that LEAST of the former have. Raises UsageError.
    """
    if len(train) != len(test) or not (train or nouns):
        raise UsageError(f"`train` names {len(train)} sets and `test` {len(test)}: one of each for every judge")
    if len(nouns) not in (0, 2):
        raise UsageError(f"`nouns` is two sets of captioned images, to learn from and for the test, not {len(nouns)}")
    judges = [_labelled(*pair) for pair in zip(train, test, strict=True)]
    if nouns:
        if not vocabulary:
            raise UsageError("`nouns` are those of a vocabulary, and `vocab` is missing")
        learned, tested = (open_dataset(one) for one in nouns)
        judges.append(
            Judge(f"nouns of {_short(data_name(nouns[1], tested))}", *noun_classes(learned, tested, vocabulary))
        )
    if len({judge.name for judge in judges}) < len(judges):
        raise UsageError(f"`test` names a set twice: {', '.join(judge.name for judge in judges)}")
    return judges


def _labelled(train: Any, test: Any) -> Judge:
    learned = open_dataset(train, target="classes")
    tested = open_dataset(test, target="classes", multi=True) if learned.multi else open_dataset(test, target="classes")
    if tested.multi and not learned.multi:
        raise UsageError(f"`test` {tested.name}: its pictures have several labels, those of `train` one each")
    if learned.multi:
        tested = with_classes(tested, learned.classes, field="`test`")
    else:
        class_indices(learned, tested)
    return Judge(_short(data_name(test, tested)), learned, tested)


def _short(name: str) -> str:
    """The last two parts of a path, without endings and numbers of shards, nor COCO's folder: cifar10/test."""
    parts = [part for part in Path(name).parts if part != "annotations"]
    return re.sub(r"[-_.]*(\{.*\}|\d+)?(\.[a-z]+)*$", "", "/".join(parts[-2:])) or name


def noun_classes(train: Dataset, test: Dataset, vocabulary: Vocabulary) -> tuple[Dataset, Dataset]:
    """The same images with classes: the nouns in their captions that LEAST images of `train` have, and not all.

    Raises UsageError if there is none.
    """
    found = [with_nouns(dataset, vocabulary) for dataset in (train, test)]
    counts = found[0].counts()
    kept = (counts >= LEAST) & (counts < len(train))
    if not kept.any():
        raise UsageError(f"`nouns` {train.name}: no noun of the vocabulary is said of {LEAST} of its images")
    names, rows = list(compress(vocabulary.synsets, kept)), np.where(kept, np.cumsum(kept) - 1, -1)
    learned, tested = (with_classes(one, names, rows) for one in found)
    return learned, tested
