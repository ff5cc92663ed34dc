"""Where captioned pictures come from: one argument, whatever it names. Nothing in this file needs torch."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catlip.data.embedded import JsonLinesDataset, ParquetDataset, jsonl_has_bytes, parquet_has_bytes
from catlip.data.folders import FolderDataset, coco_source, listed
from catlip.data.paths import PathDataset, guess, table_source
from catlip.data.records import MAX_TROUBLES, Dataset, Sample, bounded
from catlip.data.remote import is_url, local_glob
from catlip.data.shards import expand, expand_names
from catlip.data.tables import column_names, kind_of
from catlip.data.tars import TarDataset
from catlip.errors import UsageError

__all__ = ["MAX_TROUBLES", "Dataset", "MixedDataset", "Sample", "TarDataset", "expand", "open_dataset", "parts"]


class MixedDataset:
    """Several sources one after the other. A weight w says that an epoch sees round(w * len) samples of a source.

    The order of samples is made elsewhere, from `parts`; by number, each sample is here once. Satisfies `Source`.
    """

    def __init__(self, sources: Sequence[Dataset], weights: Sequence[float], name: str) -> None:
        self.sources, self.weights, self.name = list(sources), list(weights), name
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self._first_shards = np.cumsum([0, *(len(source.shards) for source in self.sources)])
        self.shards = np.concatenate([source.shards for source in self.sources])
        self.remote = any(source.remote for source in self.sources)
        self.window = min((source.window for source in self.sources if source.window), default=0)
        self.troubles = bounded({key: why for source in self.sources for key, why in source.troubles.items()})
        self.described = " + ".join(
            f"[{source.name}{'' if weight == 1 else f' @ {weight:g}'}: {source.described}]"
            for source, weight in zip(self.sources, self.weights, strict=True)
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, number: int) -> Sample:
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


def parts(source: Dataset) -> list[tuple[int, float]]:
    """[(samples, weight)] of a source's parts in order; one part of weight 1 unless it is a mixture."""
    if isinstance(source, MixedDataset):
        return [(len(part), weight) for part, weight in zip(source.sources, source.weights, strict=True)]
    return [(len(source), 1.0)]


def missing_files(source: Dataset) -> int:
    """How many pictures that are files of their own are not there. It looks for each: seconds for a million."""
    if isinstance(source, MixedDataset):
        return sum(map(missing_files, source.sources))
    return source.missing() if isinstance(source, PathDataset) else 0


def open_dataset(
    data: str, image_col: str | None = None, text_col: str | None = None, cache_gb: float = 100.0
) -> Dataset:
    """Find out what `data` is, and open it. `a + b@2` mixes sources, the second seen twice an epoch.

    cache_gb: bound of the folder that remote shards are fetched to. Raises UsageError, naming what was found, for
    anything that cannot be read.
    """
    sources, weights = [], []
    for name, weight in mixed(data):
        sources.append(_open_one(name, image_col, text_col, cache_gb))
        weights.append(weight)
    return sources[0] if weights == [1.0] else MixedDataset(sources, weights, data)


def mixed(data: str) -> list[tuple[str, float]]:
    """`a + b@2` -> [("a", 1.0), ("b", 2.0)]. Raises UsageError for a weight of 0."""
    return [_weight(part) for part in re.split(r"\s+\+\s+", data.strip())]


def _weight(part: str) -> tuple[str, float]:
    match = re.fullmatch(r"(.+?)\s*@\s*(\d+\.?\d*|\.\d+)", part)
    if match is None or os.path.exists(part):
        return part, 1.0
    weight = float(match[2])
    if not weight:
        raise UsageError(f"`data` {part!r}: a weight is greater than 0; leave the source out instead")
    return match[1], weight


def located(data: str) -> tuple[str, list[str]]:
    """(kind, files or URLs) of what one part of `--data` names: a kind of `tables.kind_of`, or "folder".

    In a folder: a metadata file of Hugging Face's imagefolder, else shards, else pictures and sidecars. Raises
    UsageError for files that cannot be read, or not together.
    """
    names = expand_names(data)
    if len(names) == 1 and os.path.isdir(names[0]):
        for pattern in ("metadata.csv", "metadata.jsonl", "metadata.parquet", "*.tar", "*.parquet"):
            if found := local_glob(f"{glob.escape(names[0].rstrip('/'))}/{pattern}"):
                return kind_of(Path(found[0])), found
        return "folder", names
    packed = next((name for name in names if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".zip"))), None)
    if packed:
        raise UsageError(f"`data` {packed} is compressed; only plain tars can be read at any place: unpack it")
    kinds = {kind_of(Path(re.sub(r"[?#].*", "", name) if is_url(name) else name)) for name in names}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if not kind or (kind == "coco" and len(names) > 1):
        found = ", ".join(sorted({Path(name).suffix or "a folder" for name in names}))
        raise UsageError(
            f"`data` {data!r}: expected files of one kind (.tar, .csv, .tsv, .jsonl, .parquet), a COCO .json "
            f"or a folder, found {found}"
        )
    return kind, names


def _open_one(data: str, image_col: str | None, text_col: str | None, cache_gb: float) -> Dataset:
    kind, names = located(data)
    if kind == "folder":
        return FolderDataset(Path(names[0]))
    if kind == "tar":
        return TarDataset(names, data, cache_gb)
    if kind == "parquet" and parquet_has_bytes(names[0], image_col, text_col):
        return ParquetDataset(names, data, image_col, text_col, cache_gb)
    if any(map(is_url, names)):
        raise UsageError(f"`data` {data!r}: only tars, and Parquet with the bytes of pictures, are read from a URL")
    paths = list(map(Path, names))
    if kind == "coco":
        return coco_source(paths[0])
    if kind == "jsonl":
        image, _ = guess(names[0], column_names(paths[0], kind), image_col, text_col)
        if jsonl_has_bytes(paths[0], image):
            return JsonLinesDataset(paths, data, image_col, text_col)
    source = table_source(paths, data, image_col, text_col)
    if paths[0].stem == "metadata":  # of a folder of pictures; any other table can be about some of them
        named = {os.path.normpath(key) for key in source.keys()}  # noqa: SIM118 - not a mapping
        unnamed = [name for name, _ in listed(str(paths[0].parent), {}) if name not in named]
        if unnamed:
            source.note(unnamed[0], f"{len(unnamed):,} pictures of the folder have no row in {paths[0].name}")
    return source
