"""Where captioned pictures come from: tar shards, or a table with the paths of pictures.

A source knows how many samples it has and reads any of them by number, from any thread or process. Pictures stay
encoded here; `images.py` opens them. Nothing in this file needs torch.
"""

import csv
import gzip
import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from catlip.data.shards import Member, Sample, expand, load_index
from catlip.errors import UsageError

IMAGE_COLUMNS = (
    "image",
    "filepath",
    "image_path",
    "path",
    "file",
    "filename",
    "file_name",
    "img",
    "image_file",
)
TEXT_COLUMNS = ("caption", "text", "title", "alt", "alt_text", "description", "captions", "label", "name")


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as it lies on disk."""

    key: str
    image: bytes
    captions: list[str]
    label: str | None = None  # of a classification set (`cls`)
    metadata: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Samples by number. `read` is safe from several threads at once."""

    name: str
    described: str  # what was found, for people

    def __len__(self) -> int: ...

    def read(self, number: int) -> Record: ...

    def captions(self) -> Iterator[list[str]]: ...

    def fingerprint(self) -> list[Any]: ...


class TarSource:
    """Samples of WebDataset-format tars, in the order of the shards."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self.paths = list(paths)
        self._samples: list[tuple[int, Sample]] = []
        for shard, path in enumerate(self.paths):
            self._samples += [(shard, sample) for sample in load_index(path)]
        if not self._samples:
            raise UsageError(f"{name}: the tars hold no samples")
        self.described = f"{len(self):,} samples in {len(self.paths)} tar{'s' if len(self.paths) > 1 else ''}"
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:  # file descriptors and locks do not travel to worker processes
        return {**self.__dict__, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _bytes(self, shard: int, member: Member) -> bytes:
        file = self._files.get(shard)
        if file is None:
            with self._lock:
                file = self._files.setdefault(shard, os.open(self.paths[shard], os.O_RDONLY))
        return os.pread(file, member.size, member.offset)

    def read(self, number: int) -> Record:
        shard, sample = self._samples[number]
        image = sample.image()
        label = sample.members.get("cls")
        return Record(
            key=sample.key,
            image=self._bytes(shard, image) if image else b"",
            captions=self._captions(shard, sample),
            label=self._bytes(shard, label).decode("utf-8", "replace").strip() if label else None,
        )

    def _captions(self, shard: int, sample: Sample) -> list[str]:
        """One caption a line of KEY.txt; else "caption(s)" or "text(s)" of KEY.json."""
        text = sample.members.get("txt") or sample.members.get("caption")
        if text:
            return _lines(self._bytes(shard, text).decode("utf-8", "replace"))
        described = sample.members.get("json")
        if described is None:
            return []
        try:
            fields = json.loads(self._bytes(shard, described))
        except ValueError:
            return []
        for name in ("captions", "caption", "texts", "text"):
            found = fields.get(name) if isinstance(fields, dict) else None
            if isinstance(found, str):
                return _lines(found)
            if isinstance(found, list):
                return [c for c in found if isinstance(c, str)]
        return []

    def keys(self) -> Iterator[str]:
        return (sample.key for _, sample in self._samples)

    def captions(self) -> Iterator[list[str]]:
        for shard, sample in self._samples:
            yield self._captions(shard, sample)

    def fingerprint(self) -> list[Any]:
        return [[path.name, path.stat().st_size] for path in self.paths] + [len(self)]


class TableSource:
    """Rows of a CSV or TSV file: the path of a picture and its caption. A picture may have several rows."""

    def __init__(self, path: Path, image_col: str | None = None, text_col: str | None = None) -> None:
        self.name = str(path)
        self.path = path
        separator, columns = sniff(path)
        image = find_column(path, columns, image_col, IMAGE_COLUMNS, "image", "--image-col")
        text = find_column(path, columns, text_col, TEXT_COLUMNS, "caption", "--text-col")
        self.described = f"separator {separator!r}, pictures from column {image!r}, captions from column {text!r}"
        captions: dict[str, list[str]] = {}
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            for row in csv.DictReader(file, delimiter=separator):
                if row.get(image):
                    captions.setdefault(row[image], []).append(row.get(text) or "")
        if not captions:
            raise UsageError(f"{path} has a header but no rows with a picture in column {image!r}")
        self._rows = list(captions.items())
        self._folder = path.parent
        self.described = f"{len(self):,} pictures, {self.described}"

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> Record:
        file, captions = self._rows[number]
        try:
            image = (self._folder / file).read_bytes()
        except OSError:
            image = b""  # counted and named with the other pictures that cannot be read
        return Record(key=file, image=image, captions=captions)

    def captions(self) -> Iterator[list[str]]:
        yield from (captions for _, captions in self._rows)

    def fingerprint(self) -> list[Any]:
        return [self.path.name, self.path.stat().st_size, len(self)]


def open_source(data: str, image_col: str | None = None, text_col: str | None = None) -> Source:
    """Find out what `data` is: a pattern of tars, or a CSV or TSV file.

    Raises UsageError, naming what was found, for anything that is neither.
    """
    paths = expand(data)
    kinds = {path.suffix.lower() for path in paths}
    if kinds <= {".tar"}:
        return TarSource(paths, data)
    if kinds <= {".csv", ".tsv", ".txt"} and len(paths) == 1:
        return TableSource(paths[0], image_col, text_col)
    found = ", ".join(sorted(kinds)) if len(kinds) > 1 else (kinds.pop() or "a folder")
    raise UsageError(f"--data {data!r}: expected .tar shards or one .csv or .tsv file, found {found}")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def sniff(path: Path) -> tuple[str, list[str]]:
    """(separator, column names) of a table, from its first line."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        header = file.readline(1_000_000).rstrip("\r\n")
    if not header:
        raise UsageError(f"{path} is empty")
    separator = max(",\t;|", key=header.count)
    return separator, next(csv.reader(io.StringIO(header), delimiter=separator))


def find_column(
    path: Path, columns: list[str], wanted: str | None, usual: tuple[str, ...], role: str, flag: str
) -> str:
    """The column of a role: the one asked for, or the first with a usual name."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UsageError(f"{path}: no column {wanted!r} ({flag}). Columns found: {', '.join(columns)}")
    by_lower = {column.lower().strip(): column for column in reversed(columns)}
    for name in usual:
        if name in by_lower:
            return by_lower[name]
    raise UsageError(f"{path}: which column holds the {role}? Columns found: {', '.join(columns)}. Name it with {flag}")
