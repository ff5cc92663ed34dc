"""WebDataset-format tars, read by sample number.

The format, not the library: an index of offsets makes any sample of any shard one `pread`, which is what lets the
order of samples be a pure function of a number, and a run go on after a kill with the very next one. A tar without
an index is scanned once, header by header; `tarfile` does that too, three times slower.

The index is columns, some 50 bytes a sample: data in a tar begins at multiples of 512, so a place is a 32-bit block
number, and block 0, always a header, stands for "has none". Nothing in this file needs torch.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from catlip.data.files import IMAGE_EXTENSIONS, MAX_MEMBER, OpenFile
from catlip.errors import UsageError

ROLES = {**dict.fromkeys(IMAGE_EXTENSIONS, "image"), "txt": "text", "caption": "text", "json": "json", "cls": "cls"}
INDEX_FILE = "index.json"
CHECKED = 32  # headers at the start of a tar, which lie together
TWICE = "the tar has several of this name; the first is used"
BLOCK = 512
COLUMNS = [f"{role}_{what}" for role in ("image", "text", "json", "cls") for what in ("at", "size")]
SCHEMA = pa.schema([("key", pa.large_string()), *((column, pa.uint32()) for column in COLUMNS)])

Members = dict[str, tuple[int, int]]  # extension -> (offset, size) in the tar


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, extension): at the first dot of the basename, as WebDataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


class DamagedError(Exception):
    """A tar that ends too early, or holds something else than a tar from some place on."""

    def __init__(self, why: str, member: str | None = None) -> None:
        super().__init__(why)
        self.member = member


def members(file: OpenFile) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the files in a tar (ustar, GNU, pax). Raises DamagedError where it cannot go on."""
    at, name, size = 0, None, None  # name, size: said by a GNU or pax header about the member that follows it
    while True:
        header = file.read(at, BLOCK)
        if not header.strip(b"\0"):
            if at >= file.size:
                raise DamagedError("it ends without the end mark of a tar")
            return
        if len(header) < BLOCK:
            raise DamagedError(f"it is cut off at byte {file.size:,}", _text(header[:100]) if len(header) > 100 else "")
        # The sum of a header's bytes, its own eight taken as spaces; adler32 holds it in its lower half, modulo 65521.
        total = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
        said, length = _number(header[148:156]), _number(header[124:136])
        if said is None or length is None or (said + 1) % 65521 != total:
            raise DamagedError(f"at byte {at:,} it is no tar any more", "")
        kind, data = header[156:157], at + BLOCK
        if kind in b"123456":
            length = 0  # links, folders, devices: whatever they say
        elif kind in b"0\0007":
            length = length if size is None else size
            name = name or _own_name(header)
            if name.endswith("/"):
                length = 0  # a folder, before there was a kind for it
            elif data + length > file.size:
                raise DamagedError(f"it is cut off at byte {file.size:,}", name)
            else:
                yield name, data, length
        if kind == b"L":
            name = _text(file.read(data, min(length, MAX_MEMBER)))
        elif kind == b"x":
            name, size = _pax(file.read(data, min(length, MAX_MEMBER)), name)
        elif kind not in b"Kg":
            name = size = None
        at = data + -(-length // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _own_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), header[345:500]
    return f"{_text(prefix)}/{name}" if prefix[0] and header[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int | None:
    """Octal digits, or (GNU, above 8 GiB) a binary number; None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return None


def _pax(records: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Name and size from a pax header: lines of "LENGTH KEY=VALUE"."""
    size, at = None, 0
    while match := re.compile(rb"(\d{1,9}) ([^=]+)=").match(records, at):
        end = at + int(match[1])
        if end <= match.end():
            break
        value = records[match.end() : end - 1]
        if match[2] == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif match[2] == b"size" and value.isdigit():
            size = int(value)
        at = end
    return name, size


def samples_of(key: str, found: Members) -> Iterator[tuple[str, Members]]:
    """The samples among the members whose names are alike up to the first dot: one, unless names have dots in them.

    `a.jpg a.txt a.seg.png` is the sample `a` and a file that is not for us. `a.v1.jpg a.v1.txt a.v2.jpg` are two
    samples: a part with dots is one of its own where nothing without dots has the picture, or if it has a caption too.
    """
    plain = {extension: where for extension, where in found.items() if "." not in extension}
    if plain:
        yield key, plain
    if len(plain) == len(found):
        return
    has_picture = "image" in map(role_of, plain)
    dotted: dict[str, Members] = {}
    for extension, where in found.items():
        stem, dot, last = extension.rpartition(".")
        if dot:
            dotted.setdefault(f"{key}.{stem}", {})[last] = where
    for long_key, parts in dotted.items():
        roles = set(map(role_of, parts))
        if not plain or ("image" in roles and (not has_picture or len(roles) > 1)):
            yield long_key, parts


def role_of(name: str) -> str | None:
    """What a member, or its extension, is for; None if it is not for us."""
    return ROLES.get(name.rpartition("/")[2].rpartition(".")[2].lower())


def _ours(
    file: OpenFile, name: str, troubles: dict[str, str], advance: Callable[[int], None]
) -> Iterator[tuple[str, int, int]]:
    """`members` that are for us: no hidden ones, which are the ._ twins that macOS leaves, nor immense ones."""
    last = at = 0
    for number, (member, at, size) in enumerate(members(file)):
        if number % 2048 == 0:
            advance(at - last)
            last = at
        if role_of(member) is None or member[member.rfind("/") + 1] == ".":
            continue
        if size > MAX_MEMBER:
            troubles[f"{name}: {member}"] = f"left out: {size:,} bytes, more than {MAX_MEMBER:,}"
        else:
            yield member, at, size
    advance(file.size - last)


def images_in(
    file: OpenFile, name: str, troubles: dict[str, str], advance: Callable[[int], None] = lambda _: None
) -> dict[str, tuple[int, int]]:
    """{member: (offset, size)} of the pictures in a tar, whatever samples they are part of. Raises UsageError."""
    found: dict[str, tuple[int, int]] = {}
    try:
        for member, at, size in _ours(file, name, troubles, advance):
            if role_of(member) == "image" and found.setdefault(member, (at, size)) != (at, size):
                troubles[f"{name}: {member}"] = TWICE
    except DamagedError as damage:
        if not found:
            raise UsageError(_not_a_tar(file, name, damage)) from None
        troubles[name] = f"{damage}. Copy or download it again"
    return found


def scan(file: OpenFile, name: str, advance: Callable[[int], None] = lambda _: None) -> tuple[pa.Table, dict[str, str]]:
    """(index, troubles) of a tar; samples in the order in which their first members come.

    Raises UsageError, naming the file, if nothing in it can be read; one that is cut off gives what came before.
    """
    groups: dict[str, Members] = {}
    troubles: dict[str, str] = {}
    member = ""
    try:
        for member, at, size in _ours(file, name, troubles, advance):
            key, extension = split_name(member)
            if groups.setdefault(key, {}).setdefault(extension, (at, size)) != (at, size):
                troubles[f"{name}: {member}"] = TWICE
    except DamagedError as damage:
        if not member:
            raise UsageError(_not_a_tar(file, name, damage)) from None
        lost = "" if damage.member is None else f"; {_drop(groups, damage.member or member)!r} is left out"
        troubles[name] = f"{damage}{lost}. Copy or download it again"
    samples = [sample for group, found in groups.items() for sample in samples_of(group, found)]
    return index_of(_complete(samples, groups, name, troubles)), troubles


def _complete(
    samples: list[tuple[str, Members]], groups: dict[str, Members], name: str, troubles: dict[str, str]
) -> list[tuple[str, Members]]:
    """The samples that have a picture; all of them where none has one, as captions can be all that a tar holds.

    What is left out, a README.txt among pictures or the second picture of a key, is counted and named.
    """
    pictures = {
        f"{key}.{extension}": at
        for key, found in groups.items()
        for extension, (at, _) in found.items()
        if role_of(extension) == "image" and not extension.lower().endswith("seg.png")
    }
    second, used, with_picture = [], set[int](), []
    for key, found in samples:
        used.update(at for at, _ in found.values())
        roles = list(map(role_of, found))
        second += [f"{key}.{extension}" for n, extension in enumerate(found) if roles[n] in roles[:n]]
        if "image" in roles:
            with_picture.append((key, found))
    bare = [key for key, found in samples if "image" not in map(role_of, found)] if with_picture else []
    parts = [member for member, at in pictures.items() if at not in used]
    for left, why in (
        (second, "second pictures or texts of a key"),
        (parts, "pictures that are parts of another sample, as they have no caption of their own,"),
        (bare, "samples without a picture"),
    ):
        if left:
            troubles[f"{name}: {left[0]}"] = f"{len(left):,} {why} are left out"
    return with_picture or samples


def _drop(groups: dict[str, Members], member: str) -> str:
    """Take out the sample that a member is part of, which may lack that part; returns its key."""
    key, extension = split_name(member)
    stem = extension.rpartition(".")[0]
    found = groups.pop(key, {})
    if stem:
        groups[key] = {e: where for e, where in found.items() if e.rpartition(".")[0] != stem}
    return f"{key}.{stem}" if stem else key


def _not_a_tar(file: OpenFile, name: str, damage: DamagedError) -> str:
    if file.read(0, 2) == b"\x1f\x8b":
        return f"{name} is compressed; only plain tars can be read at any place: unpack it with gunzip"
    return f"{name} is not a readable tar file ({'it is empty' if file.size == 0 else damage})"


def index_of(samples: Iterable[tuple[str, Members]]) -> pa.Table:
    """Samples -> the columns of SCHEMA. A sample's first picture counts. Raises ValueError for places no tar has."""
    keys: list[str] = []
    columns: dict[str, list[int]] = {column: [] for column in COLUMNS}
    for key, found in samples:
        row = dict.fromkeys(COLUMNS, 0)
        for extension in sorted(found, key=lambda extension: extension.lower() == "caption"):  # after txt
            role = role_of(extension)
            if role is not None and not row[f"{role}_at"]:
                offset, size = found[extension]
                if offset % BLOCK or offset <= 0:
                    raise ValueError(f"{offset} is no place in a tar")
                row[f"{role}_at"], row[f"{role}_size"] = offset // BLOCK, size
        keys.append(key.encode("utf-8", "replace").decode())
        for column, values in columns.items():
            values.append(row[column])
    return pa.table([pa.array(keys, pa.large_string()), *(pa.array(v, pa.uint32()) for v in columns.values())], SCHEMA)


def index_json(data: bytes) -> dict[str, Any]:
    """{shard's name: {"bytes": int, "offsets": ...}} of an index.json as `pack` writes it; {} if it is another's."""
    try:
        shards = json.loads(data)["shards"]
        return {name: shard for name, shard in shards.items() if "offsets" in shard and "bytes" in shard}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def index_from_json(entry: dict[str, Any]) -> pa.Table | None:
    """The index of a shard from its entry; None if the entry makes no sense."""
    try:
        return index_of((key, {e: (at, size) for e, (at, size) in found.items()}) for key, found in entry["offsets"])
    except (ValueError, TypeError, AttributeError, OverflowError, pa.ArrowInvalid):
        return None


def is_indexed_by(file: OpenFile, entry: dict[str, Any]) -> bool:
    """If a tar has the members that its entry names, by the headers of the first ones and of some others."""
    named = [(f"{key}.{e}", at, size) for key, found in entry["offsets"] for e, (at, size) in found.items()]
    for name, at, size in named[:CHECKED] + named[:: len(named) // 8 + 1] + named[-1:]:
        header = file.read(at - BLOCK, BLOCK)
        if len(header) < BLOCK or _own_name(header) != name or _number(header[124:136]) != size:
            return False
    return True
