"""Pictures of which only the pictures are wanted: a folder, a file, tars, or a table of paths."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catlip.data.dataset import Dataset
from catlip.data.folders import listed
from catlip.data.open import open_dataset
from catlip.data.paths import NO_CAPTIONS, TEXTS, Folders, PathDataset, Pictures
from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.errors import UsageError


def open_pictures(where: str) -> Dataset:
    """The pictures of a folder (recursively), one picture, or tars and tables as `--data` takes them.

    Raises UsageError for a path that holds none.
    """
    path = Path(where)
    if path.is_dir():
        troubles: dict[str, str] = {}
        names = sorted(decodable(name) for name, _ in listed(where, troubles))
        if not names:
            raise UsageError(f"{where} holds no pictures")
        return picture_files(where, names, Folders([where]), troubles)
    if is_picture(path):
        if not path.is_file():
            raise UsageError(f"no such picture: {where}")
        return picture_files(where, [path.name], Folders([str(path.parent)]))
    return open_dataset(where, text_col=NO_CAPTIONS)


def picture_files(
    name: str,
    files: Sequence[str],
    pictures: Pictures,
    troubles: dict[str, str] | None = None,
    facts: Sequence[Any] = (),
    described: str = "",
) -> PathDataset:
    """Pictures by their names in `pictures`, without captions. facts: of the fingerprint."""
    table = pa.table(
        {
            "image": pa.array(files, pa.large_string()),
            "folder": pa.array(np.zeros(len(files), np.uint32)),
            "captions": pa.array([[]] * len(files), TEXTS),
            "rest": pa.nulls(len(files), pa.large_string()),
        }
    )
    return PathDataset(name, described, table, pictures, [len(files)], troubles or {}, list(facts))


def decodable(name: str) -> str:
    """A file's name as Arrow can hold it; where it is no UTF-8, the file will not be found, and be counted."""
    return os.fsencode(name).decode("utf-8", "replace")


def is_picture(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
