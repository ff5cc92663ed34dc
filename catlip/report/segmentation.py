"""Predicted masks over their pictures, as a page. The verb `segment`."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from catlip import page
from catlip.data.mask_sets import VOID, palette
from catlip.notices import say
from catlip.tasks.segment import Seen
from catlip.tasks.segment import SegmentConfig as SegmentConfig
from catlip.tasks.segment import segment as fine_tune

GAP = 6  # pixels between the parts of a picture


def segment(cfg: SegmentConfig) -> dict[str, Any] | None:
    """Train, test, and write the page into --out; the results, on the main process. Raises UsageError as `fine_tune`
    does."""
    found = fine_tune(config=cfg).result
    if found is None:
        return None
    result, seen = found
    out = Path(cfg.out) / "segmentation.html"
    page.write(out, _page(result, seen))
    say(f"{out}: the predictions. In Python: catlip.load_segmenter({cfg.out!r})(picture)")
    return result


def _page(result: dict[str, Any], seen: list[Seen]) -> str:
    colours = palette(result["classes"])
    rows = [
        [name, "-" if value is None else f"{value:.1f} %", f"{result['pixels'][name]:,}"]
        for name, value in sorted(result["iou"].items(), key=lambda entry: -(entry[1] or 0))
    ]
    told = (
        f"{result['encoder']}, {result['head']} head, {result['train']:,} pictures to train on, {result['test']:,} to "
        f"test; a window of {result['image_size']} px slides over each picture"
    )
    legend = [(name, tuple(colours[c].tolist())) for c, name in enumerate(result["iou"])]
    cards = [page.card(page.drawing(_drawn(one, colours), one.key), one.key, [("", _right(one))]) for one in seen]
    note = "Left the picture, in the middle the prediction over it, right the truth; void is not coloured."
    return page.page(
        "What is where?",
        page.paragraph(told, soft=True),
        page.table(
            ["mIoU", "mean accuracy", "pixels right"],
            [[f"{result[name]:.2f} %" for name in ("miou", "mean_accuracy", "pixel_accuracy")]],
        ),
        page.heading("Predictions"),
        page.paragraph(note),
        page.legend(legend),
        page.column(cards),
        page.heading("Classes"),
        page.table(["class", "IoU", "pixels of the test"], rows),
    )


def _right(one: Seen) -> page.Html:
    text = "nothing labelled" if one.accuracy != one.accuracy else f"{one.accuracy:.1f} % of the pixels right"
    return page.tags([text])


def _drawn(one: Seen, colours: np.ndarray) -> Image.Image:
    """The picture, the prediction over it, the truth over it."""
    height, width = one.pixels.shape[:2]
    sheet = np.full((height, 3 * width + 2 * GAP, 3), 255, np.uint8)
    parts = (one.pixels, _over(one.pixels, one.predicted, colours), _over(one.pixels, one.truth, colours))
    for number, part in enumerate(parts):
        left = number * (width + GAP)
        sheet[:, left : left + width] = part
    return Image.fromarray(sheet)


def _over(pixels: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    mixed = (0.4 * pixels + 0.6 * colours[mask]).astype(np.uint8)
    return np.where((mask == VOID)[..., None], pixels, mixed)
