"""What people have in memory as a `Dataset`: a list, a torch map-style dataset, a Hugging Face `datasets.Dataset`.

Items are (image, text or class) or dicts. An image is encoded bytes, a path, a PIL image or a uint8 array. Loader
workers are forked, so nothing is copied for them. Neither torch nor `datasets` is imported here.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from catlip.data.class_labels import LABEL_COLUMNS, checked, classify
from catlip.data.dataset import Dataset, Sample
from catlip.data.image_files import Folders, metadata_of
from catlip.data.images import image_content
from catlip.data.subsets import Subset, subset
from catlip.data.tables import IMAGE_COLUMNS, TEXT_COLUMNS, captions_of, find_column, text_columns
from catlip.errors import UsageError

MAX_HASHED = 1 << 30  # bytes of images: what a fingerprint is computed of without being told
EXPECTED = 'an item is (image, caption), (image, class) or a dict with "image" and "caption" or "label"'
FILES = Folders([""], "paths are relative to the current folder")


class Adapted(Dataset):
    """Items of a list or of a torch map-style dataset."""

    def __init__(self, items: Any, fingerprint: str | None, image_col: str | None, text_col: str | None) -> None:
        self.items: Any = items
        self.stated = fingerprint
        self.name = f"{type(items).__module__}.{type(items).__name__}".removeprefix("builtins.")
        if not len(self):
            raise UsageError(f"`data`: the {self.name} is empty")
        self.in_memory = isinstance(items, list | tuple)
        if self.in_memory:
            self.items = [_loaded(item) for item in items]
        first = self.first = self.row(0)
        self.image = find_column(
            f"`data` {self.name}", list(first), image_col, self.image_names(), "image", "`image_col`"
        )
        self.text = text_col or self.text_column()
        self.described = f"{len(self):,} samples of a {self.name}, images from {self.image!r}" + (
            f", captions from {self.text!r}" if self.text else ""
        )
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # datasets of other people are made for processes, not for threads

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def image_names(self) -> tuple[str, ...]:
        return IMAGE_COLUMNS

    def text_column(self) -> str | None:
        """The column of captions: of the usual names, one that holds texts."""
        usual = [name for name in TEXT_COLUMNS if name not in LABEL_COLUMNS]
        by_lower = {name.lower(): name for name in self.first if name != self.image}
        found = [by_lower[name] for name in usual if name in by_lower]
        texts = [name for name in found if _is_text(self.first[name])]
        return next(iter(texts or [name for name in found if self.first[name] in (None, [])]), None)

    @property
    def text_columns(self) -> list[str]:
        return text_columns(self.text, self.first) if self.text else []

    def __len__(self) -> int:
        return len(self.items)

    def row(self, index: int) -> dict[str, Any]:
        """An item by the names of its parts."""
        return _named(self.items[index])

    def __getitem__(self, index: int) -> Sample:
        if self.in_memory:
            row = self.row(index)
        else:
            with self._lock:
                row = self.row(index)
        image, key = row.pop(self.image, None), row.pop("key", None)
        columns = self.text_columns
        captions = [text for column in columns for text in captions_of(_listed(row.get(column)))]
        if len(columns) == 1:
            row.pop(columns[0], None)
        return Sample(str(index if key is None else key), image_of(image), captions, None, metadata_of(_simple(row)))

    def column(self, name: str) -> Iterable[Any]:
        """The values of a column; images of a list are not touched."""
        return (self.row(index).get(name) for index in range(len(self)))

    def captions(self) -> Iterator[list[str]]:
        if not self.text:
            return ([] for _ in range(len(self)))
        columns = map(self.column, self.text_columns)
        return ([text for cell in cells for text in captions_of(_listed(cell))] for cells in zip(*columns, strict=True))

    def class_cells(self, label_col: str | None) -> tuple[Iterable[Any], list[str] | None]:
        """(class of every sample: a name, a number or a list of them; names of the numbers, where they are known)."""
        classes = getattr(self.items, "classes", None)
        names = list(map(str, classes)) if classes is not None else None
        targets = getattr(self.items, "targets", None)
        if targets is not None and len(targets) == len(self):
            return targets, names
        return self.column(self.label_column(label_col)), names

    def label_column(self, label_col: str | None) -> str:
        others = [name for name in self.first if name != self.image]
        usual = (*LABEL_COLUMNS, "caption") if set(others) <= {"caption", "label"} else LABEL_COLUMNS
        return find_column(f"`data` {self.name}", others, label_col, usual, "class", "`label_col`")

    def fingerprint(self) -> list[Any]:
        if self.stated is not None:
            return [self.stated, len(self)]
        if self.in_memory and self._digest:
            return [self._digest, len(self)]
        return super().fingerprint()

    @cached_property
    def _digest(self) -> str:
        """Of all items; "" if there is too much to hash."""
        found, hashed = hashlib.sha256(), 0
        for index in range(len(self)):
            row = self.row(index)
            image = row.pop(self.image, None)
            if isinstance(image, str | os.PathLike):
                size = os.path.getsize(image) if os.path.exists(image) else -1
                content = f"{os.fspath(image)} {size}".encode()
            else:
                content = image_content(image_of(image))
            hashed += len(content)
            if hashed > MAX_HASHED:
                return ""
            found.update(len(content).to_bytes(8, "big") + content)
            found.update(repr(sorted(_simple(row).items())).encode())
        return found.hexdigest()[:16]


class HuggingFace(Adapted):
    """A Hugging Face `datasets.Dataset`: rows are read as they lie in its Arrow files, images still encoded."""

    def __init__(self, items: Any, *args: Any) -> None:
        self.features = dict(items.features)
        # A transform or format that somebody set is part of the data; without one the decoding is left to the loader.
        self.arrow = items.with_format("arrow") if items.format["type"] is None else None
        super().__init__(items, *args)

    def row(self, index: int) -> dict[str, Any]:
        return dict(self.items[index]) if self.arrow is None else self.arrow[index].to_pylist()[0]

    def image_names(self) -> tuple[str, ...]:
        named = [name for name, feature in self.features.items() if type(feature).__name__ == "Image"]
        return (*(name.lower() for name in named), *IMAGE_COLUMNS)

    def column(self, name: str) -> Iterable[Any]:
        only = self.items.select_columns([name])
        for start in range(0, len(only), 1000):
            yield from only[start : start + 1000][name]

    def class_cells(self, label_col: str | None) -> tuple[Iterable[Any], list[str] | None]:
        name = self.label_column(label_col)
        feature = self.features.get(name)
        return self.column(name), getattr(getattr(feature, "feature", feature), "names", None)

    def label_column(self, label_col: str | None) -> str:
        named = next((name for name, feature in self.features.items() if hasattr(feature, "names")), None)
        return super().label_column(label_col or named)

    def fingerprint(self) -> list[Any]:
        return [self.stated if self.stated is not None else self.items._fingerprint, len(self)]


class Stated(Subset):
    """A dataset with a fingerprint that its owner states."""

    def __init__(self, dataset: Dataset, fingerprint: str) -> None:
        super().__init__(dataset, np.arange(len(dataset)))
        self.described, self.stated = dataset.described, fingerprint
        if dataset.has_classes:
            self.classes, self.multi = dataset.classes, dataset.multi
            self.labels, self.offsets = dataset.labels, dataset.offsets

    def fingerprint(self) -> list[Any]:
        return [self.stated, len(self)]


def adapt(
    data: Any,
    *,
    classes: bool,
    fingerprint: str | None,
    image_col: str | None,
    text_col: str | None,
    label_col: str | None,
    multi: bool | None,
) -> Dataset:
    """A dataset of what somebody has in memory. classes: labelled images are wanted.

    Without captions, images that have classes are opened as such. Raises UsageError for what cannot be read.
    """
    if isinstance(data, Dataset):
        given = data if fingerprint is None else Stated(data, fingerprint)
        if classes and not given.has_classes:
            return _classes_of(given, multi)
        if classes and multi not in (None, given.multi):
            return checked(subset(given, np.arange(len(given))), given.name, multi)
        return given
    if hasattr(data, "keys") and hasattr(data, "values"):
        raise UsageError(f"`data` has the parts {', '.join(map(str, data))}: choose one, data[{next(iter(data))!r}]")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UsageError(
            f"`data` is a {type(data).__name__}: what has no length and no [index] cannot be resumed exactly; give a "
            "path, a list, a map-style dataset, or a catlip.Dataset"
        )
    kind = HuggingFace if hasattr(data, "_fingerprint") and hasattr(data, "features") else Adapted
    found = kind(data, fingerprint, image_col, text_col)
    has_labels = not {name.lower() for name in found.first}.isdisjoint(LABEL_COLUMNS)
    if not classes and (found.text or not has_labels):
        return found
    cells, names = found.class_cells(label_col)
    found.text = None
    return classify(found, *_class_names(cells, names), multi)


def _classes_of(dataset: Dataset, multi: bool | None) -> Dataset:
    """The targets of an own dataset, which are class indices, one or several; `dataset.classes` may name them."""
    cells = (sample.target for sample in dataset)
    return classify(dataset, *_class_names(cells, getattr(dataset, "classes", None)), multi)


def _class_names(cells: Iterable[Any], names: list[str] | None) -> tuple[Iterator[list[str]], list[str] | None]:
    """(names of every sample's classes, all names in order or None) of names or numbers."""

    def of(cell: Any) -> Iterator[str]:
        cell = _listed(cell)
        for one in cell if isinstance(cell, list) else [cell]:
            if isinstance(one, str):
                yield one
            elif one is not None:
                one = _listed(one)
                if not isinstance(one, int | float) or one % 1:
                    raise UsageError(f"`data`: a class is a name or a whole number, not {one!r:.60}")
                number = int(one)
                if names is None:
                    yield str(number)
                elif 0 <= number < len(names):
                    yield names[number]
                elif number != -1:  # Hugging Face's sets have -1 where the class is not known
                    raise UsageError(f"`data`: there is a sample of class {number}, but {len(names)} classes are named")

    return (list(of(cell)) for cell in cells), names


def image_of(value: Any) -> Any:
    """Bytes, a PIL image or a uint8 array [h, w, 3] or [h, w] of what stands for an image. Raises UsageError."""
    if isinstance(value, dict):  # of Hugging Face
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | os.PathLike):
        return FILES.read(0, os.fspath(value))
    if value is None:
        return b""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        return value
    array = np.asarray(value)  # also a torch tensor
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UsageError(
            f"`data`: an image is a {type(value).__name__} of {array.dtype} {list(array.shape)}; expected bytes, a "
            "path, a PIL image, or uint8 [h, w, 3] (leave out a transform to floating point: catlip crops and scales)"
        )
    first = array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4)  # [3, h, w]
    return np.moveaxis(array, 0, 2) if first else array


def _loaded(item: Any) -> Any:
    """PIL opens files lazily, and processes would share their position: read now, or by each process anew."""
    image = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(image, Image.Image) and getattr(image, "tile", None):
        if (path := getattr(image, "filename", "")) and Path(path).is_file():
            return (str(path), *item[1:]) if image is not item else str(path)
        image.load()
    return item


def _named(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return dict(item)
    if isinstance(item, Sample):
        return {"key": item.key, "image": item.image, "caption": item.captions, "label": item.target, **item.metadata}
    if isinstance(item, tuple | list) and len(item) == 2:
        value = _listed(item[1])
        first = next(iter(value), "") if isinstance(value, list) else value
        return {"image": item[0], "caption" if first is None or isinstance(first, str) else "label": value}
    if isinstance(item, str | os.PathLike | bytes | Image.Image | np.ndarray):
        return {"image": item}
    raise UsageError(f"`data`: {EXPECTED}; found a {type(item).__name__}: {' '.join(str(item).split())[:80]}")


def _listed(cell: Any) -> Any:
    """Tuples, arrays and tensors as Python's own lists and numbers."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    return list(cell) if isinstance(cell, tuple) else cell


def _is_text(value: Any) -> bool:
    value = _listed(value)
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _simple(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row is small and fit for JSON: no images, arrays, or bytes."""
    return {k: v for k, v in row.items() if isinstance(v, str | int | float | bool | list | dict)}
