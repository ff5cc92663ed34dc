"""A dataset is anything with a length that gives samples. Nothing in this file needs torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from catlip.errors import UsageError

MAX_TROUBLES = 1000


class NoImage(bytes):
    """b"" where an image should be, and why there is none."""

    why: str

    def __new__(cls, why: str) -> "NoImage":
        self = super().__new__(cls)
        self.why = why
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return NoImage, (self.why,)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a dataset.

    >>> Sample("1", b"...", ["a dog"]).captions
    ['a dog']
    """

    key: str
    # Encoded bytes, a PIL image, or uint8 [h, w, 3]; b"" (`NoImage` where the reason is known) if it cannot be read
    image: Any
    captions: list[str]
    # Class indices, ascending (tuple[int, ...]), `Objects`, a mask (bytes of a PNG, or an array [h, w]), or None
    target: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)  # what else is known: url, licence ...; fit for JSON


class Dataset:
    """Samples by index. A subclass needs `__len__` and `__getitem__`; all else has a default.

    `dataset[i]` must be safe from several threads, and after a fork or pickling from several processes, as loader
    workers read it. It does not raise for an image that cannot be read: such a sample has an image that does not
    decode, and the run skips, counts and names it.

    >>> class Reds(Dataset):
    ...     def __len__(self):
    ...         return 3
    ...     def __getitem__(self, index):
    ...         return Sample(str(index), np.full((8, 8, 3), [200, 0, 0], np.uint8), ["something red"])
    >>> list(Reds().captions())
    [['something red'], ['something red'], ['something red']]
    """

    remote: bool = False  # shards come through a bounded cache: samples near one another in time should share shards
    window: int = 0  # how many samples in a row can be at hand at once, where that is bounded (row groups); else 0

    keep: np.ndarray | None = None  # float [N]: how often each sample is in an epoch, on average; None: once

    # Of datasets whose targets are class indices only:
    classes: list[str]  # names
    labels: np.ndarray  # int64 [sum L]: sample n has the classes labels[offsets[n]:offsets[n + 1]], ascending
    offsets: np.ndarray  # int64 [N + 1]
    multi: bool = False  # samples may have several classes, or none

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """Raises UsageError if the sample's file is gone; never for a damaged image."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    @cached_property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @cached_property
    def described(self) -> str:
        """One line for people: what was found."""
        return f"{len(self):,} samples"

    @cached_property
    def shards(self) -> np.ndarray:
        """int64: samples of each unit that lies together (tar, row group, table), in order."""
        return np.array([len(self)], np.int64)

    @cached_property
    def troubles(self) -> dict[str, str]:
        """{"shard.tar: member": what was skipped or repaired}; 1000 at most, and a count."""
        return {}

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [shards + 1]: the first sample of each shard, and how many there are."""
        return np.concatenate([[0], np.cumsum(self.shards)])

    def shard_of(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, "right")) - 1

    @property
    def parts(self) -> list[tuple[int, float]]:
        """[(samples, weight)] of the datasets that this is a mixture of, in order; one of weight 1 if it is none."""
        return [(len(self), 1.0)]

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class indices, and `classes`, `labels` and `offsets` are there."""
        return hasattr(self, "classes") and hasattr(self, "labels")

    def keys(self) -> Iterator[str]:
        """Keys of all samples in order; many readers have them without reading the images."""
        return (sample.key for sample in self)

    def captions(self) -> Iterator[list[str]]:
        """Captions of all samples in order; readers have them without reading the images."""
        return (sample.captions for sample in self)

    def fingerprint(self) -> list[Any]:
        """Facts, fit for JSON, that change when the samples or their order change: a run resumes on the same ones only.

        Raises UsageError for a dataset that cannot know.
        """
        raise UsageError(
            f"`fingerprint` of {self.name} is not known, and a run needs it to resume on the same data: open it with "
            '`fingerprint`, any text that you change with the data: open_dataset(data, fingerprint="v1")'
        )

    def prefetch(self, shards: Sequence[int]) -> None:
        """A hint that these shards are needed soon, the soonest first. Never blocks; does nothing for local files."""

    def missing(self) -> int:
        """How many image files are not there. It looks for each: seconds for a million."""
        return 0

    def counts(self) -> np.ndarray:
        """Samples of each class: int64 [classes]."""
        return np.bincount(self.labels, minlength=len(self.classes))


def troubles_said(troubles: dict[str, str]) -> str:
    """A piece of `described`: how many troubles there were, and the first."""
    if not troubles:
        return ""
    first, why = next(iter(troubles.items()))
    return f" ({len(troubles):,} troubles, e.g. {first}: {why})"


def bounded(troubles: dict[str, str]) -> dict[str, str]:
    """The first thousand, and how many more there were."""
    if len(troubles) <= MAX_TROUBLES:
        return troubles
    first = dict(list(troubles.items())[:MAX_TROUBLES])
    return {**first, "more": f"{len(troubles) - MAX_TROUBLES:,} others like these"}


def lines(text: str) -> list[str]:
    """Captions of a text: one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def captions_in(value: Any) -> list[str]:
    """Captions of a cell: a string is one (or several, one a line), a list holds several."""
    if isinstance(value, str):
        return lines(value)
    return [caption for caption in value if isinstance(caption, str)] if isinstance(value, list) else []
