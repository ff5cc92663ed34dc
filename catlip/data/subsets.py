"""Parts and mixtures of datasets: `subset`, `with_classes`, `fraction_of_each_class`, `mix`.

All random parts are drawn here, so the same seed is the same images for every verb, and a larger part contains the
smaller one. Nothing in this file needs torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress
from typing import Any, TypeVar

import numpy as np

from catlip.data.dataset import Dataset, Sample, bounded, troubles_said
from catlip.data.order import SCALE, samples_at, uniforms
from catlip.errors import UsageError

T = TypeVar("T")


class Subset(Dataset):
    """Some samples of another dataset, in a list of classes if it has one."""

    def __init__(self, dataset: Dataset, numbers: np.ndarray) -> None:
        """numbers: int64, of the samples."""
        self.dataset, self.numbers = dataset, numbers
        self.name, self.troubles = dataset.name, dataset.troubles
        self.remote, self.window = dataset.remote, dataset.window
        self.ascending = bool((numbers[1:] > numbers[:-1]).all())
        often = how_often(dataset)
        self.keep = None if often is None else often[numbers]
        self.shards = np.array([len(numbers)], np.int64)
        self.described = f"{len(numbers):,} of {dataset.described}"
        if self.ascending:
            self.shards = np.diff(np.searchsorted(numbers, np.concatenate([[0], np.cumsum(dataset.shards)])))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.numbers[index])]

    def keys(self) -> Iterator[str]:
        return self._some(self.dataset.keys()) if self.ascending else super().keys()

    def captions(self) -> Iterator[list[str]]:
        return self._some(self.dataset.captions()) if self.ascending else super().captions()

    def _some(self, of_all: Iterator[T]) -> Iterator[T]:
        kept = np.zeros(len(self.dataset), bool)
        kept[self.numbers] = True
        return compress(of_all, kept)

    def fingerprint(self) -> list[Any]:
        keep = [] if self.keep is None else [np.rint(self.keep * SCALE)]
        return [*self.dataset.fingerprint(), _hash("subset", self.numbers, *keep)]

    def prefetch(self, shards: Sequence[int]) -> None:
        if self.ascending:
            self.dataset.prefetch(shards)


class WithClasses(Subset):
    """Some samples of another dataset, with the classes of each."""

    def __init__(
        self,
        dataset: Dataset,
        classes: list[str],
        labels: np.ndarray,
        offsets: np.ndarray,
        *,
        multi: bool,
        numbers: np.ndarray | None = None,
    ) -> None:
        """classes, labels, offsets, multi: as of `Dataset`. numbers: of the samples in `dataset`; None: all of them."""
        super().__init__(dataset, np.arange(len(dataset)) if numbers is None else numbers)
        self.classes, self.labels, self.offsets, self.multi = classes, labels, offsets, multi
        each = f", {len(labels) / max(len(self), 1):.1f} a picture" if multi else ""
        self.described = f"{len(self):,} pictures of {len(classes):,} classes{each}" + troubles_said(self.troubles)

    def __getitem__(self, index: int) -> Sample:
        found = self.dataset[int(self.numbers[index])]
        target = tuple(self.labels[self.offsets[index] : self.offsets[index + 1]].tolist())
        return Sample(found.key, found.image, found.captions, target, found.metadata)

    def fingerprint(self) -> list[Any]:
        return [*self.dataset.fingerprint(), _hash("\n".join(self.classes), self.labels, self.offsets, self.numbers)]


def _hash(text: str, *arrays: np.ndarray) -> str:
    found = hashlib.sha256(text.encode())
    for array in arrays:
        found.update(array.astype("<i8").tobytes())
    return found.hexdigest()[:12]


def _root(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """(the dataset that samples are read from, their numbers in it): parts of parts read through one step."""
    if isinstance(dataset, WithClasses):
        return dataset.dataset, dataset.numbers
    return dataset, np.arange(len(dataset))


def subset(dataset: Dataset, indices: Any) -> Dataset:
    """The samples of these indices, in this order; classes are kept. indices: int64 [n], or a bool for each sample.

    >>> from catlip.data.dataset import Sample
    >>> len(subset(mix([]), []))
    0
    """
    chosen = np.asarray(indices)
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(dataset)):
        raise UsageError(f"`indices` are 0..{len(dataset) - 1} of {dataset.name}, not {chosen.min()}..{chosen.max()}")
    if not dataset.has_classes:
        return Subset(dataset, chosen)
    counts = np.diff(dataset.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    labels = dataset.labels[np.repeat(dataset.offsets[:-1][chosen], counts) + within]
    root, numbers = _root(dataset)
    return WithClasses(root, dataset.classes, labels, offsets, multi=dataset.multi, numbers=numbers[chosen])


def thinned(dataset: Dataset, keep: np.ndarray) -> Dataset:
    """The same samples; sample n is in an epoch keep[n] times as often as before, its source's weight included."""
    found = Subset(dataset, np.arange(len(dataset)))
    found.keep = np.asarray(keep, np.float32) * (1 if found.keep is None else found.keep)
    return found


def how_often(dataset: Dataset) -> np.ndarray | None:
    """float32 [N]: how often each sample is in an epoch, on average, its source's weight included; None: once."""
    sizes, weights = [size for size, _ in dataset.parts], [weight for _, weight in dataset.parts]
    if all(weight == 1 for weight in weights):
        return dataset.keep
    repeated = np.repeat(np.array(weights, np.float32), sizes)
    return repeated if dataset.keep is None else repeated * dataset.keep


def with_classes(
    dataset: Dataset, classes: list[str], rows: Sequence[int] | np.ndarray | None = None, *, field: str = ""
) -> Dataset:
    """The same samples in another list of classes: class c becomes rows[c], or none if that is -1.

    rows: no two classes become one; None: the names say it. field: what the dataset was given as, for the UsageError of
    a class whose name is not among `classes`.
    """
    if rows is None:
        row = {name: number for number, name in enumerate(classes)}
        met = [dataset.classes[number] for number in np.unique(dataset.labels).tolist()]
        if unseen := [name for name in met if name not in row]:
            raise UsageError(
                f"{field} {dataset.name}: {len(unseen)} of its classes are not in `train`, e.g. {unseen[0]!r}".strip()
            )
        rows = [row.get(name, -1) for name in dataset.classes]
    row_of = np.asarray(rows, np.int64)
    assert len(row_of) == len(dataset.classes)
    assert np.bincount(row_of[row_of >= 0], minlength=1).max() <= 1
    sample, labels = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)), row_of[dataset.labels]
    sample, labels = sample[labels >= 0], labels[labels >= 0]
    labels = labels[np.lexsort((labels, sample))]
    offsets = np.searchsorted(sample, np.arange(len(dataset) + 1))
    root, numbers = _root(dataset)
    return WithClasses(root, classes, labels, offsets, multi=dataset.multi, numbers=numbers)


def fraction_of_each_class(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """A random fraction of every class, one sample at least; a larger one holds the smaller one of the same seed.

    Multi-label: a fraction of the samples, and the first of each class that would have none.
    """
    if not dataset.multi:
        return subset(dataset, np.sort(share_of_each(dataset.labels, fraction, seed)))
    chosen, met, wanted = set[int](), set[int](), max(1, round(fraction * len(dataset)))
    for number in shuffled(len(dataset), seed).tolist():
        own = dataset.labels[dataset.offsets[number] : dataset.offsets[number + 1]].tolist()
        if len(chosen) < wanted or not met.issuperset(own):
            chosen.add(number)
            met.update(own)
    return subset(dataset, sorted(chosen))


def mix(datasets: Sequence[Dataset], weights: Sequence[float] | None = None, name: str = "") -> Dataset:
    """Several datasets as one. A weight w says that an epoch sees round(w * len) samples of a dataset; None: all 1.

    Classes are kept where all datasets have the same ones. Raises UsageError for a weight that is not above 0, and for
    datasets of different classes, which `with_classes` puts into one list.
    """
    weights = [1.0] * len(datasets) if weights is None else list(map(float, weights))
    if len(weights) != len(datasets) or min(weights, default=1.0) <= 0:
        raise UsageError("`weights`: one for each dataset, greater than 0; leave a dataset out instead")
    return Mixture(datasets, weights, name or " + ".join(dataset.name for dataset in datasets))


class Mixture(Dataset):
    """Several datasets, one after the other; the order of samples is made elsewhere, from `parts`."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], name: str) -> None:
        self.datasets, self.weights, self.name = list(datasets), list(weights), name
        self._starts = np.cumsum([0, *map(len, self.datasets)])
        self._first_shards = np.cumsum([0, *(len(dataset.shards) for dataset in self.datasets)])
        self.shards = np.concatenate([np.empty(0, np.int64), *(dataset.shards for dataset in self.datasets)])
        self.remote = any(dataset.remote for dataset in self.datasets)
        self.window = min((dataset.window for dataset in self.datasets if dataset.window), default=0)
        self.troubles = bounded({key: why for dataset in self.datasets for key, why in dataset.troubles.items()})
        self.described = " + ".join(
            f"[{dataset.name}{'' if weight == 1 else f' @ {weight:g}'}: {dataset.described}]"
            for dataset, weight in zip(self.datasets, self.weights, strict=True)
        )
        often = [how_often(dataset) for dataset in self.datasets]
        if any(each is not None for each in often):
            ones = (np.ones(len(dataset), np.float32) for dataset in self.datasets)
            self.keep = np.concatenate([one if each is None else each for one, each in zip(ones, often, strict=True)])
        if any(dataset.has_classes for dataset in self.datasets):
            self._join_classes()

    def _join_classes(self) -> None:
        first = self.datasets[0]
        for other in self.datasets:
            if not (first.has_classes and other.has_classes and first.classes == other.classes):
                raise UsageError(
                    f"{first.name} and {other.name} have different classes: `with_classes` gives them one list"
                )
        self.classes, self.multi = first.classes, any(dataset.multi for dataset in self.datasets)
        self.labels = np.concatenate([dataset.labels for dataset in self.datasets])
        counts = np.concatenate([np.diff(dataset.offsets) for dataset in self.datasets])
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.datasets[part][index - int(self._starts[part])]

    @property
    def parts(self) -> list[tuple[int, float]]:
        return [(len(dataset), weight) for dataset, weight in zip(self.datasets, self.weights, strict=True)]

    def keys(self) -> Iterator[str]:
        return chain.from_iterable(dataset.keys() for dataset in self.datasets)

    def captions(self) -> Iterator[list[str]]:
        return chain.from_iterable(dataset.captions() for dataset in self.datasets)

    def fingerprint(self) -> list[Any]:
        return [[dataset.fingerprint(), weight] for dataset, weight in zip(self.datasets, self.weights, strict=True)]

    def prefetch(self, shards: Sequence[int]) -> None:
        wanted = np.asarray(shards, np.int64)
        for dataset, first, end in zip(self.datasets, self._first_shards, self._first_shards[1:], strict=False):
            own = wanted[(first <= wanted) & (wanted < end)]
            if len(own):
                dataset.prefetch((own - first).tolist())

    def missing(self) -> int:
        return sum(dataset.missing() for dataset in self.datasets)


def some_of(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """At most `limit` of its samples, drawn at random; 0: all."""
    if not limit or len(dataset) <= limit:
        return dataset
    return subset(dataset, np.sort(samples_at(np.arange(limit), len(dataset), seed)))


def shuffled(count: int, seed: int) -> np.ndarray:
    """int64 [count]: the numbers below count in random order."""
    return np.argsort(uniforms(np.arange(count), 1, seed ^ 0x5EED)[:, 0], kind="stable")


def share_of_each(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """int64: samples of a random part that has this share of every class, at least one, rounded. labels int64 [N]."""
    return _some(labels, seed, lambda there: max(1, round(share * there)))


def shots_of_each(labels: np.ndarray, shots: int, seed: int, classes: Sequence[str]) -> np.ndarray:
    """int64: so many random samples of every class. Raises UsageError for a class that has fewer."""
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < shots:
        raise UsageError(
            f"`shots` {shots}: class {classes[least]!r} has {counts[least]} training pictures; "
            f"{counts[least]} is the most that all {len(classes)} classes have"
        )
    return _some(labels, seed, lambda there: shots)


def _some(labels: np.ndarray, seed: int, number: Callable[[int], int]) -> np.ndarray:
    """number(samples of a class): how many of them. Class by class."""
    order, labels = shuffled(len(labels), seed), np.asarray(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]
    parts = np.split(by_class, np.cumsum(np.bincount(labels))[:-1])
    return np.concatenate([part[: number(len(part))] for part in parts])
