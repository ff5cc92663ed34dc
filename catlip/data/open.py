"""`open_dataset`: one door for whatever holds images. Readers are imported by those who need them.

Nothing in this file needs torch.
"""

import glob
import os
import re
from pathlib import Path
from typing import Any, Literal

from catlip.data.dataset import Dataset
from catlip.data.files import expand_names, is_url, kind_of, local_glob
from catlip.errors import UsageError


def open_dataset(
    data: Any,
    *,
    target: Literal["classes", "objects", "masks"] | None = None,
    image_col: str | None = None,
    text_col: str | None = None,
    label_col: str | None = None,
    images: str | None = None,
    multi: bool | None = None,
    split: Literal["train", "test"] = "train",
    cache_gb: float = 100.0,
    fingerprint: str | None = None,
) -> Dataset:
    """Find out what `data` is, and open it.

    data: a path, a pattern of paths, or a URL; `a + b@2` mixes datasets, the second seen twice an epoch. Also what is
        in memory: a list of (image, caption or captions) or (image, class), a torch map-style dataset of such items, a
        Hugging Face `datasets.Dataset`; an image is bytes, a path, a PIL image or uint8 [h, w, 3]. A `Dataset` is
        returned as it is.
    target: "classes": labelled images (see `class_labels.py`). "objects": a COCO file of boxes, whose
        targets are `Objects`. "masks": images with a mask each (see `mask_classes.py`).
    image_col, text_col, label_col: columns of a table or keys of dicts; None: guessed, and stated in `described`.
        Captions may be in several columns, "category,colour".
    images: of a COCO file of boxes: a folder, or tars; None: where they usually lie.
    multi: whether images may have several classes; None: the data decide.
    split: which part of a folder of masks is meant.
    cache_gb: bound of the folder that remote shards are fetched to.
    fingerprint: any text that changes with the data, for data in memory that cannot be hashed: a run resumes only on
        data of the same fingerprint.

    Raises UsageError, naming what was found, for anything that cannot be read.

    >>> import numpy as np
    >>> dataset = open_dataset([(np.zeros((8, 8, 3), np.uint8), "a black square")])
    >>> len(dataset), dataset[0].captions
    (1, ['a black square'])
    >>> open_dataset([(np.zeros((8, 8, 3), np.uint8), c) for c in ("cat", "dog")], target="classes").classes
    ['cat', 'dog']
    """
    if isinstance(data, Dataset) and target != "classes" and fingerprint is None:
        return data
    if not isinstance(data, str | os.PathLike):
        from catlip.data.adapters import adapt

        columns = {"image_col": image_col, "text_col": text_col, "label_col": label_col}
        return adapt(data, classes=target == "classes", fingerprint=fingerprint, multi=multi, **columns)
    if fingerprint is not None:
        raise UsageError(f"`fingerprint` {fingerprint!r}: files have one of their own; leave it out")
    data = str(data)
    if target == "classes":
        from catlip.data.class_labels import open_class_labels

        return open_class_labels(data, image_col, label_col, multi)
    if target == "objects":
        from catlip.data.coco import picture_source, read_instances

        return picture_source(read_instances(data, "`data`"), images)
    if target == "masks":
        from catlip.data.mask_sets import open_masks

        return open_masks(data, split)
    datasets, weights = [], []
    for name, weight in mixed(data):
        datasets.append(_open_one(name, image_col, text_col, cache_gb))
        weights.append(weight)
    if weights == [1.0]:
        return datasets[0]
    from catlip.data.subsets import mix

    return mix(datasets, weights, data)


def mixed(data: str) -> list[tuple[str, float]]:
    """`a + b@2` -> [("a", 1.0), ("b", 2.0)]. Raises UsageError for a weight of 0."""
    return [_weight(part) for part in re.split(r"\s+\+\s+", data.strip())]


def _weight(part: str) -> tuple[str, float]:
    match = re.fullmatch(r"(.+?)\s*@\s*(\d+\.?\d*|\.\d+)", part)
    if match is None or os.path.exists(part):
        return part, 1.0
    weight = float(match[2])
    if not weight:
        raise UsageError(f"`data` {part!r}: a weight is greater than 0; leave the source out instead")
    return match[1], weight


def located(data: str) -> tuple[str, list[str]]:
    """(kind, files or URLs) of what one part of `data` names: a kind of `tables.kind_of`, or "folder".

    In a folder: a metadata file of Hugging Face's imagefolder, else shards, else pictures and sidecars. Raises
    UsageError for files that cannot be read, or not together.
    """
    names = expand_names(data)
    if len(names) == 1 and os.path.isdir(names[0]):
        for pattern in ("metadata.csv", "metadata.jsonl", "metadata.parquet", "*.tar", "*.parquet"):
            if found := local_glob(f"{glob.escape(names[0].rstrip('/'))}/{pattern}"):
                return kind_of(Path(found[0])), found
        return "folder", names
    packed = next((name for name in names if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".zip"))), None)
    if packed:
        raise UsageError(f"`data` {packed} is compressed; only plain tars can be read at any place: unpack it")
    kinds = {kind_of(Path(re.sub(r"[?#].*", "", name) if is_url(name) else name)) for name in names}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if not kind or (kind == "coco" and len(names) > 1):
        found = ", ".join(sorted({Path(name).suffix or "a folder" for name in names}))
        raise UsageError(
            f"`data` {data!r}: expected files of one kind (.tar, .csv, .tsv, .jsonl, .parquet), a COCO .json "
            f"or a folder, found {found}"
        )
    return kind, names


def _open_one(data: str, image_col: str | None, text_col: str | None, cache_gb: float) -> Dataset:
    kind, names = located(data)
    if kind == "folder":
        from catlip.data.image_files import FolderDataset

        return FolderDataset(Path(names[0]))
    if kind == "tar":
        from catlip.data.tars import TarDataset

        return TarDataset(names, data, cache_gb)
    if kind in ("parquet", "jsonl"):
        from catlip.data.inline_images import open_inline

        if (found := open_inline(kind, names, data, image_col, text_col, cache_gb)) is not None:
            return found
    if any(map(is_url, names)):
        raise UsageError(f"`data` {data!r}: only tars, and Parquet with the bytes of pictures, are read from a URL")
    paths = list(map(Path, names))
    if kind == "coco":
        from catlip.data.coco import coco_caption_dataset

        return coco_caption_dataset(paths[0])
    from catlip.data.path_tables import table_dataset

    return table_dataset(paths, data, image_col, text_col)


def open_images(where: Any) -> Dataset:
    """Images of which only the images are wanted: a folder (recursively), one image, or what `open_dataset` takes; also
    a list of nothing but images: paths, encoded bytes, PIL images or uint8 arrays [h, w, 3].

    Raises UsageError for a path that holds none.
    """
    if isinstance(where, list | tuple) and where and not isinstance(where[0], list | tuple | dict):
        keys = [str(one) if isinstance(one, str | Path) else str(index) for index, one in enumerate(where)]
        return open_dataset([{"key": key, "image": one} for key, one in zip(keys, where, strict=True)])
    if not isinstance(where, str | Path):
        return open_dataset(where)
    where = str(where)
    from catlip.data.image_files import Folders, PathDataset, decodable, image_table, is_image, listed
    from catlip.data.path_tables import NO_CAPTIONS

    path = Path(where)
    if path.is_dir():
        troubles: dict[str, str] = {}
        names = sorted(decodable(name) for name, _ in listed(where, troubles))
        if not names:
            raise UsageError(f"{where} holds no pictures")
        return PathDataset(where, image_table(names), Folders([where]), troubles=troubles)
    if is_image(path):
        if not path.is_file():
            raise UsageError(f"no such picture: {where}")
        return PathDataset(where, image_table([path.name]), Folders([str(path.parent)]))
    return open_dataset(where, text_col=NO_CAPTIONS)
