"""Where captioned pictures come from: one argument, whatever it names. Nothing in this file needs torch."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catlip.data.records import MAX_TROUBLES, Record, Source, bounded
from catlip.data.shards import expand, expand_names
from catlip.data.tables import TableSource
from catlip.data.tars import TarSource
from catlip.errors import UsageError

__all__ = ["MAX_TROUBLES", "Mixture", "Record", "Source", "TarSource", "expand", "open_source", "parts"]


class Mixture:
    """Several sources one after the other. A weight w says that an epoch sees round(w * len) samples of a source.

    The order of samples is made elsewhere, from `parts`; by number, each sample is here once. Satisfies `Source`.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], name: str) -> None:
        self.sources, self.weights, self.name = list(sources), list(weights), name
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self._first_shards = np.cumsum([0, *(len(source.shards) for source in self.sources)])
        self.shards = np.concatenate([source.shards for source in self.sources])
        self.remote = any(source.remote for source in self.sources)
        self.troubles = bounded({key: why for source in self.sources for key, why in source.troubles.items()})
        self.described = " + ".join(
            f"[{source.name}{'' if weight == 1 else f' @ {weight:g}'}: {source.described}]"
            for source, weight in zip(self.sources, self.weights, strict=True)
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, number: int) -> Record:
        part = int(np.searchsorted(self._starts, number, "right")) - 1
        return self.sources[part].read(number - int(self._starts[part]))

    def captions(self) -> Iterator[list[str]]:
        for source in self.sources:
            yield from source.captions()

    def fingerprint(self) -> list[Any]:
        return [[source.fingerprint(), weight] for source, weight in zip(self.sources, self.weights, strict=True)]

    def prefetch(self, shards: Sequence[int]) -> None:
        wanted = np.asarray(shards, np.int64)
        for source, first, end in zip(self.sources, self._first_shards, self._first_shards[1:], strict=False):
            own = wanted[(first <= wanted) & (wanted < end)]
            if len(own):
                source.prefetch((own - first).tolist())


def parts(source: Source) -> list[tuple[int, float]]:
    """[(samples, weight)] of a source's parts in order; one part of weight 1 unless it is a mixture."""
    if isinstance(source, Mixture):
        return [(len(part), weight) for part, weight in zip(source.sources, source.weights, strict=True)]
    return [(len(source), 1.0)]


def open_source(
    data: str, image_col: str | None = None, text_col: str | None = None, cache_gb: float = 100.0
) -> Source:
    """Find out what `data` is, and open it. `a + b@2` mixes sources, the second seen twice an epoch.

    cache_gb: bound of the folder that remote shards are fetched to. Raises UsageError, naming what was found, for
    anything that cannot be read.
    """
    sources, weights = [], []
    for part in re.split(r"\s+\+\s+", data.strip()):
        name, weight = _weight(part)
        sources.append(_open_one(name, image_col, text_col, cache_gb))
        weights.append(weight)
    return sources[0] if weights == [1.0] else Mixture(sources, weights, data)


def _weight(part: str) -> tuple[str, float]:
    match = re.fullmatch(r"(.+?)\s*@\s*(\d+\.?\d*|\.\d+)", part)
    if match is None or os.path.exists(part):
        return part, 1.0
    weight = float(match[2])
    if not weight:
        raise UsageError(f"--data {part!r}: a weight is greater than 0; leave the source out instead")
    return match[1], weight


def _open_one(data: str, image_col: str | None, text_col: str | None, cache_gb: float) -> Source:
    names = expand_names(data)
    kinds = {Path(name).suffix.lower() for name in names}
    if kinds <= {".tar"}:
        return TarSource(names, data, cache_gb)
    if kinds <= {".csv", ".tsv", ".txt"} and len(names) == 1:
        return TableSource(Path(names[0]), image_col, text_col)
    found = ", ".join(sorted(kinds)) if len(kinds) > 1 else (kinds.pop() or "a folder")
    raise UsageError(f"--data {data!r}: expected .tar shards or one .csv or .tsv file, found {found}")
