"""What every source of captioned pictures gives and can do. Pictures stay encoded; `images.py` opens them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

MAX_TROUBLES = 1000


class NoImage(bytes):
    """b"" where a picture should be, and why there is none."""

    why: str

    def __new__(cls, why: str) -> "NoImage":
        self = super().__new__(cls)
        self.why = why
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return NoImage, (self.why,)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it lies on disk."""

    key: str
    image: bytes  # encoded; b"" (`NoImage` where it is known why) if there is none that can be read
    captions: list[str]
    label: str | None = None  # of a classification set (`cls`)
    metadata: dict[str, Any] = field(default_factory=dict)  # what else is known: url, licence ...; fit for JSON


class Dataset(Protocol):
    """Samples by number. `read` is safe from several threads and, after pickling or a fork, several processes."""

    name: str
    described: str  # what was found, for people: one line
    shards: np.ndarray  # int64: samples of each unit that lies together (tar, row group, table), in order
    troubles: dict[str, str]  # "shard.tar: member" -> what was skipped or repaired; 1000 at most, and a count
    remote: bool  # shards come through a bounded cache: samples near one another in time should be of few shards

    window: int  # so many samples in a row can be at hand at once, where that is bounded (row groups in memory); else 0

    def __len__(self) -> int: ...

    def read(self, number: int) -> Sample:
        """Never raises for a bad sample; UsageError if its file is gone."""
        ...

    def captions(self) -> Iterator[list[str]]:
        """Captions of all samples in order, without reading the pictures."""
        ...

    def fingerprint(self) -> list[Any]:
        """Facts (fit for JSON) that change when the samples or their order change."""
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """A hint that these are needed soon, the soonest first; never blocks; nothing happens for local files."""
        ...


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
