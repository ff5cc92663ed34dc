"""Files by number, for reading at any place, from any thread and process; and which files a pattern names.

What lies elsewhere is `remote.py`'s, which is imported when a URL is met. Nothing in this file needs torch.
"""

import codecs
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from catlip.errors import UsageError

IMAGE_EXTENSIONS = frozenset("jpg jpeg jpe jfif png webp avif jp2 bmp gif tif tiff".split())
MAX_MEMBER = 1 << 28  # bytes; no picture or caption is larger, and a damaged header may say anything
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "table", ".tsv": "table", ".txt": "table", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".tar": "tar", ".json": "coco",
}  # fmt: skip
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
OPEN_FILES = 128  # kept open by a process
OPEN_FETCHED = 8  # of those that the cache cannot remove meanwhile

T = TypeVar("T")


def is_url(name: str) -> bool:
    return "://" in name


def kind_of(path: Path) -> str:
    """ "parquet", "table" (CSV, TSV), "jsonl", "coco" (a captions JSON) or "tar", by the file's name; else ""."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".bz2")]
    return KINDS.get(suffixes[-1] if suffixes else "", "")


def expand(pattern: str) -> list[Path]:
    """Local files of a pattern with braces ({000000..000005} or {a,b}) and globs, sorted within each glob.

    Raises UsageError for a pattern that matches nothing and for a file that does not exist.
    """
    if is_url(pattern):
        raise UsageError(f"{pattern}: files on this machine are needed here; copy them first")
    return [Path(name) for name in expand_names(pattern)]


def expand_names(pattern: str) -> list[str]:
    """As `expand`, also for URLs. That a URL without a glob exists shows when it is fetched."""
    found: list[str] = []
    for name in _braces(pattern):
        if any(mark in name for mark in "*?[") and not name.startswith(("http://", "https://")):
            matches = _url_glob(name) if is_url(name) else local_glob(name)
            if not matches:
                where = "" if is_url(name) else f" (from the folder {os.getcwd()})"
                raise UsageError(f"no file matches {name!r}{where}")
            found.extend(matches)
        elif not is_url(name) and not os.path.exists(name):
            hint = f", from the pattern {pattern!r}" if name != pattern else ""
            raise UsageError(f"no such file: {name}{hint}")
        else:
            found.append(name)
    return found


def _url_glob(pattern: str) -> list[str]:
    from catlip.data.remote import url_glob

    return url_glob(pattern)


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = span.groups()
        width = len(first) if first.startswith("0") else 0
        options = [str(i).zfill(width) for i in range(int(first), int(last) + 1)]
        if not options:
            raise UsageError(f"the range {{{inside}}} in {pattern!r} is empty: its end comes before its start")
    else:
        options = inside.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for option in options for name in _braces(head + option + tail)]


def local_glob(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encoding_of(start: bytes) -> str:
    """By the byte-order mark, else UTF-8."""
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), "utf-8")


def decoded(data: bytes) -> str:
    """A small text; what cannot be read in it becomes U+FFFD."""
    return data.decode(encoding_of(data), "replace")


class OpenFile:
    """A file descriptor that closes when nobody holds it any more: safe to forget while another thread reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        if os is not None:  # modules are taken apart before what a script still holds at its end
            os.close(self.descriptor)


class Reader(io.RawIOBase):
    """An open file with a position of its own, for libraries that want one."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Files:
    """Files by number, here or remote, for reading at any place, from any thread and process."""

    def __init__(self, names: Sequence[str], cache_gb: float = 100.0) -> None:
        self.names = list(names)
        self.remote = any(map(is_url, self.names))
        self._versions, self._digests = [""] * len(self.names), [""] * len(self.names)
        self._sizes = [0] * len(self.names)
        self._cache: Any = None
        if self.remote:
            from catlip.data.remote import Cache

            self._cache = Cache(cache_gb)
        self._start()

    def _start(self) -> None:
        self._open: dict[int, OpenFile] = {}
        self._ahead: Any = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:  # descriptors and threads do not travel to other processes
        return {**self.__dict__, "_open": {}, "_ahead": None, "_pid": 0}

    def __len__(self) -> int:
        return len(self.names)

    def expect(self, identities: Sequence[Sequence[Any]], digests: Sequence[str] = ()) -> None:
        """What is known of each file: [name, bytes, ...], SHA-256. What was fetched of others is fetched again."""
        self._digests = list(digests) or self._digests
        self._versions = [repr(identity) for identity in identities]
        self._sizes = [identity[1] for identity in identities]

    def open(self, number: int) -> OpenFile:
        """Raises UsageError if the file cannot be opened or fetched."""
        file = self._open.get(number)  # open descriptors do survive a fork: pread keeps no position
        if file is None:
            file = self._open.setdefault(number, self.open_briefly(number))
            while len(self._open) > (OPEN_FETCHED if self.remote else OPEN_FILES):
                self._open.pop(next(iter(self._open.copy())), None)
        return file

    def open_briefly(self, number: int) -> OpenFile:
        """As `open`, for a file that is read once: it closes when the caller drops it."""
        name = self.names[number]
        if self._cache is not None and is_url(name):
            file = self._cache.open(name, self._versions[number], self._digests[number])
            if self._sizes[number] and file.size != self._sizes[number]:
                said = f"{self._sizes[number]:,} bytes were expected"
                raise UsageError(f"{name} has {file.size:,} bytes, {said}: is the index.json beside it another's?")
            return file
        try:
            return OpenFile(os.open(name, os.O_RDONLY))
        except OSError as error:
            raise UsageError(f"{name} cannot be opened: {error.strerror}") from None

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Files that will be needed soon, the soonest first: fetched in the background. Never blocks."""
        if self._cache is None:
            return
        if self._ahead is None or self._pid != os.getpid():  # threads do not survive a fork
            from catlip.data.remote import Ahead

            self._ahead, self._pid = Ahead(self._cache), os.getpid()
        self._ahead.want([(self.names[n], self._versions[n], self._digests[n]) for n in dict.fromkeys(numbers)])


def identity(name: str, entry: dict[str, Any] | None = None) -> list[Any]:
    """[name, bytes, ...]: what changes when a file is another one. Raises UsageError if it is gone."""
    if not is_url(name):
        try:
            stat = os.stat(name)
        except OSError as error:
            raise UsageError(f"{name} cannot be opened: {error.strerror}") from None
        return [os.path.abspath(name), stat.st_size, stat.st_mtime_ns]
    if entry is not None:  # spares a question a shard
        return [name, int(entry["bytes"]), *filter(None, [entry.get("sha256")])]
    from catlip.data.remote import remote_identity

    return remote_identity(name)


def in_threads(do: Callable[[int], T], count: int, threads: int = 8) -> Iterator[T]:
    """Results in order. The first error ends it; what was not begun is dropped."""
    with ThreadPoolExecutor(min(threads, max(1, count))) as pool:
        futures = [pool.submit(do, number) for number in range(count)]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
