"""Tables of captioned pictures."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catlip.data.records import Record
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
        self.shards, self.troubles, self.remote = np.array([len(self)]), {}, False
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

    def prefetch(self, shards: Sequence[int]) -> None:
        pass

    def fingerprint(self) -> list[Any]:
        return [self.path.name, self.path.stat().st_size, len(self)]


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
