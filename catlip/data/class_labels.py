"""Labelled images from tars, folders, tables, COCO files and captions: datasets whose targets are classes.

Wherever labels are text, in a cell of a table or in KEY.cls, a `;` separates the labels of an image. A set is
multi-label if one of its images has two labels, or if it is a COCO file. Classes are kept as numbers, some ten bytes an
image; images are not touched. Nothing in this file needs torch.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catlip.data.dataset import Dataset
from catlip.data.files import expand, kind_of
from catlip.data.subsets import WithClasses, with_classes
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import warn

LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "categories", "cls", "target", "tags", "wnid")


def open_class_labels(data: str, image_col: str | None, label_col: str | None, multi: bool | None) -> Dataset:
    """Labelled images: tars with KEY.cls, a folder with one sub-folder per class, a CSV or TSV with a column of labels,
    or a COCO file of boxes or polygons (each image has the categories that occur in it).

    multi: what the set has to be; None: the data decide. Raises UsageError for anything else, and for a sample
    without a label in a single-label set.
    """
    paths = expand(data)
    if len(paths) == 1 and paths[0].is_dir():
        tars = sorted(paths[0].glob("*.tar"))
        found = _of_tars(tars, data) if tars else _of_folders(paths[0])
    elif all(path.suffix == ".tar" for path in paths):
        found = _of_tars(paths, data)
    elif all(kind_of(path) == "table" for path in paths):
        found = _of_table(paths, data, image_col, label_col)
    elif len(paths) == 1 and kind_of(paths[0]) == "coco":
        found = _of_coco(paths[0])
    else:
        raise UsageError(
            f"{data!r}: expected .tar files with KEY.jpg and KEY.cls, a folder with one folder per class, a .csv or "
            ".tsv with a column of labels, or one COCO .json"
        )
    return checked(found, data, multi)


def classify(dataset: Dataset, labels: Iterable[list[str]], classes: list[str] | None, multi: bool | None) -> Dataset:
    """The dataset with these classes. labels: names of every sample's classes, in order. classes: all there are; None:
    those that occur, sorted, numbers by value. multi: as of `open_dataset`. Raises UsageError."""
    return checked(_made(dataset, labels, classes), dataset.name, multi)


def with_nouns(dataset: Dataset, vocabulary: Vocabulary) -> Dataset:
    """The same samples with those classes of a vocabulary that their captions name; several each, or none."""
    labels, offsets = vocabulary.sparse(dataset.captions())
    return WithClasses(dataset, vocabulary.synsets, labels.astype(np.int64), offsets, multi=True)


def checked(found: Dataset, data: str, multi: bool | None) -> Dataset:
    """Raises UsageError for a sample of several classes, or of none, in a set where each has one."""
    counts = np.diff(found.offsets)
    if multi is False and counts.max() > 1:
        key = found[int(counts.argmax())].key
        raise UsageError(f"{data!r}: {key} has {counts.max()} labels, where each picture should have one")
    found.multi = found.multi if multi is None else multi
    if not found.multi and counts.min() == 0:
        key = found[int(counts.argmin())].key
        raise UsageError(
            f"{data!r}: {(counts == 0).sum():,} of {len(found):,} samples have no label, e.g. {key}; if pictures may "
            "have none or several, say so with `labels` multi"
        )
    return found


def say_troubles(*sets: Dataset) -> None:
    """On standard error, what was left out when these were opened."""
    for data in sets:
        if data.troubles:
            warn(f"{data.name}: {data.described}")


def _made(source: Dataset, labels: Iterable[list[str]], classes: list[str] | None = None) -> Dataset:
    """labels: of every sample, in order. classes: all there are; None: those that occur, sorted, numbers by value."""
    number = {name: i for i, name in enumerate(classes or [])}
    flat, ends = array("q"), array("q", [0])
    for names in labels:
        flat.extend(number.setdefault(name, len(number)) for name in dict.fromkeys(names))
        ends.append(len(flat))
    names, offsets = list(number), np.array(ends, np.int64)
    found = WithClasses(source, names, np.array(flat, np.int64), offsets, multi=bool((np.diff(offsets) > 1).any()))
    if not len(found):
        raise UsageError(f"{source.name} holds no labelled pictures")
    by_value = sorted(names, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    in_order = classes or by_value
    row = {name: i for i, name in enumerate(in_order)}
    return with_classes(found, in_order, [row[name] for name in names])


def names_in(text: str) -> list[str]:
    """The labels of a text."""
    return [name for part in text.split(";") if (name := part.strip())]


def _of_tars(paths: list[Path], data: str) -> Dataset:
    from catlip.data.tars import TarDataset

    source = TarDataset(paths, data)
    without: list[int] = []

    def labels() -> Iterator[list[str]]:
        for number, text in enumerate(source.class_texts()):
            if text is None:
                without.append(number)
            yield names_in(text or "")

    found = _made(source, labels())
    if without:
        key = source[without[0]].key
        raise UsageError(f"{data!r}: {len(without):,} of {len(source):,} samples have no .cls, e.g. {key}")
    return found


def _of_folders(folder: Path) -> Dataset:
    """Each folder in it is a class, whatever lies how deep in it; a class may be a link to a folder."""
    from catlip.data.image_files import Folders, PathDataset, decodable, image_table, listed

    names, labels, troubles = [], [], {}
    folders = (sub.name for sub in folder.iterdir() if sub.is_dir())
    classes = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
    for name in classes:
        for path, _ in listed(str(folder / name), troubles):
            names.append(decodable(f"{name}/{path}"))
            labels.append([decodable(name)])
    if not names:
        raise UsageError(f"{folder} holds no pictures in sub-folders, one sub-folder per class")
    if empty := sorted(set(classes) - {label[0] for label in labels}):
        troubles[empty[0]] = f"no pictures in this folder{f', nor in {len(empty) - 1} others' if empty[1:] else ''}"
    pictures, where = Folders([str(folder)]), str(folder)
    return _made(PathDataset(where, image_table(names), pictures, troubles=troubles, facts=[folder.name]), labels)


def _of_table(paths: list[Path], data: str, image_col: str | None, label_col: str | None) -> Dataset:
    from catlip.data.path_tables import table_dataset
    from catlip.data.tables import IMAGE_COLUMNS, column_names, find_column, first_rows

    columns = column_names(paths[0], "table")

    def first() -> Any:
        return first_rows(paths[0])

    image = find_column(paths[0], columns, image_col, IMAGE_COLUMNS, "picture", "`image_col`", first)
    others = [column for column in columns if column != image]
    label = find_column(paths[0], others, label_col, LABEL_COLUMNS, "label", "`label_col`", first)
    source = table_dataset(paths, data, image, label)
    # A picture that stands in several rows has the labels of all of them.
    return _made(source, ([name for cell in cells for name in names_in(cell)] for cells in source.captions()))


def _of_coco(path: Path) -> Dataset:
    """Crowds count, as a crowd of persons shows persons; pictures without annotations are there, without labels."""
    from catlip.data.coco import coco_tables, told_as_no_coco
    from catlip.data.image_files import PathDataset, image_table
    from catlip.data.image_lookup import find_images

    names, images, annotations, notes = coco_tables(path, str(path))
    with told_as_no_coco(str(path), "annotations"):
        files = [str(entry["file_name"]) for entry in images.values()]
        classes = [names[number] for number in sorted(names)]
    if not files:
        raise UsageError(f"{path} names no pictures")
    labels = [[names[entry["category_id"]] for entry in annotations[image]] for image in images]
    pictures, _, troubles = find_images(path, files)
    facts = [path.name, path.stat().st_size]
    troubles |= {path.name: "; ".join(notes)} if notes else {}
    source = PathDataset(str(path), image_table(files), pictures, troubles=troubles, facts=facts)
    found = _made(source, labels, classes)
    found.multi = True
    return found
