"""Images of any size, seen a window at a time: the squares that a network was trained with, one third over the next.

Logits are averaged where windows overlap, and brought to the image's own size before the best class is taken.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.maskbatches import OUTSIDE

MAX_LOGITS = 1 << 29  # numbers kept for one image: 2 GB
ROWS = 1 << 24  # numbers that are brought to the image's size at a time
AT_ONCE = 8  # windows


@torch.no_grad()
def segment(model: Any, pixels: np.ndarray, *, window: int, short_side: int = 0) -> np.ndarray:
    """uint8 [h, w]: the class of every pixel of an image, uint8 [h, w, 3].

    model: a Segmenter in evaluation mode. window: pixels of its squares. short_side: the image is seen at this size;
    0: at its own. An image whose logits would not fit into 2 GB is seen smaller.
    """
    device = next(model.parameters()).device
    image = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)  # Pillow's own memory is read-only
    height, width = pixels.shape[:2]
    classes = model.classes
    shape = seen_at(height, width, classes, short_side)
    if shape != (height, width):
        image = F.interpolate(image[None], size=shape, mode="bilinear", antialias=True)[0]
    logits = slide(model, image.to(device), window)
    return _best(logits, height, width).cpu().numpy()


def seen_at(height: int, width: int, classes: int, short_side: int) -> tuple[int, int]:
    """(height, width) at which an image is seen."""
    scale = short_side / min(height, width) if short_side else 1.0
    scale = min(scale, math.sqrt(MAX_LOGITS / (classes * height * width)))
    if scale == 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def slide(model: Any, image: Tensor, window: int) -> Tensor:
    """float [C, h, w]: the mean of the logits of all windows over uint8 [3, h, w]."""
    height, width = image.shape[1:]
    padded = F.pad(
        image, (0, max(window - width, 0), 0, max(window - height, 0)), value=OUTSIDE
    )  # what is beyond the image looks as in training, and is cut off again
    tops, lefts = starts(padded.shape[1], window), starts(padded.shape[2], window)
    total = torch.zeros((model.classes, *padded.shape[1:]), device=image.device)
    places = [(top, left) for top in tops for left in lefts]
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        x = torch.stack([padded[:, top : top + window, left : left + window] for top, left in some])
        for found, (top, left) in zip(model.logits(model.encoder.normalize(x)), some, strict=True):
            total[:, top : top + window, left : left + window] += found
    total /= _times(tops, window, padded.shape[1], image)[:, None] * _times(lefts, window, padded.shape[2], image)
    return total[:, :height, :width]


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along an axis: two thirds of a window apart at most, evenly, the last one at the end."""
    count = math.ceil((length - window) / (2 * window / 3)) + 1
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]


def _times(begins: list[int], window: int, length: int, like: Tensor) -> Tensor:
    """float [length]: windows over each place of an axis."""
    found = torch.zeros(length, device=like.device)
    for begin in begins:
        found[begin : begin + window] += 1
    return found


def _best(logits: Tensor, height: int, width: int) -> Tensor:
    """uint8 [height, width]: the best class of logits [C, h, w] after bilinear enlargement, some rows at a time."""
    classes, h, _ = logits.shape
    found = torch.empty((height, width), dtype=torch.uint8, device=logits.device)
    rows = max(1, ROWS // (classes * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # Where the rows' middles lie among the middles of the rows there are.
        at = ((torch.arange(top, bottom, device=logits.device) + 0.5) * h / height - 0.5).clamp(0, h - 1)
        low = at.floor().long()
        high, share = (low + 1).clamp(max=h - 1), (at - low)[:, None]
        some = logits[:, low] + share * (logits[:, high] - logits[:, low])
        wide = F.interpolate(some[None], size=(bottom - top, width), mode="bilinear", align_corners=False)
        found[top:bottom] = wide[0].argmax(0)
    return found
