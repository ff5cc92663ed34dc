"""Pictures that are files of their own, named by a table, a folder or a COCO file.

What a table says is kept as Arrow columns, one row a picture, that later runs map into memory. Paths may point
anywhere, `../../other/1.jpg` too: data sets do that, and a path is only ever opened as a picture. Only regular files
are opened, so a pipe or a device in a table cannot stop a run. Nothing in this file needs torch.
"""

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from catlip.data import indexes
from catlip.data.dataset import Dataset, NoImage, Sample, bounded, troubles_said
from catlip.data.remote import OpenFile, is_url
from catlip.data.shards import MAX_MEMBER
from catlip.data.tables import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    CaptionColumn,
    Chunk,
    chunks,
    column_names,
    encodable,
    find_column,
    first_rows,
    kind_of,
)
from catlip.errors import UsageError

TEXTS = pa.large_list(pa.large_string())
FACTS = b"catlip"
RELATIVE = "paths are relative to the table's folder"
NO_CAPTIONS = ""  # as text_col: only the pictures are wanted


class Pictures(Protocol):
    """Pictures by name."""

    def read(self, folder: int, name: str) -> bytes:
        """b"" if there is none."""
        ...


class Folders:
    """Pictures by their paths, relative to one of some folders."""

    def __init__(self, folders: Sequence[str], relative: str = "") -> None:
        """relative: to what paths are relative, for whoever looks for a missing file."""
        self.folders, self.relative = list(folders), relative
        self._listings = 3  # folders that are searched for a name of other capitals: an explanation, not a service

    def path(self, folder: int, name: str) -> str:
        if name.startswith("file://"):
            name = unquote(name.removeprefix("file://"))
        return os.path.join(self.folders[folder], name)

    def read(self, folder: int, name: str) -> bytes:
        """The picture, or why there is none; it is counted and named with the others that cannot be read."""
        path = self.path(folder, name)
        try:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            if not stat.S_ISREG(os.fstat(file.descriptor).st_mode):
                return NoImage(f"{path} is no file with a picture")
            return file.read(0, file.size) if file.size <= MAX_MEMBER else NoImage(f"{path} has {file.size:,} bytes")
        except FileNotFoundError:
            return NoImage(self._why(path, name))
        except (OSError, ValueError) as error:
            return NoImage(f"{path[:200]}: {error.strerror if isinstance(error, OSError) else error}")

    def missing(self, folders: Sequence[int], names: Sequence[str]) -> int:
        """How many of these there are not."""
        return sum(not os.path.exists(self.path(f, name)) for f, name in zip(folders, names, strict=True))

    def _why(self, path: str, name: str) -> str:
        if is_url(name):
            return "a URL, and catlip downloads no pictures: fetch them first"
        why = f"no such file: {os.path.abspath(path)}"
        if "\\" in name and os.path.exists(self.path(0, name.replace("\\", "/"))):
            return f"{why} (write / instead of \\)"
        if name.startswith("~"):
            return f"{why} (~ is not expanded: write the whole path)"
        if self._listings > 0 and os.path.isdir(os.path.dirname(path)):
            self._listings -= 1
            base = os.path.basename(path)
            alike = next((n for n in os.listdir(os.path.dirname(path)) if n.casefold() == base.casefold()), None)
            if alike:
                return f"{why} (there is {alike})"
        return f"{why} ({self.relative})" if self.relative else why


class PathDataset(Dataset):
    """One row a picture: its path, captions, and what else the table says.

    table: image [large_string], folder [uint32: which of the pictures' folders], captions [TEXTS], rest [JSON text].
    """

    def __init__(
        self,
        name: str,
        described: str,
        table: pa.Table,
        pictures: Pictures,
        shards: list[int],
        troubles: dict[str, str],
        facts: list[Any],
    ) -> None:
        self.name, self.pictures, self._facts = name, pictures, facts
        self.shards = np.array(shards, np.int64)
        self.troubles = bounded(troubles)
        self._described = f"{len(table):,} pictures{described}"
        self.described = self._described + troubles_said(troubles)
        self._columns = {column: table[column].combine_chunks() for column in table.column_names}

    def __len__(self) -> int:
        return len(self._columns["image"])

    def __getitem__(self, number: int) -> Sample:
        name = self._columns["image"][number].as_py()
        rest = self._columns["rest"][number].as_py()
        image = self.pictures.read(self._columns["folder"][number].as_py(), name)
        return Sample(name, image, self._captions_of(number), metadata=json.loads(rest) if rest else {})

    def note(self, where: str, why: str) -> None:
        """One more trouble, found by whoever opened this."""
        self.troubles[where] = why
        self.described = self._described + troubles_said(self.troubles)

    def missing(self) -> int:
        """How many of the files are not there; 0 for pictures that are no files of their own."""
        if not isinstance(self.pictures, Folders):
            return 0
        return self.pictures.missing(self._columns["folder"].to_pylist(), self._columns["image"].to_pylist())

    def _captions_of(self, number: int) -> list[str]:
        return self._columns["captions"][number].as_py()

    def keys(self) -> Iterator[str]:
        return (name.as_py() for name in self._columns["image"])

    def captions(self) -> Iterator[list[str]]:
        return map(self._captions_of, range(len(self)))

    def fingerprint(self) -> list[Any]:
        return [*self._facts, len(self)]


def table_source(paths: list[Path], name: str, image_col: str | None, text_col: str | None) -> PathDataset:
    """Pictures named in the rows of CSV, TSV, JSONL or Parquet files of the same columns.

    Rows with the same path are one picture with several captions. Raises UsageError.
    """
    columns = column_names(paths[0], kind_of(paths[0]))
    image, text = guess(str(paths[0]), columns, image_col, text_col)
    _refuse_urls(paths[0], image)
    identities = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    kept = indexes.name_of([identities, image, text])
    table = indexes.load(kept)
    if table is None:
        began = time.monotonic()
        table = _read(paths, image, text)
        if time.monotonic() - began > indexes.WORTH_KEEPING:
            table = indexes.keep(kept, table)
    facts = json.loads(table.schema.metadata[FACTS])
    if not len(table):
        raise UsageError(f"{name}: not one row has a picture in column {image!r}; name another with `image_col`")
    described = columns_said("", image, text) + (without_captions(table) if text else "")
    fingerprint = [fact for path in paths for fact in (path.name, path.stat().st_size)]
    return PathDataset(
        name, described, table, Folders(facts["folders"], RELATIVE), facts["shards"], facts["troubles"], fingerprint
    )


def guess(path: str, columns: list[str], image_col: str | None, text_col: str | None) -> tuple[str, str]:
    """(image column, caption column); where only one other column is left, it holds the captions.

    text_col: "" where captions are not wanted.
    """

    def first() -> Chunk:
        return {} if is_url(path) else first_rows(Path(path))

    image = find_column(path, columns, image_col, IMAGE_COLUMNS, "picture", "`image_col`", first)
    if text_col == NO_CAPTIONS:
        return image, NO_CAPTIONS
    others = [column for column in columns if column != image]
    usual = TEXT_COLUMNS if len(others) != 1 else (*TEXT_COLUMNS, others[0].lower().strip())
    return image, find_column(path, others, text_col, usual, "caption", "`text_col`", first)


def columns_said(what: str, image: str, text: str) -> str:
    """A piece of `described`."""
    captions = f", captions from column {text!r}" if text else ""
    return f"{what} from column {image!r}{captions} (`image_col`, `text_col` to change)"


def without_captions(table: pa.Table) -> str:
    """A piece of `described`: how many pictures have no caption, if any."""
    without = int((np.diff(table["captions"].combine_chunks().offsets.to_numpy()) == 0).sum())
    return f", {without:,} of them without a caption" if without else ""


def _refuse_urls(path: Path, image: str) -> None:
    values = [value for value in values_of(first_rows(path).get(image, [])) if value]
    if values and all(isinstance(value, str) and value.startswith(("http://", "https://")) for value in values):
        raise UsageError(
            f"{path}: column {image!r} holds URLs, and catlip does not download: fetch the pictures with img2dataset, "
            f"whose tars `data` takes, or name a column of paths with `image_col`"
        )


def values_of(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


def _read(paths: list[Path], image: str, text: str) -> pa.Table:
    folders = list(dict.fromkeys(str(path.parent) for path in paths))
    troubles: dict[str, str] = {}
    rows, ends = [], []
    with indexes.Progress("reading", sum(path.stat().st_size for path in paths), bytes_=True) as progress:
        for path in paths:
            folder = folders.index(str(path.parent))
            rows += _file_rows(path, image, text, folder, troubles)
            ends.append(sum(map(len, rows)))
            progress.advance(path.stat().st_size)
    table = pa.concat_tables(rows) if rows else _rows({}, image, text, 0)
    has_picture = table["image"].combine_chunks().to_numpy(zero_copy_only=False) != ""
    if not has_picture.all():
        troubles[paths[0].name] = f"{int((~has_picture).sum()):,} rows without a picture are left out"
        table, ends = table.filter(pa.array(has_picture)), np.cumsum(has_picture)[np.array(ends) - 1].tolist()
    table, first_row = group(table)
    shards = np.diff(np.searchsorted(first_row, [0, *ends])).tolist()
    facts = {"folders": folders, "shards": shards, "troubles": bounded(troubles)}
    return table.replace_schema_metadata({FACTS: json.dumps(facts)})


def _file_rows(path: Path, image: str, text: str, folder: int, troubles: dict[str, str]) -> Iterator[pa.Table]:
    missing = {image, text} - {"", *column_names(path, kind_of(path))}
    if missing:
        raise UsageError(f"{path}: no column {missing.pop()!r}, which the first of the files has")
    captions = CaptionColumn(path, text, first_rows(path, [text] if text else None).get(text, []))
    for chunk in chunks(path, troubles=troubles):
        yield _rows(chunk, image, text, folder, captions)


def _rows(chunk: Chunk, image: str, text: str, folder: int, captions: CaptionColumn | None = None) -> pa.Table:
    images = [_path_of(cell) for cell in values_of(chunk.get(image, []))]
    others = {name: values_of(column) for name, column in chunk.items() if name not in (image, text)}
    found = captions(chunk[text]) if captions and text in chunk else [[] for _ in images]
    return pa.table(
        {
            "image": pa.array(images, pa.large_string()),
            "folder": pa.array(np.full(len(images), folder, np.uint32)),
            "captions": pa.array(found, TEXTS),
            "rest": pa.array(_rest(others, len(images)), pa.large_string()),
        }
    )


def _path_of(cell: Any) -> str:
    if isinstance(cell, dict):  # of Hugging Face: {"bytes": None, "path": "1.jpg"}
        cell = cell.get("path")
    return encodable(cell.strip()) if isinstance(cell, str) else ""


def _rest(others: Chunk, rows: int) -> list[str]:
    """The other cells of each row as JSON, but for empty ones and bytes."""
    if not others:
        return [""] * rows
    cells = (zip(others, row, strict=True) for row in zip(*others.values(), strict=True))
    return [json.dumps(plain(row)) for row in cells]


def plain(cells: Any) -> dict[str, Any]:
    """What of (name, value) pairs fits into JSON and says something."""
    found = {}
    for name, value in cells:
        if value is None or value == "" or isinstance(value, bytes):
            continue
        if not isinstance(value, str | int | float | bool):
            value = json.loads(json.dumps(value, default=lambda v: None if isinstance(v, bytes) else str(v)))
        found[name] = value
    return found


def group(rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """(rows with all captions of a picture in one, first row of each picture: int64), in order of appearance."""
    names = rows["image"].combine_chunks()
    folder = rows["folder"].to_numpy()
    codes = names.dictionary_encode().indices.to_numpy().astype(np.int64)
    if len(folder) and folder.max() > 0:
        codes = codes * (int(folder.max()) + 1) + folder
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    appearance = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[appearance] = np.arange(len(first))
    first, codes = first[appearance], rank[codes]
    if len(first) == len(rows):
        return rows.combine_chunks(), first
    by_picture = np.argsort(codes, kind="stable")
    captions = rows["captions"].combine_chunks().take(pa.array(by_picture))
    ends = captions.offsets.to_numpy()
    starts = np.searchsorted(codes[by_picture], np.arange(len(first) + 1))
    lists = pa.LargeListArray.from_arrays(pa.array(ends[starts], pa.int64()), captions.flatten())
    grouped = rows.take(pa.array(first)).combine_chunks()
    return grouped.set_column(grouped.schema.get_field_index("captions"), "captions", lists), first
