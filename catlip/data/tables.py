"""CSV, TSV, JSONL and Parquet files: which columns there are, which are meant, and a few thousand rows at a time."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from catlip.errors import UsageError

IMAGE_COLUMNS = (
    "image", "filepath", "image_path", "path", "file", "filename", "file_name", "img", "image_file", "jpg", "png",
    "webp", "image_bytes", "image_base64", "picture", "photo", "bytes", "url", "image_url",
)  # fmt: skip
TEXT_COLUMNS = (
    "caption", "text", "title", "alt", "alt_text", "description", "captions", "texts", "sentences", "raw", "txt",
    "prompt", "label", "name",
)  # fmt: skip
ROWS = 8192  # read at a time
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "table", ".tsv": "table", ".txt": "table", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".tar": "tar", ".json": "coco",
}  # fmt: skip

Chunk = dict[str, Any]  # column -> Arrow array, or (JSONL) a list; all of one length


def kind_of(path: Path) -> str:
    """ "parquet", "table" (CSV, TSV), "jsonl", "coco" (a captions JSON) or "tar", by the file's name; else ""."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".bz2")]
    return KINDS.get(suffixes[-1] if suffixes else "", "")


def open_parquet(file: Any, name: str) -> pq.ParquetFile:
    """file: a path or something to read from. Raises UsageError."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{name} is no readable Parquet file: {str(error).splitlines()[0]}") from None


def column_names(path: Path, kind: str) -> list[str]:
    if kind == "parquet":
        return open_parquet(path, str(path)).schema_arrow.names
    if kind == "table":
        return sniff(path)[1]
    names = list(dict.fromkeys(name for row in islice(json_lines(path), 100) for name in row))
    if not names:
        raise UsageError(f"{path} is empty")
    return names


def sniff(path: Path) -> tuple[str, list[str]]:
    """(separator, column names) of a CSV or TSV file, from its first line."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(1_000_000).rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not header:
        raise UsageError(f"{path} is empty")
    if "\0" in header:
        raise UsageError(f"{path} is no UTF-8 text; save it as UTF-8")
    separator = max(",\t;|", key=header.count)
    return separator, next(csv.reader(io.StringIO(header), delimiter=separator))


def find_column(
    path: Path | str, columns: list[str], wanted: str | None, usual: tuple[str, ...], role: str, flag: str,
    first: Callable[[], Chunk] = dict,
) -> str:  # fmt: skip
    """The column of a role: the one asked for, or the first with a usual name.

    first: gives a few rows, to be shown in the UsageError of a column that is not there.
    """
    if wanted is None:
        by_lower = {column.lower().strip(): column for column in reversed(columns)}
        for name in usual:
            if name in by_lower:
                return by_lower[name]
        asked = f"which column holds the {role}?"
    elif wanted in columns:
        return wanted
    else:
        asked = f"no column {wanted!r} ({flag})."
    shown = first()
    values = "; ".join(f"{name} holds {_shown(shown[name])}" for name in columns if name in shown)
    found = ", ".join(columns) + (f" ({values})" if values else "")
    raise UsageError(f"{path}: {asked} Columns found: {found}. Name it with {flag}")


def _shown(values: Any) -> str:
    """The first two values of a column."""
    two = [value.as_py() if isinstance(value, pa.Scalar) else value for value in values[:2]]
    texts = [f"{len(v):,} bytes" if isinstance(v, bytes) else repr(v) for v in two]
    return ", ".join(text if len(text) <= 40 else text[:37] + "..." for text in texts)


def first_rows(path: Path, columns: list[str] | None = None) -> Chunk:
    return next(chunks(path, columns, rows=100, bad_row=lambda _: "skip"), {})


def chunks(
    path: Path, columns: list[str] | None = None, groups: list[int] | None = None, rows: int = ROWS,
    bad_row: Callable[[Any], str] | None = None,
) -> Iterator[Chunk]:  # fmt: skip
    """A table, a few thousand rows at a time. Raises UsageError, naming the file, where it is damaged.

    columns: None for all. groups: row groups of a Parquet file. bad_row: told about CSV rows with too many or too few
    cells, answers "skip" or "error".
    """
    kind = kind_of(path)
    try:
        if kind == "jsonl":
            lines = json_lines(path)
            while some := list(islice(lines, rows)):
                names = columns or list(dict.fromkeys(name for row in some for name in row))
                yield {name: [row.get(name) for row in some] for name in names}
        else:
            batches = _csv(path, columns, bad_row) if kind == "table" else _parquet(path, columns, groups, rows)
            for batch in batches:
                for start in range(0, len(batch), rows):
                    part = batch.slice(start, rows)
                    yield dict(zip(part.schema.names, part.columns, strict=True))
    except (pa.ArrowException, KeyError, EOFError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _parquet(path: Path, columns: list[str] | None, groups: list[int] | None, rows: int) -> Iterator[pa.RecordBatch]:
    file = open_parquet(path, str(path))
    return file.iter_batches(batch_size=rows, row_groups=groups, columns=columns)


def _csv(path: Path, columns: list[str] | None, bad_row: Callable[[Any], str] | None) -> Iterator[pa.RecordBatch]:
    separator, names = sniff(path)
    with pa.input_stream(str(path), compression="detect") as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=1 << 20, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator, newlines_in_values=separator == ",", invalid_row_handler=bad_row
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            yield pa.record_batch([_decoded(column) for column in batch.columns], batch.schema.names)


def _decoded(column: pa.Array) -> pa.Array:
    """Bytes -> text; what is no UTF-8 is replaced by question marks, not a reason to stop."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([value.decode("utf-8", "replace") for value in column.to_pylist()], pa.string())


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
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
