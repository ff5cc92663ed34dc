"""Captions of one file, a few thousand rows at a time, read as the datasets do; tables need no pictures here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from catlip.data.coco import coco_captions
from catlip.data.files import kind_of
from catlip.data.image_files import FolderDataset
from catlip.data.inline_images import is_bytes
from catlip.data.path_tables import values_of
from catlip.data.tables import (
    ROWS,
    TEXT_COLUMNS,
    CaptionColumn,
    chunks,
    column_names,
    find_column,
    first_rows,
    open_parquet,
    text_cells,
    text_columns,
)
from catlip.data.tars import TarDataset
from catlip.errors import UsageError

KEY_COLUMNS = (
    "key", "__key__", "uid", "id", "sample_id", "url", "image_url", "image", "filepath", "image_path", "path", "file",
    "filename", "file_name",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are used; a tar has none."""

    text: str = ""
    keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path, text_col: str | None, key_cols: str | None) -> "Columns":
        """Guess what is not given. Raises UsageError, naming the columns found, for one that is not there."""
        kind = _kind(path)
        if kind in ("tar", "coco", "folder"):
            return cls("", ("key",))
        names = column_names(path, kind)
        text = find_column(path, names, text_col, TEXT_COLUMNS, "caption", "`text_col`", lambda: first_rows(path))
        if key_cols is not None:
            keys = tuple(find_column(path, names, key, (), "key", "`key_cols`") for key in key_cols.split(",") if key)
        else:
            pictures = set()
            if kind == "parquet":
                schema = open_parquet(path, str(path)).schema_arrow
                pictures = {name for name in names if is_bytes(schema.field(name).type)}
            usual = (name for name in names if name.lower() in KEY_COLUMNS)
            keys = tuple(name for name in usual if name not in pictures and name not in text_columns(text, names))
        return cls(text, keys)


@dataclass(slots=True)
class Rows:
    """A few thousand samples: their key columns, and the captions of each."""

    keys: dict[str, pa.Array]
    captions: list[list[str]]  # none where they are missing

    def __len__(self) -> int:
        return len(self.captions)


def _kind(path: Path) -> str:
    kind = "folder" if path.is_dir() else kind_of(path)
    if not kind:
        kinds = ".parquet, .csv, .tsv, .jsonl (also .gz), .tar and .json files, and folders of pictures"
        raise UsageError(f"{path}: captions are read from {kinds}")
    return kind


def describe(paths: list[Path], columns: Columns) -> str:
    """One line for people: what is read, and from which columns."""
    what = f"{len(paths)} files" if len(paths) > 1 else str(paths[0])
    if not columns.text:
        return f"{what}: captions of the samples in it"
    keys = f", keys from {', '.join(map(repr, columns.keys))}" if columns.keys else ""
    separator = _captions_of(paths[0], columns).separator
    tags = f", tags separated by {separator!r}" if separator else ""
    return f"{what}: captions from column {columns.text!r}{tags}{keys} (`text_col`, `key_cols` to change)"


def row_groups(path: Path, rows: int) -> Iterator[list[int] | None]:
    """Row groups of a Parquet file in bundles of about so many rows; [None] for other files, read whole."""
    if _kind(path) != "parquet":
        yield None
        return
    meta = open_parquet(path, str(path)).metadata
    bundle, size = [], 0
    for group in range(meta.num_row_groups):
        bundle.append(group)
        size += meta.row_group(group).num_rows
        if size >= rows:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


def read_rows(
    path: Path, columns: Columns, groups: list[int] | None = None, troubles: dict[str, str] | None = None
) -> Iterator[Rows]:
    """The rows of a file. troubles: gets what was left out. Raises UsageError for a file that is damaged, naming it."""
    kind, troubles = _kind(path), {} if troubles is None else troubles
    if kind in ("tar", "coco", "folder"):
        yield from _source_rows(path, kind, troubles)
        return
    captions = _captions_of(path, columns)
    texts = text_columns(columns.text, column_names(path, kind))
    for chunk in chunks(path, list(dict.fromkeys([*texts, *columns.keys])), groups, troubles=troubles):
        keys = {name: _plain(chunk[name]) for name in columns.keys}
        yield Rows(keys, captions(text_cells(chunk, columns.text)))


def _captions_of(path: Path, columns: Columns) -> CaptionColumn:
    first = first_rows(path, text_columns(columns.text, column_names(path, _kind(path))))
    return CaptionColumn(path, columns.text, text_cells(first, columns.text) if first else [])


def _plain(values: Any) -> pa.Array:
    """A key column; what JSON has beside strings is written as JSON."""
    if isinstance(values, pa.Array):
        return values
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values_of(values)]
    return pa.array([None if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def _source_rows(path: Path, kind: str, troubles: dict[str, str]) -> Iterator[Rows]:
    if kind == "coco":  # whose pictures need not be here
        samples = ((name, captions) for name, (captions, _) in coco_captions(path).items())
    else:
        source = TarDataset([path], str(path)) if kind == "tar" else FolderDataset(path)
        troubles.update(source.troubles)
        samples = zip(source.keys(), source.captions(), strict=True)
    while some := list(islice(samples, ROWS)):
        yield Rows({"key": _plain([key for key, _ in some])}, [captions for _, captions in some])
