"""Tables with a column of paths of images: CSV, TSV, JSONL or Parquet. Nothing in this file needs torch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data import cache
from catlip.data.dataset import bounded
from catlip.data.files import is_url, kind_of
from catlip.data.image_files import Folders, PathDataset, image_table, listed, metadata_of, without_captions
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
    text_cells,
    text_columns,
)
from catlip.errors import UsageError
from catlip.notices import Progress

FACTS = b"catlip"
RELATIVE = "paths are relative to the table's folder"
NO_CAPTIONS = ""  # as text_col: only the pictures are wanted


def table_dataset(paths: list[Path], name: str, image_col: str | None, text_col: str | None) -> PathDataset:
    """Images named in the rows of CSV, TSV, JSONL or Parquet files of the same columns.

    Rows with the same path are one picture with several captions. Images of a folder that its metadata file does not
    name are noted as troubles. Raises UsageError.
    """
    columns = column_names(paths[0], kind_of(paths[0]))
    image, text = guess(str(paths[0]), columns, image_col, text_col)
    _refuse_urls(paths[0], image)
    identities = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    table = cache.kept_table([identities, image, text], lambda: _read(paths, image, text))
    facts = json.loads(table.schema.metadata[FACTS])
    if not len(table):
        raise UsageError(f"{name}: not one row has a picture in column {image!r}; name another with `image_col`")
    troubles = facts["troubles"]
    if paths[0].stem == "metadata":  # any other table can be about some of the images beside it
        named = {os.path.normpath(path) for path in table["image"].to_pylist()}
        if unnamed := [path for path, _ in listed(str(paths[0].parent), {}) if path not in named]:
            troubles[unnamed[0]] = f"{len(unnamed):,} pictures of the folder have no row in {paths[0].name}"
    described = columns_said("", image, text) + (without_captions(table) if text else "")
    return PathDataset(
        name,
        table,
        Folders(facts["folders"], RELATIVE),
        described=described,
        shards=facts["shards"],
        troubles=troubles,
        facts=[fact for path in paths for fact in (path.name, path.stat().st_size)],
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
    with Progress("reading", sum(path.stat().st_size for path in paths), bytes_=True) as progress:
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
    names = column_names(path, kind_of(path))
    missing = {image, *text_columns(text, names)} - {"", *names}
    if missing:
        raise UsageError(f"{path}: no column {missing.pop()!r}, which the first of the files has")
    first = first_rows(path, text_columns(text, names)) if text else {}
    captions = CaptionColumn(path, text, text_cells(first, text) if first else [])
    for chunk in chunks(path, troubles=troubles):
        yield _rows(chunk, image, text, folder, captions)


def _rows(chunk: Chunk, image: str, text: str, folder: int, captions: CaptionColumn | None = None) -> pa.Table:
    images = [_path_of(cell) for cell in values_of(chunk.get(image, []))]
    others = {name: values_of(column) for name, column in chunk.items() if name not in (image, text)}
    found = captions(text_cells(chunk, text)) if captions and text and chunk else [[] for _ in images]
    return image_table(images, found, _rest(others, len(images)), folder)


def _path_of(cell: Any) -> str:
    if isinstance(cell, dict):  # of Hugging Face: {"bytes": None, "path": "1.jpg"}
        cell = cell.get("path")
    return encodable(cell.strip()) if isinstance(cell, str) else ""


def _rest(others: Chunk, rows: int) -> list[str]:
    """The other cells of each row as JSON, but for empty ones and bytes."""
    if not others:
        return [""] * rows
    cells = zip(*others.values(), strict=True)
    return [json.dumps(metadata_of(dict(zip(others, row, strict=True)))) for row in cells]


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
