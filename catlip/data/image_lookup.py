"""Images by the names that another file has for them: found among the members of tars, or the files of a folder.

Nothing in this file needs torch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data import cache
from catlip.data.dataset import bounded
from catlip.data.files import IMAGE_EXTENSIONS, Files, identity
from catlip.data.image_files import Folders, ImageStore, listed
from catlip.data.shards import images_in
from catlip.errors import UsageError
from catlip.notices import Progress

SEVERAL = -1
FACTS = b"catlip"
LISTED = pa.schema([("name", pa.large_string()), *((column, pa.int64()) for column in ("tar", "at", "size"))])


class Names:
    """Names of pictures, with their folders. A name finds the very same one, else the only one that it fits.

    `v1/1.jpg` fits `train/v1/1.jpg` (more folders before it), `1.jpg` (fewer) and `v1/1` (a key, which has no ending),
    but neither `v2/1.jpg` nor `v1/1.png` nor `v1/1.crop.jpg`: a namesake is another picture.
    """

    def __init__(self, names: Iterable[str], where: str) -> None:
        """where: what holds the names, for messages."""
        self.names, self.where = list(names), where
        self._whole = _numbered((_cleaned(name), number) for number, name in enumerate(self.names))
        self._tails: dict[str, int] | None = None  # made when a name is not there as it is
        self._stems: Names | None = None

    def find(self, name: str) -> int | None:
        """The number of the one that is meant; None if there is none. Raises UsageError if it could be several."""
        number = self._find(_cleaned(name))
        if number is None:
            stem = without_ending(name)
            if stem == name:  # a key: the names without their endings
                self._stems = self._stems or Names(map(without_ending, self.names), self.where)
                number = self._stems._find(_cleaned(stem))
            else:  # perhaps the names are keys
                number = self._find(_cleaned(stem))
        if number == SEVERAL:
            several = dict.fromkeys(known for known in self.names if _alike(known, name))
            could = " or ".join(map(repr, list(several)[:3])) if len(several) > 1 else "several of this name"
            raise UsageError(f"{self.where}: {name!r} could be {could}; names have to say which, by their folders")
        return number

    def find_all(self, names: Sequence[str]) -> list[int | None]:
        """`find` of each. Raises UsageError also where two names would be the same picture."""
        meant: dict[int, str] = {}
        found = [self.find(name) for name in names]
        for name, number in zip(names, found, strict=True):
            if number is not None and (other := meant.setdefault(number, name)) != name:
                both = f"{other!r} and {name!r} would both be {self.names[number]!r}"
                raise UsageError(f"{self.where}: {both}; names have to say which, by their folders")
        return found

    def _find(self, name: str) -> int | None:
        found = self._whole.get(name)
        if found is not None:
            return found
        if self._tails is None:
            cleaned = map(_cleaned, self.names)
            self._tails = _numbered((tail, number) for number, known in enumerate(cleaned) for tail in _tails(known))
        fitting = {self._tails.get(name), *(self._whole.get(tail) for tail in _tails(name))} - {None}
        return SEVERAL if len(fitting) > 1 else next(iter(fitting), None)


def without_ending(name: str) -> str:
    """`v1/1.crop.jpg` -> `v1/1.crop`; what does not end as pictures do stays as it is."""
    stem, _, ending = name.rpartition(".")
    return stem if ending.lower() in IMAGE_EXTENSIONS and stem else name


def _cleaned(name: str) -> str:
    """Without what makes no difference: `./a//1.jpg` -> `a/1.jpg`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _tails(name: str) -> Iterator[str]:
    """`a/b/1.jpg` -> `b/1.jpg`, `1.jpg`."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _alike(one: str, other: str) -> bool:
    """One is the other with more folders before it, or is the same; endings aside."""
    one, other = (f"/{_cleaned(without_ending(name))}" for name in (one, other))
    return one.endswith(other) or other.endswith(one)


def _numbered(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in pairs:
        if found.setdefault(name, number) != number:
            found[name] = SEVERAL
    return found


class NamedImages:
    """Images of which each name means one, or none."""

    def __init__(self, names: Iterable[str], where: str) -> None:
        self.names = Names(names, where)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the names that no image has. Raises UsageError where it is not clear which image is meant."""
        return [name for name, number in zip(names, self.names.find_all(names), strict=True) if number is None]

    def read(self, folder: int, name: str) -> bytes:
        number = self.names.find(name)
        return b"" if number is None else self.content(number)

    def content(self, number: int) -> bytes:
        raise NotImplementedError


class FolderImages(NamedImages):
    """Images of a folder and its sub-folders."""

    def __init__(self, folder: str) -> None:
        self.folders = Folders([folder])
        super().__init__((name for name, _ in listed(folder, {})), folder)

    def content(self, number: int) -> bytes:
        return self.folders.read(0, self.names.names[number])


class TarImages(NamedImages):
    """Images of tars by the names of their members, with their folders; each member is one, whatever its key."""

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        """where: what was named, for messages. Raises UsageError for a tar of which nothing can be read."""
        self.files = Files([str(path) for path in paths])
        identities = [identity(str(path)) for path in paths]
        table = cache.kept_table(["pictures", identities], lambda: self._listed(identities))
        self.troubles: dict[str, str] = json.loads(table.schema.metadata[FACTS])
        self._places = np.stack([table[column].to_numpy() for column in ("tar", "at", "size")], axis=1)
        super().__init__(table["name"].to_pylist(), where)

    def _listed(self, identities: list[list[Any]]) -> pa.Table:
        """name, tar, at, size of every image."""
        troubles: dict[str, str] = {}
        rows = []
        with Progress("indexing", sum(size for _, size, _ in identities), bytes_=True) as progress:
            for tar, path in enumerate(self.files.names):
                found = images_in(self.files.open_briefly(tar), path, troubles, progress.advance)
                rows += [
                    {"name": name.encode("utf-8", "replace").decode(), "tar": tar, "at": at, "size": size}
                    for name, (at, size) in found.items()
                ]
        return pa.Table.from_pylist(rows, LISTED).replace_schema_metadata({FACTS: json.dumps(bounded(troubles))})

    def content(self, number: int) -> bytes:
        tar, at, size = self._places[number].tolist()
        return self.files.open(tar).read(at, size)


def find_images(path: Path, names: Sequence[str]) -> tuple[ImageStore, str, dict[str, str]]:
    """(the folder or tar that holds the first picture, its name, troubles). Raises UsageError, also for names of which
    it is not clear which picture they mean."""
    first = names[0]
    split = path.stem.rpartition("_")[2]  # captions_train2017.json -> train2017
    near, above = path.absolute().parent, path.absolute().parent.parent
    places = [
        near,
        near / split,
        near / "images",
        near / "images" / split,
        above / split,
        above / "images" / split,
        above / "images",
        above,
    ]
    for place in places:
        if (place / first).is_file():
            return Folders([str(place)]), str(place), {}
    tars = [near / f"{split}.tar", above / f"{split}.tar", near / "images.tar", above / "images.tar"]
    for tar in filter(Path.is_file, tars):
        pictures = TarImages([tar], str(tar))
        if pictures.names.find(first) is not None:
            missing = dict.fromkeys(pictures.missing(names), f"is not in {tar.name}")
            return pictures, str(tar), {**pictures.troubles, **missing}
    looked = ", ".join(map(str, [*places, *tars]))
    raise UsageError(f"{path}: {first} is in none of {looked}; put the pictures, or a link to them, into one of these")
