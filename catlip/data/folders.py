"""Folders of pictures with their captions beside them, and COCO captions. Nothing in this file needs torch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data.paths import TEXTS, Folders, PathSource, Pictures, captions_of, plain
from catlip.data.records import lines
from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.data.tars import TarSource
from catlip.errors import UsageError

SIDECARS = (".txt", ".caption")


class FolderSource(PathSource):
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
        table = pa.table({
            "image": pa.array(names, pa.large_string()), "folder": pa.array(np.zeros(len(names), np.uint32)),
            "sidecar": pa.array(sidecars).dictionary_encode(), "rest": pa.nulls(len(names), pa.large_string()),
        })  # fmt: skip
        described = " with captions in .txt files beside them" + (f", {without:,} of them without" if without else "")
        super().__init__(str(folder), described, table, self._folders, [len(names)], troubles, [folder.name])

    def _captions_of(self, number: int) -> list[str]:
        sidecar = self._columns["sidecar"][number].as_py()
        if not sidecar:
            return []
        stem = os.path.splitext(self._columns["image"][number].as_py())[0]
        return lines(self._folders.read(0, stem + sidecar).decode("utf-8-sig", "replace"))


def listed(folder: str, troubles: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(path from `folder`, suffix of its sidecar or "") of all pictures, in the order of their names."""
    todo = [""]
    while todo:
        inside = todo.pop()
        pictures, texts, folders = [], set(), []
        try:
            with os.scandir(os.path.join(folder, inside)) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    if entry.name.startswith(".") or entry.name == "__MACOSX":  # what macOS puts into archives
                        continue
                    if suffix.lower()[1:] in IMAGE_EXTENSIONS:
                        pictures.append(entry.name)
                    elif suffix in SIDECARS:
                        texts.add(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(os.path.join(inside, entry.name))
                    elif entry.is_symlink() and entry.is_dir():
                        troubles[os.path.join(inside, entry.name)] = "a link to a folder is not followed"
        except OSError as error:
            troubles[inside or folder] = f"left out: {error.strerror}"
        todo += sorted(folders, reverse=True)
        for name in sorted(pictures):
            stem = os.path.splitext(name)[0]
            yield os.path.join(inside, name), next((s for s in SIDECARS if stem + s in texts), "")


class TarPictures:
    """Pictures of tars by the names of their members' keys."""

    def __init__(self, tars: TarSource) -> None:
        self.tars = tars
        self.numbers = {key.rpartition("/")[2]: number for number, key in enumerate(tars.keys())}

    def __contains__(self, name: str) -> bool:
        return _key(name) in self.numbers

    def read(self, folder: int, name: str) -> bytes:
        number = self.numbers.get(_key(name))
        return b"" if number is None else self.tars.read(number).image


def _key(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


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
            return {name: (captions_of(cell), {}) for name, cell in content.items() if isinstance(cell, str | list)}
        found: dict[Any, tuple[list[str], dict[str, Any]]] = {image["id"]: ([], image) for image in content["images"]}
        for annotation in content["annotations"]:
            found[annotation["image_id"]][0].extend(captions_of(annotation["caption"]))
        return {image["file_name"]: (captions, image) for captions, image in found.values()}
    except (KeyError, TypeError) as error:
        kind = " (boxes or polygons? the captions are in captions_*.json)" if "categories" in content else ""
        raise UsageError(f"{path}: expected COCO captions, {expected}, but there is no {error}{kind}") from None


def coco_source(path: Path) -> PathSource:
    """Pictures of a COCO captions file, wherever they usually lie. Raises UsageError, saying where was looked."""
    found = coco_captions(path)
    if not found:
        raise UsageError(f"{path} names no pictures with captions")
    pictures, where = pictures_of(path, next(iter(found)))
    table = pa.table({
        "image": pa.array(list(found), pa.large_string()),
        "folder": pa.array(np.zeros(len(found), np.uint32)),
        "captions": pa.array([captions for captions, _ in found.values()], TEXTS),
        "rest": pa.array([json.dumps(plain((k, v) for k, v in image.items() if k != "file_name"))
                          for _, image in found.values()], pa.large_string()),
    })  # fmt: skip
    facts = [path.name, path.stat().st_size]
    return PathSource(str(path), f" of {where} with COCO captions", table, pictures, [len(found)], {}, facts)


def pictures_of(path: Path, first: str) -> tuple[Pictures, str]:
    """The folder or tar that holds the first picture."""
    split = path.stem.rpartition("_")[2]  # captions_train2017.json -> train2017
    near, above = path.absolute().parent, path.absolute().parent.parent
    places = [near, near / split, near / "images", near / "images" / split, above / split, above / "images" / split,
              above / "images", above]  # fmt: skip
    for place in places:
        if (place / first).is_file():
            return Folders([str(place)]), str(place)
    tars = [near / f"{split}.tar", above / f"{split}.tar", near / "images.tar", above / "images.tar"]
    for tar in filter(Path.is_file, tars):
        pictures = TarPictures(TarSource([tar], str(tar)))
        if _key(first) in pictures.numbers:
            return pictures, str(tar)
    looked = ", ".join(map(str, [*places, *tars]))
    raise UsageError(f"{path}: {first} is in none of {looked}; put the pictures, or a link to them, into one of these")
