"""Captions of one file, a few thousand rows at a time: Parquet, CSV, TSV, JSONL, tar."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from catlip.data.tables import TEXT_COLUMNS, find_column, sniff
from catlip.data.tars import TarSource
from catlip.errors import UsageError

KEY_COLUMNS = [
    "key",
    "__key__",
    "uid",
    "id",
    "sample_id",
    "url",
    "image_url",
    "image",
    "filepath",
    "image_path",
    "path",
    "file",
    "filename",
    "file_name",
]
ROWS = 8192  # read at a time


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are used; a tar has none."""

    text: str = ""
    keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path, text_col: str | None, key_cols: str | None) -> "Columns":
        """Guess what is not given. Raises UsageError, naming the columns found, for one that is not there."""
        kind = kind_of(path)
        if kind == "tar":
            return cls("", ("key",))
        names = column_names(path, kind)
        text = find_column(path, names, text_col, TEXT_COLUMNS, "caption", "--text-col")
        if key_cols is not None:
            keys = tuple(find_column(path, names, key, (), "key", "--key-cols") for key in key_cols.split(",") if key)
        else:
            keys = tuple(name for name in names if name.lower() in KEY_COLUMNS and name != text)
        return cls(text, keys)


@dataclass(slots=True)
class Rows:
    """A few thousand samples: their key columns, and the captions of each."""

    keys: dict[str, Any]  # Arrow arrays or lists
    captions: list[list[Any]]

    def __len__(self) -> int:
        return len(self.captions)


def kind_of(path: Path) -> str:
    """ "parquet", "table" (CSV, TSV), "jsonl" or "tar", by the file's name."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".bz2")]
    kind = {
        ".parquet": "parquet", ".pq": "parquet", ".csv": "table", ".tsv": "table", ".txt": "table",
        ".jsonl": "jsonl", ".ndjson": "jsonl", ".tar": "tar",
    }.get(suffixes[-1] if suffixes else "")  # fmt: skip
    if kind is None:
        raise UsageError(f"{path}: captions are read from .parquet, .csv, .tsv, .jsonl (also .gz) and .tar files")
    return kind


def column_names(path: Path, kind: str) -> list[str]:
    if kind == "parquet":
        return _parquet(path).schema_arrow.names
    if kind == "table":
        return sniff(path)[1]
    first = next(_json_lines(path), None)
    if first is None:
        raise UsageError(f"{path} is empty")
    return list(first)


def describe(paths: list[Path], columns: Columns) -> str:
    """One line for people: what is read, and from which columns."""
    what = f"{len(paths)} files" if len(paths) > 1 else str(paths[0])
    if not columns.text:
        return f"{what}: captions from .txt members (else .json)"
    keys = f", keys from {', '.join(map(repr, columns.keys))}" if columns.keys else ""
    return f"{what}: captions from column {columns.text!r}{keys} (--text-col, --key-cols to change)"


def row_groups(path: Path, rows: int) -> Iterator[list[int] | None]:
    """Row groups of a Parquet file in bundles of about so many rows; [None] for other files, read whole."""
    if kind_of(path) != "parquet":
        yield None
        return
    meta = _parquet(path).metadata
    bundle, size = [], 0
    for group in range(meta.num_row_groups):
        bundle.append(group)
        size += meta.row_group(group).num_rows
        if size >= rows:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


def read_rows(path: Path, columns: Columns, groups: list[int] | None = None) -> Iterator[Rows]:
    """The rows of a file. Raises UsageError for a file that is damaged, naming it."""
    kind = kind_of(path)
    try:
        if kind == "tar":
            yield from _tar_rows(path)
        elif kind == "jsonl":
            yield from _json_rows(path, columns)
        else:
            for batch in _parquet_batches(path, columns, groups) if kind == "parquet" else _csv_batches(path, columns):
                text = batch.column(columns.text)
                keys = {name: batch.column(name) for name in columns.keys}
                yield Rows(keys, _captions_of(text, path, columns.text))
    except (
        pa.ArrowInvalid,
        pa.ArrowKeyError,
        KeyError,
        EOFError,
        gzip.BadGzipFile,
        UnicodeDecodeError,
    ) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _captions_of(text: pa.Array, path: Path, name: str) -> list[list[Any]]:
    kind = text.type
    if pa.types.is_null(kind):
        return [[None]] * len(text)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [several or [] for several in text.to_pylist()]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            or pa.types.is_dictionary(kind)):  # fmt: skip
        raise UsageError(f"{path}: column {name!r} holds {kind}, not text; name the captions' column with --text-col")
    return [[caption] for caption in text.to_pylist()]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None


def _parquet_batches(path: Path, columns: Columns, groups: list[int] | None) -> Iterator[pa.RecordBatch]:
    names = [columns.text, *columns.keys]
    yield from _parquet(path).iter_batches(batch_size=ROWS, row_groups=groups, columns=names)


def _csv_batches(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    separator, names = sniff(path)
    wanted = [columns.text, *columns.keys]
    with pa.input_stream(str(path), compression="detect") as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=1 << 20, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=separator == ","),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield from (batch.slice(start, ROWS) for start in range(0, len(batch), ROWS))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise UsageError(f"{path}, line {number}: not JSON: {line[:60]!r}") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {number}: expected an object with named fields, found {line[:60]!r}")
            yield row


def _json_rows(path: Path, columns: Columns) -> Iterator[Rows]:
    lines = _json_lines(path)
    while rows := list(islice(lines, ROWS)):
        found = [row.get(columns.text) for row in rows]
        captions = [several if isinstance(several, list) else [several] for several in found]
        keys = {name: [_plain(row.get(name)) for row in rows] for name in columns.keys}
        yield Rows(keys, captions)


def _plain(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _tar_rows(path: Path) -> Iterator[Rows]:
    source = TarSource([path], str(path))
    samples = zip(source.keys(), source.captions(), strict=True)
    while some := list(islice(samples, ROWS)):
        yield Rows({"key": [key for key, _ in some]}, [captions for _, captions in some])
