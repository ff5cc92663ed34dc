"""Images inside tables: bytes in Parquet, base64 in JSONL. Read where they are needed, never all of them.

A row of a Parquet file can only be had with its whole row group, so a process keeps the groups it used last, and an
order of samples that stays within a few groups for a while is the quick one. Nothing in this file needs torch.
"""

import base64
import binascii
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data import cache
from catlip.data.dataset import Dataset, Sample
from catlip.data.files import Files, OpenFile, Reader, encoding_of, identity, in_threads, is_url
from catlip.data.image_files import Folders, metadata_of
from catlip.data.path_tables import RELATIVE, columns_said, guess
from catlip.data.tables import (
    ROWS,
    TEXT_COLUMNS,
    CaptionColumn,
    column_names,
    first_rows,
    open_parquet,
    text_cell,
    text_cells,
    text_columns,
)
from catlip.data.text_rows import repaired
from catlip.errors import UsageError
from catlip.notices import Progress

KEYS = ("key", "__key__", "uid", "id", "sample_id", "image_id", "file_name", "filename")
GROUPS = ("file", "group", "rows", "bytes", "without")  # of each row group; without: captions that are null
GROUP_BYTES = 1 << 30  # of row groups kept by a process
MAX_GROUP = 4 << 30  # bytes of one row group
MAX_LINE = 1 << 28


def open_inline(
    kind: str, names: list[str], data: str, image_col: str | None, text_col: str | None, cache_gb: float
) -> Dataset | None:
    """A dataset of Parquet or JSONL files if the pictures are inside; None if they hold paths."""
    if kind == "parquet":
        inside = parquet_has_bytes(names[0], image_col, text_col)
        return ParquetDataset(names, data, image_col, text_col, cache_gb) if inside else None
    if any(map(is_url, names)):
        return None
    paths = list(map(Path, names))
    image, _ = guess(names[0], column_names(paths[0], kind), image_col, text_col)
    return JsonLinesDataset(paths, data, image_col, text_col) if jsonl_has_bytes(paths[0], image) else None


class ParquetDataset(Dataset):
    """Rows of Parquet files with the bytes of pictures in a column. A shard is a row group.

    The column holds bytes, or Hugging Face's {"bytes": ..., "path": ...}, whose path counts where bytes are missing.
    """

    remote = True  # of row groups, too, only some are at hand at a time

    def __init__(
        self, names: Sequence[str], name: str, image_col: str | None, text_col: str | None, cache_gb: float = 100.0
    ) -> None:
        self.name = name
        self.files = Files(names, cache_gb)
        with _opened(self.files.names[0]) as file:
            parquet = open_parquet(file, self.files.names[0])
            schema = parquet.schema_arrow
            self.image, self.text = parquet_columns(self.files.names[0], schema, image_col, text_col)
            texts = text_columns(self.text, schema.names) if self.text else []
            first = next(parquet.iter_batches(100, columns=texts), None) if texts else None
        cells = [] if first is None else text_cells(_columns(first), self.text)
        self._captions = CaptionColumn(self.files.names[0], self.text, cells)
        self.key = next((c for c in schema.names if c.lower() in KEYS and c not in (self.image, self.text)), None)
        self.columns = [column for column in schema.names if not is_bytes(schema.field(column).type)]
        self.columns = list(dict.fromkeys([self.image, *texts, *self.columns]))
        self._identities = list(in_threads(lambda i: identity(self.files.names[i]), len(self.files), 16))
        self.files.expect(self._identities)
        groups = self._groups()
        self.shards = groups["rows"].to_numpy().astype(np.int64)
        self._file_of, self._group_in = groups["file"].to_numpy(), groups["group"].to_numpy()
        if not len(self):
            raise UsageError(f"{name}: the Parquet files hold no rows")
        largest = int(groups["bytes"].to_numpy().max())
        self._keep = max(2, min(64, GROUP_BYTES // max(1, largest)))  # row groups
        self.window = self._keep // 2 * int(self.shards.max())  # half: where one window ends, the next one begins
        files = f"{len(self.files):,} Parquet file{'s' if len(self.files) > 1 else ''}"
        self.described = columns_said(f"{len(self):,} rows in {files}, pictures", self.image, self.text)
        without = int(groups["without"].to_numpy().sum())
        self.described += f", {without:,} of them without a caption" if without else ""
        self._begin()

    def _begin(self) -> None:
        self._pid, self._lock, self._slots = os.getpid(), threading.Lock(), dict[int, _Slot]()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_slots": {}, "_pid": 0}

    def _groups(self) -> pa.Table:
        """GROUPS of every row group, from the ends of the files: without fetching them."""

        def read() -> pa.Table:
            with Progress("indexing", len(self.files)) as progress:
                each = in_threads(lambda i: self._groups_of(i, progress), len(self.files))
                rows = [dict(zip(GROUPS, group, strict=True)) for groups in each for group in groups]
                return pa.Table.from_pylist(rows, pa.schema([(name, pa.int64()) for name in GROUPS]))

        many = self.files.remote or len(self.files) > 100
        return cache.kept_table(["row groups", self._identities, self.text], read, anyway=many)

    def _groups_of(self, number: int, progress: Progress) -> list[tuple[int, ...]]:
        name = self.files.names[number]
        with _opened(name) as file:
            meta = open_parquet(file, name).metadata
        schema = meta.schema.to_arrow_schema()
        texts = text_columns(self.text, schema.names)
        missing = {self.image, *texts} - {"", *schema.names}
        if missing:
            raise UsageError(f"{name}: no column {missing.pop()!r}, which the first of the files has")
        if len(texts) == 1 and self.text:
            self._captions.check(schema.field(self.text).type)
        groups = []
        for group in range(meta.num_row_groups):
            about = meta.row_group(group)
            if about.total_byte_size > MAX_GROUP:
                raise UsageError(
                    f"{name}: a row group of {about.total_byte_size / 1e9:.1f} GB, which has to be read whole for "
                    f"every picture in it; write the file again with row groups of 1,000 rows (row_group_size=1000)"
                )
            texts = next(
                (c for c in map(about.column, range(about.num_columns)) if c.path_in_schema == self.text), None
            )
            without = texts.statistics.null_count if texts is not None and texts.statistics is not None else 0
            groups.append((number, group, about.num_rows, about.total_byte_size, without or 0))
        progress.advance(1)
        return groups

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _rows(self, shard: int) -> pa.Table:
        """A row group, kept for a while; threads that want the same one wait for whoever reads it."""
        if self._pid != os.getpid():  # after a fork or unpickling; a lock may have been held then
            self._begin()
        with self._lock:
            slot = self._slots.pop(shard, None) or _Slot()
            self._slots[shard] = slot
            while len(self._slots) > self._keep:
                self._slots.pop(next(iter(self._slots)))
        with slot.lock:
            if slot.rows is None:
                number = int(self._file_of[shard])
                file = open_parquet(Reader(self.files.open(number)), self.files.names[number])
                try:
                    slot.rows = file.read_row_group(int(self._group_in[shard]), columns=self.columns)
                except (pa.ArrowException, OSError) as error:
                    raise UsageError(f"{self.files.names[number]} cannot be read: {error}") from None
            return slot.rows

    def __getitem__(self, number: int) -> Sample:
        shard = self.shard_of(number)
        rows = self._rows(shard).slice(number - int(self.starts[shard]), 1).to_pylist()[0]
        file = self.files.names[int(self._file_of[shard])]
        image, path = image_in(rows.pop(self.image), "" if is_url(file) else os.path.dirname(file) or ".")
        captions = self._captions([text_cell(rows, self.text)])[0]
        key = rows.get(self.key) if self.key else path
        return Sample(str(key or number), image, captions, metadata=metadata_of(rows))

    def captions(self) -> Iterator[list[str]]:
        if not self.text:
            yield from ([] for _ in range(len(self)))
            return
        for name in self.files.names:
            with _opened(name) as file:
                parquet = open_parquet(file, name)
                texts = text_columns(self.text, parquet.schema_arrow.names)
                for batch in parquet.iter_batches(batch_size=ROWS, columns=texts):
                    yield from self._captions(text_cells(_columns(batch), self.text))

    def fingerprint(self) -> list[Any]:
        return [[os.path.basename(name), size] for name, size, *_ in self._identities] + [len(self)]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.files.prefetch([int(self._file_of[shard]) for shard in shards])


class _Slot:
    def __init__(self) -> None:
        self.lock, self.rows = threading.Lock(), None


def _columns(batch: pa.RecordBatch) -> dict[str, Any]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _opened(name: str) -> Any:
    """A file to read parts of; a remote one is not fetched."""
    if not is_url(name):
        return Path(name).open("rb")
    from catlip.data.remote import open_remote

    return open_remote(name)


def is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def parquet_columns(name: str, schema: pa.Schema, image_col: str | None, text_col: str | None) -> tuple[str, str]:
    """(image column, caption column); a lone column of bytes holds the pictures, unless captions are called so."""
    of_bytes = [c for c in schema.names if is_bytes(schema.field(c).type) and c.lower() not in TEXT_COLUMNS]
    if image_col is None and len(of_bytes) == 1:
        image_col = of_bytes[0]
    return guess(name, schema.names, image_col, text_col)


def parquet_has_bytes(name: str, image_col: str | None, text_col: str | None) -> bool:
    with _opened(name) as file:
        schema = open_parquet(file, name).schema_arrow
    return is_bytes(schema.field(parquet_columns(name, schema, image_col, text_col)[0]).type)


class JsonLinesDataset(Dataset):
    """Lines of JSONL files with pictures in base64. A shard is a file."""

    def __init__(self, paths: Sequence[Path], name: str, image_col: str | None, text_col: str | None) -> None:
        self.name = name
        self.files = Files([str(path) for path in paths])
        self.image, self.text = guess(str(paths[0]), column_names(paths[0], "jsonl"), image_col, text_col)
        packed = next((path for path in paths if path.suffix != ".jsonl" and path.suffix != ".ndjson"), None)
        if packed is not None:
            raise UsageError(f"{packed} is compressed, and its pictures are inside: unpack it, so that any can be read")
        for number, path in enumerate(paths):
            if not (encoding := encoding_of(self.files.open(number).read(0, 4))).startswith("utf-8"):
                raise UsageError(f"{path} is {encoding.upper()}, and its pictures are inside: save it as UTF-8")
        self._ends = [_line_ends(self.files.open(number)) for number in range(len(self.files))]
        self.shards = np.array([len(ends) - 1 for ends in self._ends], np.int64)
        self.described = columns_said(f"{len(self):,} lines, pictures in base64", self.image, self.text)
        first = first_rows(paths[0]) if self.text else {}
        self._captions = CaptionColumn(paths[0], self.text, text_cells(first, self.text) if first else [])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _line(self, number: int) -> tuple[dict[str, Any], str]:
        file = self.shard_of(number)
        start, end = self._ends[file][number - self.starts[file] :][:2].tolist()
        folder = os.path.dirname(self.files.names[file]) or "."
        try:
            line = self.files.open(file).read(start, min(end - start, MAX_LINE))
            row = json.loads(repaired(line.decode("utf-8-sig", "surrogateescape")))
        except (ValueError, RecursionError):
            return {}, folder
        return row if isinstance(row, dict) else {}, folder

    def __getitem__(self, number: int) -> Sample:
        row, folder = self._line(number)
        image, path = image_in(row.pop(self.image, None), folder)
        captions = self._captions([text_cell(row, self.text)])[0]
        key = next((row[name] for name in KEYS if row.get(name)), path)
        return Sample(str(key or number), image, captions, metadata=metadata_of(row))

    def captions(self) -> Iterator[list[str]]:
        return (self._captions([text_cell(self._line(number)[0], self.text)])[0] for number in range(len(self)))

    def fingerprint(self) -> list[Any]:
        return [
            [os.path.basename(name), int(ends[-1])] for name, ends in zip(self.files.names, self._ends, strict=True)
        ]


def _line_ends(file: OpenFile) -> np.ndarray:
    """int64 [lines + 1]: where each line starts, and where the last one ends. Empty lines at the end do not count."""
    found, at = [np.zeros(1, np.int64)], 0
    while block := file.read(at, 1 << 24):
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1)
        at += len(block)
    ends = np.concatenate(found)
    if ends[-1] < file.size:
        ends = np.append(ends, file.size)
    while len(ends) > 1 and not file.read(int(ends[-2]), int(min(ends[-1] - ends[-2], 1000))).strip():
        ends = ends[:-1]
    return ends


def jsonl_has_bytes(path: Path, image: str) -> bool:
    value = next((value for value in first_rows(path).get(image, []) if value), None)
    if isinstance(value, dict):
        value = value.get("bytes")
        return isinstance(value, str)
    if not isinstance(value, str):
        return False
    return value.startswith("data:image/") or (len(value) > 300 and _decoded(value) != b"")


def _decoded(text: str) -> bytes:
    """base64, maybe as a data URL; b"" if it is none."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def image_in(cell: Any, folder: str) -> tuple[bytes, str]:
    """(picture, path or "") of a cell: bytes, base64, or a struct of bytes and path."""
    path = ""
    if isinstance(cell, dict):
        path = cell.get("path") or ""
        cell = cell.get("bytes")
        if cell is None and path and folder:
            return Folders([folder], RELATIVE).read(0, path), path
    if isinstance(cell, str):
        cell = _decoded(cell)
    return cell if isinstance(cell, bytes) else b"", path
