"""WebDataset-format tars, read by sample number.

The format, not the library: an index of offsets makes any sample of any shard one `pread`, which is what lets the
order of samples be a pure function of a number, and a run go on after a kill with the very next one. A tar without
an index is scanned once, header by header, at some 100,000 members a second.
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catlip.errors import UsageError

IMAGE_EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"])
INDEX_FILE = "index.json"


def expand(pattern: str) -> list[Path]:
    """Files of a pattern with braces ({000000..000005} or {a,b}) and globs, sorted within each glob.

    Raises UsageError for a pattern that matches nothing and for a file that does not exist.
    """
    found: list[Path] = []
    for name in _braces(pattern):
        if any(mark in name for mark in "*?["):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise UsageError(f"no file matches {name!r} (from the folder {os.getcwd()})")
            found.extend(map(Path, matches))
        elif not os.path.exists(name):
            hint = f", from the pattern {pattern!r}" if name != pattern else ""
            raise UsageError(f"no such file: {name}{hint}")
        else:
            found.append(Path(name))
    return found


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


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of one file of a sample lie in its tar."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The files of one sample: {"jpg": Member, "txt": Member, ...}."""

    key: str
    members: dict[str, Member]

    def image(self) -> Member | None:
        return next((m for extension, m in self.members.items() if extension.lower() in IMAGE_EXTENSIONS), None)


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, extension): at the first dot of the basename, as WebDataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def scan(path: Path) -> Iterator[Sample]:
    """Samples of a tar in order. Members of one key must be adjacent, as every writer of the format leaves them."""
    size = path.stat().st_size
    key, members = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                if info.offset_data + info.size > size:
                    raise UsageError(_cut_off(path, info.name, size))
                sample_key, extension = split_name(info.name)
                if sample_key != key:
                    if members:
                        yield Sample(key, members)
                    key, members = sample_key, {}
                members[extension] = Member(info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(
            f"{path} is not a readable tar file ({error}); catlip reads plain, uncompressed tars"
        ) from None
    if size % tarfile.BLOCKSIZE:
        raise UsageError(_cut_off(path, key, size))
    if members:
        yield Sample(key, members)


def _cut_off(path: Path, member: str, size: int) -> str:
    return f"{path} is cut off in or after {member!r}: it ends at byte {size:,}. Copy or download it again"


def load_index(path: Path) -> list[Sample]:
    """Samples of a shard, from index.json beside it if that describes these very bytes, else by scanning."""
    index_file = path.with_name(INDEX_FILE)
    if index_file.is_file():
        entry = _entry(index_file, path)
        if entry is not None:
            return [
                Sample(key, {extension: Member(*where) for extension, where in members.items()})
                for key, members in entry
            ]
    return list(scan(path))


def _entry(index_file: Path, path: Path) -> list[tuple[str, dict[str, list[int]]]] | None:
    """The shard's list of samples, if the index has one and the shard's size is the one it was made for."""
    try:
        shard = json.loads(index_file.read_text(encoding="utf-8"))["shards"][path.name]
        if shard["bytes"] != path.stat().st_size:
            return None
        return shard["offsets"]
    except (ValueError, KeyError, TypeError):
        return None  # somebody else's index.json
