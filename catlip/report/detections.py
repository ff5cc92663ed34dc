"""What a detector finds, drawn over its pictures. The verb `detect`."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from catlip import page
from catlip.data.coco import Instances
from catlip.data.images import decode_upright
from catlip.data.objects import RunLengths, bitmap
from catlip.notices import say
from catlip.tasks.detect import DetectConfig as DetectConfig
from catlip.tasks.detect import Shown
from catlip.tasks.detect import detect as fine_tune

SIDE = 480  # pixels of the longer side on the page
DRAWN = 12  # detections of a picture, the surest
SURE = 0.3
COLOURS = ((230, 60, 50), (50, 120, 220), (240, 180, 30), (40, 160, 90), (160, 80, 200), (30, 180, 190))


def detect(cfg: DetectConfig) -> Path:
    """Fine-tune, measure, and write the page; the run folder. Raises UsageError as `fine_tune` does."""
    out = Path(cfg.out)
    found = fine_tune(config=cfg).result
    if found is not None:
        page.write(out / "detections.html", _page(*found))
        say(f"{out / 'detections.html'}: what is found in some of the pictures")
    return out


def _page(result: dict[str, Any], shown: list[Shown], test: Instances) -> str:
    kinds = [name for name in ("box", "mask") if name in result]
    rows = [[kind, *("-" if v is None else f"{v:.1f} %" for v in result[kind].values())] for kind in kinds]
    name_of = dict(zip(test.ids, test.names, strict=True))
    cards = [_card(one, name_of) for one in shown]
    note = f"Detections with a score of {SURE} or more, {DRAWN} at most; dotted: what should be found."
    return page.page(
        "What is where?",
        page.paragraph(f"{result['encoder']}, {result['image_size']} px, {result['test']:,} pictures", soft=True),
        page.table(["", *result[kinds[0]]], rows),
        page.paragraph("COCO's average precision; small: below 32 x 32 pixels, large: from 96 x 96 on.", soft=True),
        page.heading("Pictures"),
        page.paragraph(note),
        page.grid(cards),
    )


def _card(one: Shown, name_of: dict[Any, str]) -> page.Html:
    sure = sorted((d for d in one.found if d["score"] >= SURE), key=lambda d: -d["score"])[:DRAWN]
    lines = [(f"{d['score']:.2f}", page.tags([name_of[d["category_id"]]])) for d in sure]
    return page.card(page.drawing(_drawn(one, sure), one.truth.name), one.truth.name, lines)


def _drawn(one: Shown, sure: list[dict[str, Any]]) -> Image.Image:
    """The picture with masks, boxes and, dotted, the boxes of the file."""
    pixels = decode_upright(one.image)[0].astype(np.float32)
    for number, found in enumerate(sure):
        if "segmentation" in found:
            mask = found["segmentation"]
            inside = bitmap(RunLengths(mask["counts"], *mask["size"]), one.truth.width, one.truth.height) > 0
            pixels[inside] = 0.6 * pixels[inside] + 0.4 * np.array(COLOURS[number % len(COLOURS)], np.float32)
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    share, draw = picture.width / one.truth.width, ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in (one.truth.boxes * share).tolist():
        for x in range(int(x0), int(x1), 6):
            draw.line((x, y0, min(x + 2, x1), y0), fill="white")
            draw.line((x, y1 - 1, min(x + 2, x1), y1 - 1), fill="white")
        for y in range(int(y0), int(y1), 6):
            draw.line((x0, y, x0, min(y + 2, y1)), fill="white")
            draw.line((x1 - 1, y, x1 - 1, min(y + 2, y1)), fill="white")
    for number, found in enumerate(sure):
        x, y, w, h = (side * share for side in found["bbox"])
        draw.rectangle((x, y, max(x + w - 1, x), max(y + h - 1, y)), outline=COLOURS[number % len(COLOURS)], width=2)
    return picture
