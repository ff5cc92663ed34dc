"""Rows of text files in any usual encoding, compressed or not: lines, objects of JSON lines, cells of CSV.

A file without a byte-order mark is UTF-8; single bytes in it that are not are letters of Windows-1252, the encoding of
old spreadsheets, and a file of which that is true is named. Nothing in this file needs torch.
"""

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from catlip.data.files import encoding_of
from catlip.errors import UsageError

NO_UTF8 = re.compile("[\udc80-\udcff]")  # how Python writes bytes that are no UTF-8
MAX_CELL = 1 << 20  # characters; a quote that is not closed within so many opens no cell
CLOSING = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')  # the rest of a quoted cell


def repaired(text: str) -> str:
    """What was decoded with "surrogateescape": bytes that are no UTF-8 as letters of Windows-1252."""
    return NO_UTF8.sub(lambda found: bytes([ord(found[0]) - 0xDC00]).decode("cp1252", "replace"), text)


def text_lines(path: Path, troubles: dict[str, str]) -> Iterator[str]:
    """Lines with their ends, also of a .gz, .bz2 or .zst. Raises OSError or ValueError where it cannot be read."""
    number = 0
    with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as file:  # pyright: ignore
        encoding = encoding_of(file.peek(4))
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        for line in io.TextIOWrapper(file, encoding, errors, newline=""):
            if line.isascii() or NO_UTF8.search(line) is None:
                yield line
                continue
            number += 1
            yield repaired(line)
    if number:
        troubles[path.name] = f"{number:,} lines are no UTF-8 and were read as Windows-1252; save it as UTF-8"


def json_lines(path: Path, troubles: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. Raises UsageError, naming the line, for anything else."""
    for number, line in enumerate(text_lines(path, troubles), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{path}, line {number}: not JSON: {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: expected an object with named fields, found {line[:60]!r}")
        yield row


def csv_rows(lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """(number of the row's first line, its cells, its lines) of a CSV or TSV file; empty lines are none.

    A cell is quoted if a quote opens it and another one, before a separator or a line's end, closes it; quotes inside
    are doubled, and separators and line ends are text. Any other quote is text as well: `"a red car` is a caption.
    """
    ahead: deque[str] = deque()
    of_row: list[str] = []

    def taken() -> Iterator[str]:
        while ahead or (line := next(lines, None)) is not None:
            of_row.append(ahead.popleft() if ahead else line)
            yield of_row[-1]

    number, strict = 1, csv.reader(taken(), delimiter=separator, strict=True)
    while True:
        try:  # the quick way, until a row has a quote too many
            cells = next(strict)
        except StopIteration:
            return
        except csv.Error:
            ahead.extendleft(reversed(of_row))
            cells, of_row[:] = _row(ahead, separator, lines)
            strict = csv.reader(taken(), delimiter=separator, strict=True)
        if cells:
            yield number, cells, of_row
        number += len(of_row)
        of_row.clear()


def _row(ahead: deque[str], separator: str, lines: Iterator[str]) -> tuple[list[str], list[str]]:
    """(cells, lines) of the row that begins `ahead`."""
    cells, of_row, at, ended = [], [ahead.popleft()], 0, False
    while not ended:
        quoted = _quoted(of_row[-1], at, separator, ahead, lines) if of_row[-1].startswith('"', at) else None
        if quoted is not None:
            cell, more, end = quoted
            of_row += [ahead.popleft() for _ in range(more)]
            ended = of_row[-1][end : end + 1] != separator
        else:
            end = of_row[-1].find(separator, at)
            ended = end < 0
            cell = of_row[-1][at:].rstrip("\r\n") if ended else of_row[-1][at:end]
        cells.append(cell)
        at = end + 1
    return cells, of_row


def _quoted(line: str, at: int, separator: str, ahead: deque[str], lines: Iterator[str]) -> tuple[str, int, int] | None:
    """(cell, lines that it goes on over, where it ends in the last one) of what opens with a quote at `at`; None if it
    is no quoted cell. Lines that were looked at are in `ahead` then."""
    pieces, size, at = [], 0, at + 1
    for more in range(MAX_CELL):
        if found := CLOSING.match(line, at):
            if line[found.end() : found.end() + 1] not in (separator, "\r", "\n", ""):
                return None
            pieces.append(line[at : found.end() - 1])
            return "".join(pieces).replace('""', '"'), more, found.end()
        pieces.append(line[at:])
        size += len(line) - at
        if more == len(ahead):
            following = next(lines, None)
            if following is None:
                return None
            ahead.append(following)
        if size > MAX_CELL:
            return None
        line, at = ahead[more], 0
    return None
