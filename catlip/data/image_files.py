"""Images that are files of their own: by their paths, or in a folder with their captions beside them.

What is known of them is kept as Arrow columns, one row an image. Paths may point anywhere, `../../other/1.jpg` too:
data sets do that, and a path is only ever opened as an image. Only regular files are opened, so a pipe or a device in
a table cannot stop a run. Nothing in this file needs torch.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from catlip.data.dataset import Dataset, NoImage, Sample, bounded, lines, troubles_said
from catlip.data.files import IMAGE_EXTENSIONS, MAX_MEMBER, OpenFile, decoded, is_url
from catlip.errors import UsageError

TEXTS = pa.large_list(pa.large_string())
SIDECARS = (".txt", ".caption")


class ImageStore(Protocol):
    """Images by name."""

    def read(self, folder: int, name: str) -> bytes:
        """b"" if there is none."""
        ...


class Folders:
    """Images by their paths, relative to one of some folders."""

    def __init__(self, folders: Sequence[str], relative: str = "") -> None:
        """relative: to what paths are relative, for whoever looks for a missing file."""
        self.folders, self.relative = list(folders), relative
        self._listings = 3  # folders that are searched for a name of other capitals: an explanation, not a service

    def path(self, folder: int, name: str) -> str:
        if name.startswith("file://"):
            name = unquote(name.removeprefix("file://"))
        return os.path.join(self.folders[folder], name)

    def read(self, folder: int, name: str) -> bytes:
        """The picture, or why there is none; it is counted and named with the others that cannot be read."""
        path = self.path(folder, name)
        try:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            if not stat.S_ISREG(os.fstat(file.descriptor).st_mode):
                return NoImage(f"{path} is no file with a picture")
            return file.read(0, file.size) if file.size <= MAX_MEMBER else NoImage(f"{path} has {file.size:,} bytes")
        except FileNotFoundError:
            return NoImage(self._why(path, name))
        except (OSError, ValueError) as error:
            return NoImage(f"{path[:200]}: {error.strerror if isinstance(error, OSError) else error}")

    def missing(self, folders: Sequence[int], names: Sequence[str]) -> int:
        """How many of these there are not."""
        return sum(not os.path.exists(self.path(f, name)) for f, name in zip(folders, names, strict=True))

    def _why(self, path: str, name: str) -> str:
        if is_url(name):
            return "a URL, and catlip downloads no pictures: fetch them first"
        why = f"no such file: {os.path.abspath(path)}"
        if "\\" in name and os.path.exists(self.path(0, name.replace("\\", "/"))):
            return f"{why} (write / instead of \\)"
        if name.startswith("~"):
            return f"{why} (~ is not expanded: write the whole path)"
        if self._listings > 0 and os.path.isdir(os.path.dirname(path)):
            self._listings -= 1
            base = os.path.basename(path)
            alike = next((n for n in os.listdir(os.path.dirname(path)) if n.casefold() == base.casefold()), None)
            if alike:
                return f"{why} (there is {alike})"
        return f"{why} ({self.relative})" if self.relative else why


class PathDataset(Dataset):
    """One row a picture: its path, captions, and what else the table says.

    table: image [large_string], folder [uint32: which of the pictures' folders], captions [TEXTS], rest [JSON text].
    """

    def __init__(
        self,
        name: str,
        table: pa.Table,
        pictures: ImageStore,
        *,
        described: str = "",
        shards: Sequence[int] = (),
        troubles: dict[str, str] | None = None,
        facts: Sequence[Any] = (),
        targets: dict[str, Any] | None = None,
    ) -> None:
        """shards: default: one. facts: of the fingerprint. targets: of images, by their names in the table."""
        self.name, self.pictures, self._facts = name, pictures, facts
        self._targets = targets or {}
        self.shards = np.array(shards or [len(table)], np.int64)
        self.troubles = bounded(troubles or {})
        self.described = f"{len(table):,} pictures{described}" + troubles_said(troubles or {})
        self._columns = {column: table[column].combine_chunks() for column in table.column_names}

    def __len__(self) -> int:
        return len(self._columns["image"])

    def __getitem__(self, number: int) -> Sample:
        name = self._columns["image"][number].as_py()
        rest = self._columns["rest"][number].as_py()
        image = self.pictures.read(self._columns["folder"][number].as_py(), name)
        captions, target = self._captions_of(number), self._targets.get(name)
        return Sample(name, image, captions, target, json.loads(rest) if rest else {})

    def missing(self) -> int:
        """How many of the files are not there; 0 for pictures that are no files of their own."""
        if not isinstance(self.pictures, Folders):
            return 0
        return self.pictures.missing(self._columns["folder"].to_pylist(), self._columns["image"].to_pylist())

    def _captions_of(self, number: int) -> list[str]:
        return self._columns["captions"][number].as_py()

    def keys(self) -> Iterator[str]:
        return (name.as_py() for name in self._columns["image"])

    def captions(self) -> Iterator[list[str]]:
        return map(self._captions_of, range(len(self)))

    def fingerprint(self) -> list[Any]:
        return [*self._facts, len(self)]


def without_captions(table: pa.Table) -> str:
    """A piece of `described`: how many pictures have no caption, if any."""
    without = int((np.diff(table["captions"].combine_chunks().offsets.to_numpy()) == 0).sum())
    return f", {without:,} of them without a caption" if without else ""


def metadata_of(cells: dict[str, Any]) -> dict[str, Any]:
    """What of named values fits into JSON and says something."""
    found = {}
    for name, value in cells.items():
        if value is None or value == "" or isinstance(value, bytes):
            continue
        if not isinstance(value, str | int | float | bool):
            value = json.loads(json.dumps(value, default=lambda v: None if isinstance(v, bytes) else str(v)))
        found[name] = value
    return found


def image_table(
    names: Sequence[str],
    captions: Sequence[list[str]] | None = None,
    rest: Sequence[str] | None = None,
    folder: int = 0,
) -> pa.Table:
    """The table of a `PathDataset`."""
    return pa.table(
        {
            "image": pa.array(names, pa.large_string()),
            "folder": pa.array(np.full(len(names), folder, np.uint32)),
            "captions": pa.array(captions or [[]] * len(names), TEXTS),
            "rest": pa.array(rest or [None] * len(names), pa.large_string()),
        }
    )


class FolderDataset(PathDataset):
    """Images of a folder and its sub-folders; `1.jpg` has its captions, one a line, in `1.txt` or `1.caption`.

    Files are listed, not touched, until they are read: a million of them take seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = Folders([str(folder)])
        troubles: dict[str, str] = {}
        names, sidecars = [], []
        for name, sidecar in listed(str(folder), troubles):
            names.append(decodable(name))
            sidecars.append(sidecar)
        if not any(sidecars):
            found = f"{len(names):,} pictures but not one caption" if names else "no pictures"
            raise UsageError(
                f"{folder} holds {found}; expected 1.jpg with its captions in 1.txt, or metadata.csv or metadata.jsonl "
                f"with the columns file_name and text"
            )
        without = sidecars.count("")
        table = image_table(names).append_column("sidecar", pa.array(sidecars).dictionary_encode())
        described = " with captions in .txt files beside them" + (
            f", {without:,} of them without a caption" if without else ""
        )
        facts = [folder.name]
        super().__init__(str(folder), table, self._folders, described=described, troubles=troubles, facts=facts)

    def _captions_of(self, number: int) -> list[str]:
        sidecar = self._columns["sidecar"][number].as_py()
        if not sidecar:
            return []
        stem = os.path.splitext(self._columns["image"][number].as_py())[0]
        return lines(decoded(self._folders.read(0, stem + sidecar)))


def listed(folder: str, troubles: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(path from `folder`, suffix of its sidecar or "") of all pictures, in the order of their names.

    troubles: gets, at the end, how many files there are of other kinds.
    """
    todo, others = [""], Counter[str]()
    while todo:
        inside = todo.pop()
        pictures, texts, folders = [], dict[str, dict[str, str]](), []
        try:
            with os.scandir(os.path.join(folder, inside)) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if suffix.lower()[1:] in IMAGE_EXTENSIONS:
                        pictures.append(entry.name)
                    elif suffix.lower() in SIDECARS:
                        texts.setdefault(stem, {})[suffix.lower()] = suffix
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(os.path.join(inside, entry.name))
                    elif entry.is_symlink() and entry.is_dir():
                        troubles[os.path.join(inside, entry.name)] = "a link to a folder is not followed"
                    else:
                        others[suffix.lower()] += 1
        except OSError as error:
            troubles[inside or folder] = f"left out: {error.strerror}"
        todo += sorted(folders, reverse=True)
        for name in sorted(pictures):
            own = texts.get(os.path.splitext(name)[0], {})
            yield os.path.join(inside, name), next((own[suffix] for suffix in SIDECARS if suffix in own), "")
    if others:
        kinds = ", ".join(f"{count:,} {suffix or 'without an ending'}" for suffix, count in others.most_common(5))
        troubles[f"{others.total():,} other files"] = f"left alone, neither pictures nor captions: {kinds}"


def decodable(name: str) -> str:
    """A file's name as Arrow can hold it; where it is no UTF-8, the file will not be found, and be counted."""
    return os.fsencode(name).decode("utf-8", "replace")


def is_image(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
