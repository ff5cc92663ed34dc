"""What a detector finds: average precision as COCO defines it, of boxes and of masks, and the detections drawn.

The counting is faster-coco-eval's.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw

from catlip import page
from catlip.data.coco import Instances
from catlip.data.images import decode_upright
from catlip.data.objects import Objects, RunLengths, bitmap, encoded, mask_tools
from catlip.errors import UsageError
from catlip.evaluation.result import NOT_SAVED, Result, Table, percent

NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")
SIDE = 480  # pixels of the longer side on the page
DRAWN = 12  # detections of an image, those with the highest scores
SURE = 0.3  # the least score that is drawn
COLOURS = ((230, 60, 50), (50, 120, 220), (240, 180, 30), (40, 160, 90), (160, 80, 200), (30, 180, 190))


@dataclass(slots=True)
class DetectedImage:
    """An image of the test set and what was found in it."""

    image: Any  # as `Sample.image`
    truth: Objects
    found: list[dict[str, Any]]  # COCO's results, the highest score first
    name_of: dict[Any, str]  # category id -> name

    def sure(self) -> list[dict[str, Any]]:
        """Those that are drawn."""
        return sorted((d for d in self.found if d["score"] >= SURE), key=lambda d: -d["score"])[:DRAWN]

    def drawn(self) -> Image.Image:
        """The image with masks, boxes and, dotted, the boxes of the file."""
        truth, sure = self.truth, self.sure()
        pixels = decode_upright(self.image)[0].astype(np.float32)
        for number, found in enumerate(sure):
            if "segmentation" in found:
                mask = found["segmentation"]
                inside = bitmap(RunLengths(mask["counts"], *mask["size"]), truth.width, truth.height) > 0
                pixels[inside] = 0.6 * pixels[inside] + 0.4 * np.array(COLOURS[number % len(COLOURS)], np.float32)
        image = Image.fromarray(pixels.astype(np.uint8))
        image.thumbnail((SIDE, SIDE))
        share, draw = image.width / truth.width, ImageDraw.Draw(image)
        for x0, y0, x1, y1 in (truth.boxes * share).tolist():
            for x in range(int(x0), int(x1), 6):
                for y in (y0, y1 - 1):
                    draw.line((x, y, min(x + 2, x1), y), fill="white")
            for y in range(int(y0), int(y1), 6):
                for x in (x0, x1 - 1):
                    draw.line((x, y, x, min(y + 2, y1)), fill="white")
        for number, found in enumerate(sure):
            x, y, w, h = (side * share for side in found["bbox"])
            colour = COLOURS[number % len(COLOURS)]
            draw.rectangle((x, y, max(x + w - 1, x), max(y + h - 1, y)), outline=colour, width=2)
        return image


@dataclass(kw_only=True)
class DetectionResult(Result):
    """COCO's average precision in percent, None where nothing of a size is there; see `average_precision`."""

    task: ClassVar[str] = "detect"
    heading: ClassVar[str] = "What is where?"
    page_name: ClassVar[str] = "detections.html"

    box: dict[str, float | None]
    mask: dict[str, float | None] = field(default_factory=dict)
    classes: int
    train: int  # images
    test: int
    image_size: int
    data: list[str]  # boxes to learn, boxes to find
    detections: int
    shown: list[DetectedImage] = field(default_factory=list, metadata=NOT_SAVED)

    def tables(self) -> list[Table]:
        title = (
            f"{self.encoder}, {self.image_size} px: {self.classes} classes, {self.detections:,} detections in "
            f"{self.test:,} pictures"
        )
        rows = [[kind, *map(percent, getattr(self, kind).values())] for kind in ("box", "mask") if getattr(self, kind)]
        note = "COCO's average precision. Small: below 32 x 32 pixels, large: from 96 x 96 on"
        return [Table(title, rows, ["", *self.box], note)]

    def drawings(self) -> list[page.Html]:
        cards = []
        for one in self.shown:
            lines = [(f"{d['score']:.2f}", page.tags([one.name_of[d["category_id"]]])) for d in one.sure()]
            cards.append(page.card(page.drawing(one.drawn(), one.truth.name), one.truth.name, lines))
        note = f"Detections with a score of {SURE} or more, {DRAWN} at most; dotted: what should be found."
        return [page.heading("Pictures"), page.paragraph(note), page.grid(cards, 300)]


def rounded(scores: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 2) for name, value in scores.items()}


def average_precision(truth: Instances, found: list[dict[str, Any]], kind: Literal["bbox", "segm"]) -> dict[str, Any]:
    """{"AP": mean over IoU .5 to .95, "AP50", "AP75", "small": below 32^2 pixels, "medium", "large": from 96^2 on}, in
    percent; None where nothing of that size is there.

    found: COCO's results, with the ids of the file that `truth` was read from. Crowds excuse detections, but need none.
    """
    mask_tools()  # says so if the library is missing
    from faster_coco_eval import COCO, COCOeval_faster

    table = COCO(_table(truth, masks=kind == "segm"))
    image_of = {objects.id: number for number, objects in enumerate(truth.pictures.values(), 1)}
    class_of = {category: number for number, category in enumerate(truth.ids, 1)}
    results = [
        {**one, "image_id": image_of[one["image_id"]], "category_id": class_of[one["category_id"]]} for one in found
    ]
    rounds = COCOeval_faster(table, table.loadRes(results), iouType=kind, print_function=_nothing)
    rounds.run()
    values = dict(zip(NAMES, map(float, rounds.stats), strict=False))
    return {name: None if value < 0 else 100 * value for name, value in values.items()}


def _table(truth: Instances, masks: bool) -> dict[str, Any]:
    """The file again, with ids from 1 on (an annotation 0 counts as no match) and masks as checked run lengths."""
    images, annotations = [], []
    for number, objects in enumerate(truth.pictures.values(), 1):
        images.append({"id": number, "width": objects.width, "height": objects.height})
        for row, (x0, y0, x1, y1) in enumerate(objects.boxes.astype(float).tolist()):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(objects.classes[row]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(objects.areas[row]),
                "iscrowd": int(objects.crowd[row]),
            }
            if masks:
                mask = objects.masks[row]
                assert mask is not None
                try:
                    entry["segmentation"] = encoded(bitmap(mask, objects.width, objects.height))
                except ValueError as error:
                    raise UsageError(f"{truth.path}: {objects.name}: {error}") from None
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _nothing(*_: object) -> None:
    pass
