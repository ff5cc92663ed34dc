"""Random parts of pictures together with their masks: the same part of both, to the pixel.

The network sees squares; a window of random size is laid over the picture, which may reach beyond its edges. What is
outside is grey in the picture and void in the mask, so it counts for nothing.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catlip.data.batches import Batch, Batches
from catlip.data.crops import Box, decode_part, empty
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import UnreadableImageError
from catlip.data.mask_classes import VOID, MaskClasses, read_mask
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.errors import UsageError

OUTSIDE = 128  # the middle of the encoder's input space, with the statistics that catlip trains with


@dataclass(kw_only=True, slots=True)
class Window:
    """What training sees of a picture."""

    short_side: int = 0  # pixels that pictures are first brought to, in training and tests; 0: as they are
    scale: tuple[float, float] = (0.5, 2.0)  # then a random size between these, and a square of the image size of it


@dataclass(slots=True)
class MaskBatch(Batch):
    """B pictures with masks; labels and captions are empty."""

    mask: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    # ^ uint8 [B, size, size]: a class, or VOID; mirrored already where the picture still has to be

    def _slice(self, low: int, high: int) -> Batch:
        # Not super(): a dataclass with slots is another class than the one that the word would find.
        return replace(Batch._slice(self, low, high), mask=self.mask[low:high])


class MaskBatches(Batches):
    """Random windows of pictures with masks."""

    def __init__(
        self,
        source: Dataset,
        order: Order,
        steps: Steps,
        *,
        classes: MaskClasses,
        window: Window,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(source, order, steps, rank=rank, world=world)
        self.classes, self.window = classes, window

    def picture(self, record: Sample, draws: list[float], out: Tensor) -> Tensor:
        """The mask's part, uint8 [size, size]. Raises UsageError for a mask that a survey would have refused."""
        mask = self.classes.of(read_mask(record), record.key)
        place = random_place(mask.shape[1], mask.shape[0], out.shape[-1], self.window, draws[1:4])
        cut_picture(record.image, mask.shape, place, out)
        part = cut_mask(mask, place, out.shape[-1])
        return torch.from_numpy(part[:, ::-1].copy() if draws[0] < 0.5 else part)

    def batch(self, image: Tensor, flip: Tensor, records: list[Sample], beside: list[Any], draws: np.ndarray) -> Batch:
        return MaskBatch(
            image,
            flip,
            torch.empty(0, dtype=torch.int64),
            torch.zeros(len(records) + 1, dtype=torch.int64),
            captions=[[] for _ in records],
            keys=[record.key for record in records],
            mask=torch.stack(beside),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle of the picture, and the rectangle of the square where it goes: left, top, right, bottom."""

    of: tuple[int, int, int, int]
    to: tuple[int, int, int, int]


def random_place(width: int, height: int, size: int, window: Window, draws: list[float]) -> Place:
    """Where a window of `size` pixels lies over a picture of width x height. draws: size, left, top in [0, 1).

    The window is a whole number of the picture's pixels wide, so that picture and mask are cut along the same edges.
    """
    low, high = window.scale
    factor = low + (high - low) * draws[0]
    if window.short_side:
        factor *= window.short_side / min(width, height)
    side = max(1, round(size / factor))
    columns = _span(width, side, size, draws[1])
    rows = _span(height, side, size, draws[2])
    return Place((columns[0], rows[0], columns[1], rows[1]), (columns[2], rows[2], columns[3], rows[3]))


def _span(length: int, side: int, size: int, draw: float) -> tuple[int, int, int, int]:
    """Along one axis: (from, to) in the picture and (from, to) in the square."""
    room = length - side  # below 0: the window is wider than the picture, which then lies anywhere in it
    start = int((abs(room) + 1) * draw) * (1 if room >= 0 else -1)
    low, high = max(start, 0), min(start + side, length)
    first = min(round((low - start) * size / side), size - 1)
    return low, high, first, max(first + 1, round((high - start) * size / side))


def cut_picture(data: bytes, shape: tuple[int, ...], place: Place, out: Tensor) -> None:
    """Decode the part of a picture into its place in `out`, grey around it. shape: (height, width) of its mask.

    Raises UnreadableImageError, also for a picture of another size.
    """
    left, top, right, bottom = place.to

    part = empty(bottom - top, right - left)

    def choose(width: int, height: int) -> tuple[Box, Tensor]:
        if (height, width) != shape:
            raise UnreadableImageError(f"{width} x {height} pixels, its mask {shape[1]} x {shape[0]}")
        return tuple(map(float, place.of)), part  # pyright: ignore[reportReturnType]

    decode_part(data, choose)
    out.fill_(OUTSIDE)
    out[:, top:bottom, left:right] = part


def cut_mask(mask: np.ndarray, place: Place, size: int) -> np.ndarray:
    """The same part of the mask, each pixel the nearest one: uint8 [size, size], VOID around it."""
    left, top, right, bottom = place.to
    rows = _nearest(place.of[1], place.of[3], bottom - top)
    columns = _nearest(place.of[0], place.of[2], right - left)
    out = np.full((size, size), VOID, np.uint8)
    out[top:bottom, left:right] = mask[rows[:, None], columns]
    return out


def _nearest(low: int, high: int, count: int) -> np.ndarray:
    """Of the pixels low..high - 1 those under the middles of `count` that stand in their place."""
    return low + ((np.arange(count) + 0.5) * ((high - low) / count)).astype(np.int64)


def check_window(window: Window) -> None:
    """Raises UsageError for sizes that make no sense."""
    low, high = window.scale
    if not 0 < low <= high or window.short_side < 0:
        raise UsageError(
            f"`scale` {low:g} {high:g} is from the smaller size to the larger, and `short_side` is not negative"
        )
