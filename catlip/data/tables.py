"""CSV, TSV, JSONL and Parquet files: their columns, a few thousand rows at a time, and the captions in cells.

Nothing in this file needs torch.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catlip.data.files import kind_of
from catlip.data.text_rows import csv_rows, json_lines, text_lines
from catlip.errors import UsageError, first_line

IMAGE_COLUMNS = (
    "image", "filepath", "image_path", "path", "file", "filename", "file_name", "img", "image_file", "jpg", "png",
    "webp", "image_bytes", "image_base64", "picture", "photo", "bytes", "url", "image_url",
)  # fmt: skip
TEXT_COLUMNS = (
    "caption", "text", "title", "alt", "alt_text", "description", "captions", "texts", "sentences", "raw", "txt",
    "prompt", "tags", "keywords", "label", "name",
)  # fmt: skip
ROWS = 8192  # read at a time
SEPARATORS = ";|,"
TAG_WORDS = 4  # of a tag, at most
GRAMMAR = frozenset("a an the and or is are of in on at with by to from for near next his her their its".split())
TEXT_TYPES = ("string", "large_string", "string_view", "null")  # Arrow's
Chunk = dict[str, Any]  # column -> Arrow array, or (JSONL) a list; all of one length


def open_parquet(file: Any, name: str) -> pq.ParquetFile:
    """file: a path or something to read from. Raises UsageError."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{name} is no readable Parquet file: {first_line(error)}") from None


def column_names(path: Path, kind: str) -> list[str]:
    if kind == "parquet":
        return open_parquet(path, str(path)).schema_arrow.names
    if kind == "table":
        return sniff(path)[1]
    with naming(path):
        names = list(dict.fromkeys(name for row in islice(json_lines(path, {}), 100) for name in row))
    if not names:
        raise UsageError(f"{path} is empty")
    return names


def sniff(path: Path) -> tuple[str, list[str]]:
    """(separator, column names) of a CSV or TSV file, from its first line; a name that comes again gets a number."""
    with naming(path):
        lines = text_lines(path, {})
        first = next(filter(str.strip, lines), "")
        separator = max(",\t;|", key=first.count)
        names = next((cells for _, cells, _ in csv_rows(chain([first], lines), separator)), [])
    if not names:
        raise UsageError(f"{path} is empty")
    if "\0" in first:
        raise UsageError(f"{path} is no UTF-8 text; save it as UTF-8")
    met = Counter[str]()
    for number, name in enumerate(names):
        met[name] += 1
        names[number] = name if met[name] == 1 else f"{name}.{met[name]}"
    return separator, names


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read -> UsageError that names it."""
    try:
        yield
    except UsageError:
        raise
    except (pa.ArrowException, KeyError, EOFError, OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.filename else first_line(error)
        raise UsageError(f"{path} cannot be read: {why}") from None


def find_column(
    path: Path | str,
    columns: list[str],
    wanted: str | None,
    usual: tuple[str, ...],
    role: str,
    flag: str,
    first: Callable[[], Chunk] = dict,
) -> str:
    """The column of a role: the one asked for, or the first with a usual name. Captions may be in several, "a,b".

    first: gives a few rows, to be shown in the UsageError of a column that is not there.
    """
    if wanted is None:
        by_lower = {column.lower().strip(): column for column in reversed(columns)}
        for name in usual:
            if name in by_lower:
                return by_lower[name]
        asked = f"which column holds the {role}?"
    else:
        missing = [name for name in text_columns(wanted, columns) if name not in columns]
        if not missing and (role == "caption" or wanted in columns):
            return wanted
        asked = f"no column {[*missing, wanted][0]!r} ({flag})."
    shown = first()
    values = "; ".join(f"{name} holds {_shown(shown[name])}" for name in columns if name in shown)
    found = ", ".join(columns) + (f" ({values})" if values else "")
    raise UsageError(f"{path}: {asked} Columns found: {found}. Name it with {flag}")


def text_columns(name: str, columns: Collection[str]) -> list[str]:
    """The columns of captions that a name stands for: the one of this name, or those that it joins by commas."""
    return [name] if name in columns else [part.strip() for part in name.split(",")]


def text_cells(chunk: Chunk, name: str) -> Any:
    """The column of captions of a chunk; of several columns a list of all texts of each row."""
    columns = [chunk[column] for column in text_columns(name, chunk)]
    if len(columns) == 1:
        return columns[0]
    rows = zip(*(column.to_pylist() if isinstance(column, pa.Array) else column for column in columns), strict=True)
    return [[text for cell in row for text in captions_of(cell) if not _is_nan(text)] for row in rows]


def text_cell(row: dict[str, Any], name: str) -> Any:
    """As `text_cells` of one row, from which a lone column is taken out."""
    columns = text_columns(name, row)
    if len(columns) == 1:
        return row.pop(name, None)
    return text_cells({column: [row.get(column)] for column in columns}, name)[0]


def _shown(values: Any) -> str:
    """The first two values of a column."""
    two = [value.as_py() if isinstance(value, pa.Scalar) else value for value in values[:2]]
    texts = [f"{len(v):,} bytes" if isinstance(v, bytes) else repr(v) for v in two]
    return ", ".join(text if len(text) <= 40 else text[:37] + "..." for text in texts)


def first_rows(path: Path, columns: list[str] | None = None) -> Chunk:
    return next(chunks(path, columns, rows=100), {})


def chunks(
    path: Path,
    columns: list[str] | None = None,
    groups: list[int] | None = None,
    rows: int = ROWS,
    troubles: dict[str, str] | None = None,
) -> Iterator[Chunk]:
    """A table, a few thousand rows at a time. Raises UsageError, naming the file, where it is damaged.

    columns: None for all. groups: row groups of a Parquet file. troubles: gets the rows of too many or too few cells,
    which are left out, and what else is said about the file.
    """
    kind, troubles = kind_of(path), {} if troubles is None else troubles
    with naming(path):
        if kind == "parquet":
            file = open_parquet(path, str(path))
            for batch in file.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))
            return
        if kind == "jsonl":
            found = json_lines(path, troubles)
            while some := list(islice(found, rows)):
                names = columns or list(dict.fromkeys(name for row in some for name in row))
                yield {name: [row.get(name) for row in some] for name in names}
            return
        separator, names = sniff(path)
        wanted = [(name, names.index(name)) for name in columns or names]
        cells = _full_rows(path, separator, len(names), troubles)
        while some := list(islice(cells, rows)):
            yield {name: [row[number] for row in some] for name, number in wanted}


def _full_rows(path: Path, separator: str, columns: int, troubles: dict[str, str]) -> Iterator[list[str]]:
    """The rows of a CSV or TSV file that have a cell for each column, but for the first."""
    rows = csv_rows(text_lines(path, troubles), separator)
    next(rows)
    for number, cells, lines in rows:
        why = ""
        if len(cells) != columns:
            why = f"left out: {len(cells)} cells instead of {columns}"
        elif len(lines) > 1 and all(line.count(separator) == columns - 1 for line in lines):
            why = f"one cell over {len(lines)} lines, as a quote says, that look like rows of their own"
        if why:
            troubles[f"{path.name}: line {number} {lines[0][:60]!r}"] = why
        if len(cells) == columns:
            yield cells


class CaptionColumn:
    """How the cells of one column are read as captions: a text, a list of texts, or such a list written as JSON."""

    def __init__(self, where: Path | str, name: str, first: Any) -> None:
        """first: the column's first cells. Raises UsageError if they hold something else than captions."""
        self.where, self.name = where, name
        self._words = False  # a column of words can have the word "nan"; among sentences it is an empty cell's
        self.separator = ""  # of tags, each of which is a caption
        cells = self(first)
        if not isinstance(first, pa.Array) and not any(cells):
            other = [cell for cell in first if cell and cell == cell and not isinstance(cell, str)]
            if other:
                self._refuse(f"{str(other[0])[:40]} and the like")
        found = [text for several in cells for text in several]
        self._words = sum(" " in text.strip() for text in found) * 2 < len(found)
        self.separator = separator_of(found)

    def __call__(self, cells: Any) -> list[list[str]]:
        """Captions of each cell; none where they are missing. cells: Arrow, or a list of what JSON has."""
        if isinstance(cells, pa.Array):
            self.check(cells.type)
            cells = cells.to_pylist()
        found = [captions_of(cell) if self._words or not _is_nan(cell) else [] for cell in cells]
        if not self.separator:
            return found
        return [[tag.strip() for text in some for tag in text.split(self.separator) if tag.strip()] for some in found]

    def check(self, kind: pa.DataType) -> None:
        """Raises UsageError for a type that holds no captions."""
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        if str(inner) not in TEXT_TYPES:
            self._refuse(str(kind))

    def _refuse(self, kind: str) -> None:
        raise UsageError(
            f"{self.where}: column {self.name!r} holds {kind}, not text; name the captions' column with `text_col`"
        )


def separator_of(texts: Sequence[str]) -> str:
    """What stands between the tags of a column of tags (`dog; beach; red ball`); "" for a column of sentences.

    Tags are short and have no articles or prepositions; a column of them separates some in a fifth of its cells.
    """
    for separator in SEPARATORS:
        tags = [tag.lower().split() for text in texts for tag in text.split(separator)]
        lists = sum(separator in text.strip(f" {separator}") for text in texts)
        spoken = sum(len(words) > TAG_WORDS or not GRAMMAR.isdisjoint(words) for words in tags)
        if lists >= 2 and lists * 5 >= len(texts) and spoken * 10 <= len(tags):
            return separator
    return ""


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip().lower() == "nan"


def captions_of(cell: Any) -> list[str]:
    """Captions in a table's cell: a text, a list of texts, or a list written as JSON."""
    if isinstance(cell, str):
        if cell[:1] == "[" and cell[-1:] == "]":
            try:
                return captions_of(json.loads(cell))
            except (ValueError, RecursionError):
                pass
        return [encodable(cell)] if cell.strip() else []
    return [encodable(c) for c in cell if isinstance(c, str) and c.strip()] if isinstance(cell, list) else []


def encodable(text: str) -> str:
    """JSON can write halves of characters, which nothing else can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
