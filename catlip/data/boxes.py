"""Batches of pictures with boxes and masks on a square canvas, under large-scale jitter (arXiv 2012.07177).

A picture is resized, its shape kept, by a random factor; what is too large for the canvas is cut at a random place,
what is left of the canvas is grey. Boxes and masks travel in pixels of the canvas as the task will see it: where the
task mirrors the picture on the device, they are mirrored here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catlip.data.batches import Batch, Batches
from catlip.data.crops import Box, decode_part
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import UnreadableImageError, is_turned
from catlip.data.objects import Objects, bitmap
from catlip.data.order import Order
from catlip.data.steps import Steps

GREY = 128  # of the canvas beside the picture


@dataclass(slots=True)
class BoxBatch(Batch):
    """`labels` and `offsets` are the classes of the N boxes of all pictures: those of picture b are boxes[offsets[b] :
    offsets[b + 1]]. Crowds are not among them."""

    boxes: Tensor = field(kw_only=True)  # float32 [N, 4]: left, top, right, bottom in pixels of the canvas
    masks: Tensor = field(kw_only=True)  # uint8 [N, size, size / 8]: eight pixels a byte; [N, 0, 0] without masks

    def _slice(self, low: int, high: int) -> "BoxBatch":
        part: Any = Batch._slice(self, low, high)
        first, last = int(self.offsets[low]), int(self.offsets[high])
        return replace(part, boxes=self.boxes[first:last], masks=self.masks[first:last])


def unpacked(masks: Tensor, size: int) -> Tensor:
    """uint8 [N, size, size / 8] of a BoxBatch -> uint8 [N, size, size], 0 or 1."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    return (masks[..., None] >> shifts & 1).flatten(2)[..., :size]


class Placed(NamedTuple):
    """Where a picture lies on the canvas: a box of whole pixels of the picture, resized to height x width pixels in
    the canvas' upper left corner."""

    box: tuple[int, int, int, int]
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the canvas for one of the picture, in x and in y."""
        left, top, right, bottom = self.box
        return self.width / (right - left), self.height / (bottom - top)


def place(width: int, height: int, size: int, factor: float = 1.0, draws: Sequence[float] = (0.0, 0.0)) -> Placed:
    """Resize a picture so that its longer side is factor * size, and cut a random part out if that does not fit.

    draws: two numbers in [0, 1): where the part is, from the left and from the top.
    """
    scale = factor * size / max(width, height)
    wide, high = (max(1, min(side, round(size / scale))) for side in (width, height))
    left, top = int(draws[0] * (width - wide + 1)), int(draws[1] * (height - high + 1))
    on_canvas = (max(1, min(size, round(side * scale))) for side in (wide, high))
    return Placed((left, top, left + wide, top + high), *on_canvas)


def decode_placed(
    data: bytes, objects: Objects, out: Tensor, factor: float = 1.0, draws: Sequence[float] = (0.0, 0.0)
) -> Placed:
    """Decode a picture onto the canvas `out`, uint8 [3, size, size].

    Raises UnreadableImageError, also for a picture of another size than the COCO file says.
    """
    placed = place(objects.width, objects.height, out.shape[-1], factor, draws)
    out.fill_(GREY)

    def choose(width: int, height: int) -> tuple[Box, Tensor]:
        if (width, height) != (objects.width, objects.height):
            how = ""
            if (height, width) == (objects.width, objects.height):
                how = ", turned as its EXIF says" if is_turned(data) else ", width and height exchanged"
            raise UnreadableImageError(
                f"{width} x {height} pixels{how}; the boxes are for {objects.width} x {objects.height}"
            )
        return placed.box, out[:, : placed.height, : placed.width]

    decode_part(data, choose)
    return placed


class BoxBatches(Batches):
    """Images of a dataset whose targets are `Objects`: boxes, and masks where they are there."""

    def __init__(
        self,
        source: Dataset,
        order: Order,
        steps: Steps,
        *,
        scale: tuple[float, float],
        masks: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """scale: range of the image's longer side, as a share of the canvas. masks: whether they travel too."""
        super().__init__(source, order, steps, rank=rank, world=world)
        self.scale, self.masks = scale, masks

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(boxes, classes, packed masks) of what is to be seen; boxes and masks mirrored if the task will mirror."""
        objects = record.target
        low, high = self.scale
        placed = decode_placed(record.image, objects, out, low + (high - low) * draws[1], draws[2:4])
        return on_canvas(objects, placed, out.shape[-1], mirrored=draws[0] < 0.5, masks=self.masks)

    def batch(
        self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray
    ) -> BoxBatch:
        boxes, classes, masks = (torch.from_numpy(np.concatenate(some)) for some in zip(*beside, strict=True))
        offsets = torch.tensor([0, *(len(some) for _, some, _ in beside)]).cumsum(0)
        keys = [record.key for record in records]
        return BoxBatch(image, flip, classes, offsets, [[] for _ in keys], keys, boxes=boxes, masks=masks)


def on_canvas(
    objects: Objects, placed: Placed, size: int, *, mirrored: bool = False, masks: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes float32 [n, 4], classes int64 [n], masks uint8 [n, size, size / 8] or [n, 0, 0]) of the n objects, crowds
    left out, that show at least a pixel of the canvas."""
    left, top, _, _ = placed.box
    by = np.array(placed.scale * 2)
    found = (objects.boxes.astype(np.float64) - [left, top, left, top]) * by
    found = np.clip(found, 0, [placed.width, placed.height] * 2)
    seen = ((found[:, 2:] - found[:, :2]) >= 1).all(1) & ~objects.crowd
    rows, painted = [], []
    for row in np.flatnonzero(seen):
        if masks:
            mask = _cut(objects, int(row), placed, found[row], size)
            if not mask.any():
                continue
            painted.append(np.packbits(mask[:, ::-1] if mirrored else mask, axis=1))
        rows.append(row)
    boxes = found[rows].astype(np.float32).reshape(-1, 4)
    if mirrored:
        boxes[:, [0, 2]] = size - boxes[:, [2, 0]]
    shape = (size, -(-size // 8)) if masks else (0, 0)
    packed = np.stack(painted) if painted else np.zeros((len(rows), *shape), np.uint8)
    return boxes, objects.classes[rows], packed


def _cut(objects: Objects, row: int, placed: Placed, box: np.ndarray, size: int) -> np.ndarray:
    """A mask on the canvas, bool [size, size]: for each pixel of its box, the picture's pixel under its centre."""
    mask = objects.masks[row]
    assert mask is not None
    try:
        whole = bitmap(mask, objects.width, objects.height)
    except ValueError as error:
        raise UnreadableImageError(str(error)) from None
    x0, y0, x1, y1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    by_x, by_y = placed.scale
    columns = ((np.arange(x0, x1) + 0.5) / by_x + placed.box[0]).astype(np.int64)
    rows = ((np.arange(y0, y1) + 0.5) / by_y + placed.box[1]).astype(np.int64)
    canvas = np.zeros((size, size), bool)
    canvas[y0:y1, x0:x1] = whole[np.ix_(rows, columns)]
    return canvas
