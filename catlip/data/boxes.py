"""Boxes of a COCO file: which categories are where in which picture."""

import json
from pathlib import Path

from catlip.errors import UsageError

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture, in [0, 1]


def read_boxes(path: str | Path) -> dict[str, dict[str, list[Box]]]:
    """{file name without folder and ending: {category: boxes}}, of all pictures of the file; crowds are left out.

    Raises UsageError for anything but COCO's {"images", "annotations", "categories"} with boxes.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--boxes: no such file: {path}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in table["categories"]}
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in table["images"]}
        stems = {entry["id"]: Path(entry["file_name"]).stem for entry in table["images"]}
        found: dict[str, dict[str, list[Box]]] = {stem: {} for stem in stems.values()}
        for entry in table["annotations"]:
            if entry.get("iscrowd"):
                continue  # a box around many, most of which is none of them
            width, height = sizes[entry["image_id"]]
            x, y, w, h = entry["bbox"]
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            found[stems[entry["image_id"]]].setdefault(names[entry["category_id"]], []).append(box)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"--boxes {path} is no COCO file with images, categories and boxes ({what})") from None
    return found
