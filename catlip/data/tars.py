"""Samples of tar shards, on this machine or elsewhere."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data import cache
from catlip.data.dataset import Dataset, Sample, bounded, captions_in, lines, troubles_said
from catlip.data.files import Files, OpenFile, decoded, identity, in_threads, is_url
from catlip.data.shards import BLOCK, INDEX_FILE, SCHEMA, index_from_json, index_json, is_indexed_by, scan
from catlip.errors import UsageError
from catlip.notices import Progress

FACTS = b"catlip"  # metadata of a kept index: samples of each shard, troubles
MAX_LABEL = 1 << 16  # bytes of a KEY.cls
CAPTION_FIELDS = ("captions", "caption", "texts", "text")  # of KEY.json


class TarDataset(Dataset):
    """Samples of WebDataset-format tars, in the order of the shards."""

    def __init__(self, paths: Sequence[Path | str], name: str, cache_gb: float = 100.0) -> None:
        """paths: files or URLs. Raises UsageError for a tar of which nothing can be read."""
        self.name = name
        self.files = Files([str(path) for path in paths], cache_gb)
        self.remote = self.files.remote
        self._kept = ""
        self._identities: list[list[Any]] = []
        self._use(self._indexed())
        if not len(self):
            raise UsageError(f"{name}: the tars hold no samples")
        self.described = f"{len(self):,} samples in {len(self.files):,} tar{'s' if len(self.files) > 1 else ''}"
        without = int(np.where(self._at["text_at"], self._at["text_size"] == 0, self._at["json_at"] == 0).sum())
        self.described += f", {without:,} of them without a caption" if without else ""
        self.described += troubles_said(self.troubles)

    def _use(self, table: pa.Table) -> None:
        facts = json.loads(table.schema.metadata[FACTS])
        self.shards = np.array(facts["shards"], np.int64)
        self.__dict__.pop("starts", None)  # of the shards before
        self.troubles: dict[str, str] = facts["troubles"]
        self._digests: list[str] = facts["digests"]  # SHA-256 of each shard, where `pack` wrote it down, else ""
        columns = table.combine_chunks().to_batches()
        self._keys = columns[0]["key"] if columns else pa.array([], pa.large_string())
        self._at = {
            name: columns[0][name].to_numpy() if columns else np.empty(0, np.uint32)
            for name in SCHEMA.names
            if name != "key"
        }

    def _indexed(self) -> pa.Table:
        """The columns of all shards, from what was kept of an earlier run where the files are still the same."""
        entries = {folder: _index_entries(folder) for folder in dict.fromkeys(map(_parent, self.files.names))}
        known = [entries[_parent(name)].get(_base(name)) for name in self.files.names]
        digests = [str((entry or {}).get("sha256", "")) for entry in known]
        self._identities = list(in_threads(lambda i: identity(self.files.names[i], known[i]), len(self.files), 16))
        self.files.expect(self._identities, digests)
        name = cache.name_of([self._identities, digests])
        table = cache.load(name)
        if table is not None:
            self._kept = name
            return table
        began = time.monotonic()
        sizes = [size for _, size, *_ in self._identities]
        with Progress("indexing", sum(sizes), bytes_=True) as progress:
            shards = list(in_threads(lambda i: self._index_of(i, known[i], progress), len(self.files), 4))
        troubles = {key: why for _, some, _ in shards for key, why in some.items()}
        table = pa.concat_tables([shard for shard, _, _ in shards])
        counts, digests = [len(shard) for shard, _, _ in shards], [digest for _, _, digest in shards]
        table = _with_facts(table, counts, bounded(troubles), digests)
        if time.monotonic() - began > cache.WORTH_KEEPING:
            table, self._kept = cache.keep(name, table), name
        return table

    def _index_of(
        self, number: int, entry: dict[str, Any] | None, progress: Progress
    ) -> tuple[pa.Table, dict[str, str], str]:
        """(index, troubles, SHA-256 or "") of a shard; entry: what the index.json beside it says."""
        name, size, *changed = self._identities[number]
        if entry is None:
            return *self._scanned(number, progress), ""
        digest = str(entry.get("sha256", ""))
        told = index_from_json(entry) if entry["bytes"] == size else None
        if told is not None and (
            is_url(name)  # fetched later, and compared then; a tar here may not be written after its index.json
            or (changed[0] <= entry["written"] and is_indexed_by(self.files.open_briefly(number), entry))
        ):
            progress.advance(size)
            return told, {}, digest
        table, troubles = self._scanned(number, progress)
        if told is None or not told.equals(table):
            troubles, digest = {**troubles, _base(name): f"the {INDEX_FILE} beside it is another's; not used"}, ""
        return table, troubles, digest

    def _scanned(self, number: int, progress: Progress) -> tuple[pa.Table, dict[str, str]]:
        """What was kept of an earlier scan, or is found by one."""
        size = self._identities[number][1]
        name = cache.name_of([self._identities[number]])
        table = cache.load(name)
        if table is not None:
            progress.advance(size)
            return table.replace_schema_metadata(None), json.loads(table.schema.metadata[FACTS])["troubles"]
        began = time.monotonic()
        file = self.files.open_briefly(number)
        where = _base(self.files.names[number])
        try:
            table, troubles = scan(file, where, progress.advance)
        except UsageError as error:
            raise UsageError(str(error).replace(where, self.files.names[number], 1)) from None
        if is_url(self.files.names[number]) or time.monotonic() - began > cache.WORTH_KEEPING:
            cache.keep(name, _with_facts(table, [len(table)], bounded(troubles), [""]))
        return table, troubles

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:  # a kept index is mapped again by the process that unpickles
        return {**self.__dict__, **({"_keys": None, "_at": None} if self._kept else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._kept:
            table = cache.load(self._kept)
            self._use(self._indexed() if table is None else table)

    def _bytes(self, file: OpenFile, role: str, number: int) -> bytes | None:
        at = int(self._at[f"{role}_at"][number])
        return file.read(at * BLOCK, int(self._at[f"{role}_size"][number])) if at else None

    def __getitem__(self, number: int) -> Sample:
        file = self.files.open(self.shard_of(number))
        fields = _fields(self._bytes(file, "json", number))
        metadata = {name: value for name, value in fields.items() if name not in CAPTION_FIELDS}
        if (label := self._class_text(file, number)) is not None:
            metadata["cls"] = label
        return Sample(
            key=self._keys[number].as_py(),
            image=self._bytes(file, "image", number) or b"",
            captions=self._captions(file, number, fields),
            metadata=metadata,
        )

    def _captions(self, file: OpenFile, number: int, fields: dict[str, Any] | None = None) -> list[str]:
        """One caption a line of KEY.txt; else "caption(s)" or "text(s)" of KEY.json."""
        text = self._bytes(file, "text", number)
        if text is not None:
            return lines(decoded(text))
        fields = _fields(self._bytes(file, "json", number)) if fields is None else fields
        return next((captions_in(fields[name]) for name in CAPTION_FIELDS if name in fields), [])

    def keys(self) -> Iterator[str]:
        return (key.as_py() for key in self._keys)

    def captions(self) -> Iterator[list[str]]:
        for shard in range(len(self.shards)):
            self.prefetch(range(shard, min(shard + 3, len(self.shards))))
            file = self.files.open(shard)
            for number in range(self.starts[shard], self.starts[shard + 1]):
                yield self._captions(file, number)

    def _class_text(self, file: OpenFile, number: int) -> str | None:
        text = self._bytes(file, "cls", number)
        return None if text is None else text.decode("utf-8", "replace").strip()

    def class_texts(self) -> Iterator[str | None]:
        """KEY.cls of all samples in order, without reading the pictures; None where there is none.

        Raises UsageError for one that is too long to be a label.
        """
        for shard in range(len(self.shards)):
            file = self.files.open(shard)
            for number in range(self.starts[shard], self.starts[shard + 1]):
                if (size := int(self._at["cls_size"][number])) > MAX_LABEL:
                    key = self._keys[number].as_py()
                    raise UsageError(f"{self.name}: {key}.cls has {size:,} bytes; a label is a name or a number")
                yield self._class_text(file, number)

    def fingerprint(self) -> list[Any]:
        shards = zip(self._identities, self._digests, strict=True)
        return [[_base(name), size, *filter(None, [digest])] for (name, size, *_), digest in shards] + [len(self)]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.files.prefetch(shards)


def _parent(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _base(name: str) -> str:
    return name[name.rfind("/") + 1 :]


def _with_facts(table: pa.Table, shards: list[int], troubles: dict[str, str], digests: list[str]) -> pa.Table:
    facts = {"shards": shards, "troubles": troubles, "digests": digests}
    return table.replace_schema_metadata({FACTS: json.dumps(facts)})


def _index_entries(folder: str) -> dict[str, dict[str, Any]]:
    """{shard: entry} of the index.json in a folder, {} where there is none.

    Raises UsageError if it cannot be read: not to know it would have every shard fetched or scanned.
    """
    if not is_url(folder):
        path = Path(folder, INDEX_FILE)
        try:
            written = path.stat().st_mtime_ns
            return {name: {**entry, "written": written} for name, entry in index_json(path.read_bytes()).items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if "?" in folder:  # a signed URL is one file's
        return {}
    from catlip.data.remote import content_if_any

    return index_json(content_if_any(folder + INDEX_FILE))


def _fields(data: bytes | None) -> dict[str, Any]:
    """KEY.json; {} where there is none, or it is damaged or something else than named fields."""
    try:
        fields = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
