"""Folders of pictures with their captions beside them, and COCO captions. Nothing in this file needs torch."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data import indexes
from catlip.data.dataset import bounded, lines
from catlip.data.names import Names
from catlip.data.paths import FACTS, TEXTS, Folders, PathDataset, Pictures, plain, without_captions
from catlip.data.remote import Files
from catlip.data.shards import IMAGE_EXTENSIONS, pictures_in
from catlip.data.tables import captions_of
from catlip.data.tars import identity
from catlip.data.textfiles import decoded
from catlip.errors import UsageError

SIDECARS = (".txt", ".caption")
LISTED = pa.schema([("name", pa.large_string()), *((column, pa.int64()) for column in ("tar", "at", "size"))])


class FolderDataset(PathDataset):
    """Pictures of a folder and its sub-folders; `1.jpg` has its captions, one a line, in `1.txt` or `1.caption`.

    Files are listed, not touched, until they are read: a million of them take seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = Folders([str(folder)])
        troubles: dict[str, str] = {}
        names, sidecars = [], []
        for name, sidecar in listed(str(folder), troubles):
            names.append(os.fsencode(name).decode("utf-8", "replace"))
            sidecars.append(sidecar)
        if not any(sidecars):
            found = f"{len(names):,} pictures but not one caption" if names else "no pictures"
            raise UsageError(
                f"{folder} holds {found}; expected 1.jpg with its captions in 1.txt, or metadata.csv or metadata.jsonl "
                f"with the columns file_name and text"
            )
        without = sidecars.count("")
        table = pa.table(
            {
                "image": pa.array(names, pa.large_string()),
                "folder": pa.array(np.zeros(len(names), np.uint32)),
                "sidecar": pa.array(sidecars).dictionary_encode(),
                "rest": pa.nulls(len(names), pa.large_string()),
            }
        )
        described = " with captions in .txt files beside them" + (
            f", {without:,} of them without a caption" if without else ""
        )
        super().__init__(str(folder), described, table, self._folders, [len(names)], troubles, [folder.name])

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


class TarPictures:
    """Pictures of tars by the names of their members, with their folders; each member is one, whatever its key."""

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        """where: what was named, for messages. Raises UsageError for a tar of which nothing can be read."""
        self.files = Files([str(path) for path in paths])
        table = self._listed([identity(str(path)) for path in paths])
        self.troubles: dict[str, str] = json.loads(table.schema.metadata[FACTS])
        self.names = Names(table["name"].to_pylist(), where)
        self._places = np.stack([table[column].to_numpy() for column in ("tar", "at", "size")], axis=1)

    def _listed(self, identities: list[list[Any]]) -> pa.Table:
        """name, tar, at, size of every picture; kept where that was slow to find out."""
        kept, began = indexes.name_of(["pictures", identities]), time.monotonic()
        table = indexes.load(kept)
        if table is not None:
            return table
        troubles: dict[str, str] = {}
        rows = []
        with indexes.Progress("indexing", sum(size for _, size, _ in identities), bytes_=True) as progress:
            for tar, path in enumerate(self.files.names):
                found = pictures_in(self.files.open_briefly(tar), path, troubles, progress.advance)
                rows += [
                    {"name": name.encode("utf-8", "replace").decode(), "tar": tar, "at": at, "size": size}
                    for name, (at, size) in found.items()
                ]
        table = pa.Table.from_pylist(rows, LISTED).replace_schema_metadata({FACTS: json.dumps(bounded(troubles))})
        return indexes.keep(kept, table) if time.monotonic() - began > indexes.WORTH_KEEPING else table

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the names that no member has. Raises UsageError where it is not clear which member is meant."""
        return [name for name, number in zip(names, self.names.find_all(names), strict=True) if number is None]

    def read(self, folder: int, name: str) -> bytes:
        number = self.names.find(name)
        if number is None:
            return b""
        tar, at, size = self._places[number].tolist()
        return self.files.open(tar).read(at, size)


class FolderPictures:
    """Pictures of a folder and its sub-folders by their names; `TarPictures` without a tar."""

    def __init__(self, folder: str) -> None:
        self.folders = Folders([folder])
        self.names = Names((name for name, _ in listed(folder, {})), folder)

    def missing(self, names: Sequence[str]) -> list[str]:
        """As of `TarPictures`."""
        return [name for name, number in zip(names, self.names.find_all(names), strict=True) if number is None]

    def read(self, folder: int, name: str) -> bytes:
        number = self.names.find(name)
        return b"" if number is None else self.folders.read(0, self.names.names[number])


def coco_captions(path: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """{file name: (captions, other fields)} of a COCO captions file, or of {"1.jpg": ["a dog"]}. Raises UsageError."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    expected = '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} or {"1.jpg": ["a dog"]}'
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path}: expected COCO captions, {expected}, found {type(content).__name__}")
    try:
        if "images" not in content:
            found = {name: (captions_of(cell), {}) for name, cell in content.items() if isinstance(cell, str | list)}
        else:
            images = content["images"]
            by_id: dict[Any, tuple[list[str], dict[str, Any]]] = {image["id"]: ([], image) for image in images}
            for annotation in content["annotations"]:
                by_id[annotation["image_id"]][0].extend(captions_of(annotation["caption"]))
            found = {image["file_name"]: (captions, image) for captions, image in by_id.values()}
            if len(found) < len(images):
                names = Counter(name for image in images for name in (image["file_name"], f"id {image['id']}"))
                raise UsageError(f"{path}: two pictures are called {names.most_common(1)[0][0]!r}")
    except (KeyError, TypeError) as error:
        kind = " (boxes or polygons? the captions are in captions_*.json)" if "categories" in content else ""
        raise UsageError(f"{path}: expected COCO captions, {expected}, but there is no {error}{kind}") from None
    if found and not any(captions for captions, _ in found.values()):
        raise UsageError(f"{path} holds not one caption; expected COCO captions, {expected}")
    return found


def coco_source(path: Path) -> PathDataset:
    """Pictures of a COCO captions file, wherever they usually lie. Raises UsageError, saying where was looked."""
    found = coco_captions(path)
    if not found:
        raise UsageError(f"{path} names no pictures with captions")
    pictures, where, troubles = pictures_of(path, list(found))
    table = pa.table(
        {
            "image": pa.array(list(found), pa.large_string()),
            "folder": pa.array(np.zeros(len(found), np.uint32)),
            "captions": pa.array([captions for captions, _ in found.values()], TEXTS),
            "rest": pa.array(
                [
                    json.dumps(plain((k, v) for k, v in image.items() if k != "file_name"))
                    for _, image in found.values()
                ],
                pa.large_string(),
            ),
        }
    )
    facts = [path.name, path.stat().st_size]
    described = f" of {where} with COCO captions{without_captions(table)}"
    return PathDataset(str(path), described, table, pictures, [len(found)], troubles, facts)


def pictures_of(path: Path, names: Sequence[str]) -> tuple[Pictures, str, dict[str, str]]:
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
        pictures = TarPictures([tar], str(tar))
        if pictures.names.find(first) is not None:
            missing = dict.fromkeys(pictures.missing(names), f"is not in {tar.name}")
            return pictures, str(tar), {**pictures.troubles, **missing}
    looked = ", ".join(map(str, [*places, *tars]))
    raise UsageError(f"{path}: {first} is in none of {looked}; put the pictures, or a link to them, into one of these")
