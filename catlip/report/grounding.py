"""Relevance maps over their pictures, as a page. The verb `ground`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw

from catlip import page
from catlip.evaluation.grounding import GroundConfig as GroundConfig
from catlip.evaluation.grounding import Seen, look
from catlip.notices import say

HEAT = np.array([[20, 30, 110], [40, 120, 200], [240, 230, 90], [230, 60, 30]], np.float32)  # from little to much


def ground(cfg: GroundConfig) -> Path:
    """Look, and write the page; its path. Raises UsageError as `look` does."""
    result, seen = look(cfg)
    out = Path(cfg.out) if cfg.out else (Path(cfg.run) if Path(cfg.run).is_dir() else Path()) / "grounding.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    page.write(out, _page(result, _some(seen, cfg.show)))
    say(f"{out}: the maps")
    return out


def _some(seen: list[Seen], number: int) -> list[Seen]:
    """Spread over all of them."""
    step = max(1, len(seen) / max(number, 1))
    return [seen[int(i * step)] for i in range(min(number, len(seen)))]


def _page(result: dict[str, Any], seen: list[Seen]) -> str:
    parts = [page.paragraph(f"{result['encoder']}, {result['route']} route, {result['image_size']} px", soft=True)]
    if "pointing" in result:
        scores = result["pointing"]
        show = {name: "-" if value is None else f"{value:.1f} %" for name, value in scores.items()}
        rows = [
            ["the encoder", show["accuracy"], show["hard"]],
            ["the picture's centre", show["centre"], show["hard_centre"]],
            ["any place", show["anywhere"], ""],
            ["rounds", f"{result['rounds']:,}", f"{result['hard_rounds']:,}"],
        ]
        note = "Hard: the boxes cover less than a quarter of the picture, and it shows another category."
        parts += [
            page.heading("The pointing game"),
            page.paragraph("Is the place that answers most inside a box of the category? Mean over categories."),
            page.table(["", "all rounds", "hard rounds"], rows),
            page.paragraph(note, soft=True),
        ]
    cards = [
        page.card(
            page.drawing(_drawn(one), one.phrase),
            one.phrase,
            [("", page.tags(["hit" if one.hit else "miss"], {"hit"}))] if one.boxes else [],
        )
        for one in seen
    ]
    note = "Blue answers little, red most; the cross is the best place" + (
        "; boxes in white." if "pointing" in result else "."
    )
    return page.page("Where is it?", *parts, page.heading("Maps"), page.paragraph(note), page.grid(cards))


def _drawn(one: Seen) -> Image.Image:
    """The picture under its map, boxes and the best place."""
    height, width = one.pixels.shape[:2]
    low, high = one.relevance.min(), one.relevance.max()
    level = (one.relevance - low) / (high - low).clamp_min(1e-12)
    smooth = F.interpolate(level[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    place = smooth * (len(HEAT) - 1)
    first = np.minimum(place.astype(int), len(HEAT) - 2)
    heat = HEAT[first] + (HEAT[first + 1] - HEAT[first]) * (place - first)[..., None]
    picture = Image.fromarray((0.5 * one.pixels + 0.5 * heat).astype(np.uint8))
    _outline(picture, one)
    return picture


def _outline(picture: Image.Image, one: Seen) -> None:
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for left, top, right, bottom in one.boxes:
        corners = (left * width, top * height, right * width - 1, bottom * height - 1)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline="white", width=2)
    x, y = one.point[0] * width, one.point[1] * height
    for colour, thick in (("black", 5), ("white", 2)):
        draw.line((x - 9, y, x + 9, y), fill=colour, width=thick)
        draw.line((x, y - 9, x, y + 9), fill=colour, width=thick)
