"""COCO files: captions, and which categories are where in which image. Nothing in this file needs torch."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catlip.data.files import expand
from catlip.data.image_files import PathDataset, image_table, metadata_of, without_captions
from catlip.data.image_lookup import FolderImages, NamedImages, TarImages, find_images
from catlip.data.images import MAX_PIXELS
from catlip.data.objects import Mask, Objects, RunLengths, run_lengths
from catlip.data.tables import captions_of
from catlip.errors import UsageError

ShareBox = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture, in [0, 1]


# Ids of the 80 categories that the 2014 and 2017 annotations have, of the 91 that the paper lists (1405.0312).
COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
COCO_NAMES = ["person", "stop sign", "toothbrush"]  # the first, the one before the first gap, the last


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


def coco_caption_dataset(path: Path) -> PathDataset:
    """Images of a COCO captions file, wherever they usually lie. Raises UsageError, saying where was looked."""
    found = coco_captions(path)
    if not found:
        raise UsageError(f"{path} names no pictures with captions")
    pictures, where, troubles = find_images(path, list(found))
    others = ({k: v for k, v in image.items() if k != "file_name"} for _, image in found.values())
    rest = [json.dumps(metadata_of(image)) for image in others]
    table = image_table(list(found), [captions for captions, _ in found.values()], rest)
    facts = [path.name, path.stat().st_size]
    described = f" of {where} with COCO captions{without_captions(table)}"
    return PathDataset(str(path), table, pictures, described=described, troubles=troubles, facts=facts)


@dataclass(slots=True)
class Instances:
    """A COCO file of boxes or masks."""

    path: Path
    names: list[str]  # of the classes; classes are numbered in the order of the file, whatever its ids are
    ids: list[Any]  # of the categories, as the file has them
    pictures: dict[str, Objects]  # file name, as the file has it -> what it shows; also those that show nothing
    notes: list[str] = field(default_factory=list)  # what was left out of the file
    dropped: int = 0  # boxes without an area inside their picture
    clipped: int = 0  # boxes that reach beyond their picture, by more than a pixel
    corners: bool = True  # all boxes could be left, top, right, bottom

    @property
    def described(self) -> str:
        boxes = [objects.classes[~objects.crowd] for objects in self.pictures.values()]
        found = f"{sum(map(len, boxes)):,} boxes of {len(self.names):,} classes in {len(boxes):,} pictures"
        empty = sum(not len(box) for box in boxes)
        without = len(self.names) - len({int(label) for box in boxes for label in box})
        crowds = sum(int(objects.crowd.sum()) for objects in self.pictures.values())
        notes = [f"{empty:,} pictures without boxes"] * bool(empty) + [f"{crowds:,} crowds"] * bool(crowds)
        notes += [f"{without:,} classes without a box"] * bool(without)
        notes += [f"{self.dropped:,} boxes without an area left out"] * bool(self.dropped)
        if self.clipped and self.corners:
            notes.append(
                f"{self.clipped:,} boxes reach beyond their picture and are clipped: all look like left, top, right, "
                "bottom, but COCO's are left, top, width, height"
            )
        notes += self.notes
        return found + (f" ({', '.join(notes)})" if notes else "")

    def check(self, option: str) -> None:
        """Raises UsageError if there is not one box; crowds are none."""
        if all(objects.crowd.all() for objects in self.pictures.values()):
            raise UsageError(f"{option} {self.path} holds no boxes: {self.described}")

    def boxes(self) -> dict[str, dict[str, list[ShareBox]]]:
        """{file name: {category: boxes}} of all pictures; without crowds, as most of their box is none of them."""
        found: dict[str, dict[str, list[ShareBox]]] = {}
        for name, objects in self.pictures.items():
            shares = objects.boxes.astype(np.float64) / [objects.width, objects.height, objects.width, objects.height]
            here = found[name] = {}
            for box, label, crowd in zip(shares.tolist(), objects.classes, objects.crowd, strict=True):
                if not crowd:
                    here.setdefault(self.names[label], []).append(tuple(box))
        return found


def read_instances(path: str | Path, option: str = "`boxes`") -> Instances:
    """Raises UsageError for anything but COCO's {"images", "annotations", "categories"} with boxes.

    Boxes are clipped to their picture; what has no area there is left out and counted.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{option}: no such file: {path}")
    where = f"{option} {path}"
    names, images, annotations, notes = coco_tables(path, where)
    class_of = {category: number for number, category in enumerate(names)}
    found = Instances(path, list(names.values()), list(names), {}, notes)
    with told_as_no_coco(where, "boxes"):
        _refuse_twice([str(entry["file_name"]) for entry in images.values()], f"{where}: two pictures are called")
        for entry in images.values():
            objects = _objects(entry, annotations.pop(entry["id"]), class_of, found, option)
            found.pictures[objects.name] = objects
    return found


def coco_tables(path: Path, where: str) -> tuple[dict[Any, str], dict[Any, Any], dict[Any, list[Any]], list[str]]:
    """({category id: name}, {picture id: entry}, {picture id: its annotations}, notes), in the order of the file.

    Annotations of a picture or category that is not listed, as in a file that was cut to some of them, are left out,
    which the notes say. Raises UsageError, which begins with `where`, for anything but COCO's {"images", "annotations",
    "categories"}, if no annotation is left or the list of categories is of another numbering, and for two categories
    of one name.
    """
    with told_as_no_coco(where, "annotations"):
        table = json.loads(path.read_bytes())
        names = {entry["id"]: str(entry["name"]) for entry in table["categories"]}
        images = {entry["id"]: entry for entry in table["images"]}
        kept, notes = table["annotations"], list[str]()
        for what, known in (("image_id", images), ("category_id", names)):
            if bare := [entry for entry in kept if what not in entry]:
                raise ValueError(f"annotation {bare[0].get('id')} has no {what}")
            unknown = Counter(entry[what] for entry in kept if entry[what] not in known)
            if not unknown:
                continue
            told = f"{unknown.total():,} of {len(kept):,} annotations have a {what} that the file does not list"
            told += f", e.g. {next(iter(unknown))!r}"
            if unknown.total() == len(kept):
                raise UsageError(f"{where}: {told}")
            if what == "category_id" and _renumbered(list(known), list(unknown)):
                if (own := _own_ids(list(names.values()), {entry[what] for entry in kept})) is not None:
                    names = own
                    notes.append(f"{told}: the list is COCO's own without the gaps of its ids, and was read with them")
                    continue
                raise UsageError(
                    f"{where}: {told}, while the list has numbers without gaps: it may have been renumbered, and then "
                    "the others mean other categories than it says. Write the list that belongs to the annotations, "
                    "or take the annotations of other categories out"
                )
            kept = [entry for entry in kept if entry[what] in known]
            notes.append(f"{told}: left out")
        _refuse_twice(list(names.values()), f"{where}: two categories are called")
        annotations: dict[Any, list[Any]] = {image: [] for image in images}
        for entry in kept:
            annotations[entry["image_id"]].append(entry)
    return names, images, annotations, notes


def _own_ids(names: list[str], ids: set[Any]) -> dict[Any, str] | None:
    """{id: name} of COCO's 80 categories, if these are their names in order, and all ids of annotations are COCO's."""
    ends = [names[0], names[11], names[-1]] if len(names) == len(COCO_IDS) else []
    return dict(zip(COCO_IDS, names, strict=True)) if ends == COCO_NAMES and ids <= set(COCO_IDS) else None


def _renumbered(listed: list[Any], others: list[Any]) -> bool:
    """Whether a list of several categories counts from 0 or 1 and annotations go beyond: its gaps were lost."""
    if len(listed) < 2 or not all(isinstance(number, int) for number in (*listed, *others)):
        return False
    listed.sort()
    return listed[0] in (0, 1) and listed[-1] - listed[0] == len(listed) - 1 and min(others) > listed[-1]


@contextmanager
def told_as_no_coco(where: str, holds: str) -> Iterator[None]:
    """What goes wrong in a table of another form -> UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"{where} is no COCO file with images, categories and {holds} ({what})") from None


def _refuse_twice(names: Sequence[str], says: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{says} {twice[0]!r}")


def _objects(image: Any, entries: list[Any], class_of: dict[Any, int], found: Instances, option: str) -> Objects:
    name = str(image["file_name"])
    width, height = _size(image, name)
    boxes, kept, masks, areas = [], [], [], []
    for entry in entries:
        x, y, w, h = _box(entry, name)
        box = (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))
        found.clipped += max(-x, -y, x + w - width, y + h - height) > 1
        found.corners &= w > x and h > y
        if box[2] <= box[0] or box[3] <= box[1]:
            found.dropped += 1
            continue
        boxes.append(box)
        kept.append(entry)
        mask = _mask(entry.get("segmentation"), width, height, f"{option} {found.path}: {name}")
        masks.append(mask)
        areas.append(float(entry.get("area") or (_area(mask) if mask is not None else 0) or w * h))
    return Objects(
        image["id"],
        name,
        width,
        height,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([class_of[entry["category_id"]] for entry in kept], np.int64),
        np.array([bool(entry.get("iscrowd")) for entry in kept], bool),
        np.array(areas, np.float64),
        masks,
    )


def _size(image: Any, name: str) -> tuple[int, int]:
    """(width, height). Raises ValueError."""
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} has no width and height in pixels") from None
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"{name} is a picture of {width} x {height} pixels")
    return width, height


def _box(entry: Any, name: str) -> tuple[float, float, float, float]:
    """(left, top, width, height). Raises ValueError."""
    found = entry.get("bbox")
    try:
        x, y, w, h = map(float, found)
    except (TypeError, ValueError):
        x = y = w = h = math.nan
    if not all(map(math.isfinite, (x, y, w, h))):
        what = "no bbox" if found is None else f"the bbox {found}, but left, top, width and height are needed"
        raise ValueError(f"annotation {entry.get('id')} of {name} has {what}")
    return x, y, w, h


def _mask(found: Any, width: int, height: int, where: str) -> Mask | None:
    """A segmentation as the file has it, checked; None if there is none."""
    if not found:
        return None
    if isinstance(found, dict):
        size = [int(side) for side in found["size"]]
        if size != [height, width]:
            raise UsageError(f"{where} has a mask of {size} pixels (height, width), the picture {[height, width]}")
        counts = found["counts"]
        return RunLengths(counts if isinstance(counts, str) else np.array(counts, np.int64), height, width)
    polygons = [np.asarray(points, np.float64) for points in found]
    if any(points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all() for points in polygons):
        raise UsageError(f"{where}: a polygon is a flat list of numbers, x and y in turn")
    limits = np.array([width, height])
    inside = [np.clip(points.reshape(-1, 2), 0, limits) for points in polygons if len(points) >= 6]
    # Painting takes memory for the whole outline; one that crosses the picture a hundred times is no object's.
    if any(np.abs(np.diff(points, axis=0)).sum() > 100 * (width + height) for points in inside):
        raise UsageError(f"{where} has a polygon whose outline is a hundred times the picture's")
    return [points.ravel() for points in inside] or None


def _area(mask: Mask) -> float:
    """Square pixels: of polygons as COCO computes it, parts that lie over each other counted twice."""
    if isinstance(mask, RunLengths):
        return float((run_lengths(mask.counts) if isinstance(mask.counts, str) else mask.counts)[1::2].sum())
    pairs = [points.reshape(-1, 2).T for points in mask]
    return sum(0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) for x, y in pairs)


def picture_source(instances: Instances, images: str | None, option: str = "`images`") -> PathDataset:
    """The images of a COCO file, in its order, with their `Objects` as targets.

    images: a folder, or tars with KEY.jpg; None: they lie where those of COCO captions usually do. Raises UsageError if
    some of them are not there.
    """
    names, troubles = list(instances.pictures), dict[str, str]()
    if not names:
        raise UsageError(f"{instances.path} lists no pictures")
    if images is None:
        pictures, images, troubles = find_images(instances.path, names)
    elif Path(images).is_dir():
        pictures = FolderImages(images)
    else:
        paths = expand(images)
        if any(path.suffix != ".tar" for path in paths):
            raise UsageError(f"{option} {images}: a folder with the pictures, or tars with KEY.jpg, are needed")
        pictures = TarImages(paths, images)
    if isinstance(pictures, NamedImages) and (missing := pictures.missing(names)):
        raise UsageError(
            f"{option} {images}: {len(missing):,} of the {len(names):,} pictures that {instances.path} lists are not "
            f"there, e.g. {missing[0]}"
        )
    found = PathDataset(
        images,
        image_table(names),
        pictures,
        described=f" of {images}",
        troubles=troubles,
        facts=[instances.path.name, instances.path.stat().st_size],
        targets=instances.pictures,
    )
    found.classes = instances.names
    return found
