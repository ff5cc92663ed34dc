"""How well predicted masks fit: the confusion matrix of pixels, and what follows from it.

The matrix is whole numbers, so those of parts of the data, wherever they were counted, add up to exactly that of all.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from catlip.data.images import decode_upright, to_rgb
from catlip.data.maskbatches import OUTSIDE
from catlip.data.masklabels import VOID, Classes, as_png, palette
from catlip.models.segmentation import SegmentationCard, Segmenter, restore_segmenter
from catlip.training.distributed import pick_device


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: pixels of the true class (row) that were given the predicted one (column). Void is left out.

    predicted, truth: uint8 of the same shape; predicted is never void.
    """
    assert predicted.shape == truth.shape, "masks of one size"
    valid = truth != VOID
    pairs = truth[valid].long() * classes + predicted[valid].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


@dataclass(frozen=True, slots=True)
class Fit:
    """In percent. Classes that are neither in the truth nor predicted have an IoU of NaN, and no part in the means."""

    iou: list[float]  # pixels of both / pixels of either, a class
    accuracy: list[float]  # share of the class' pixels that were found; NaN for classes that are not in the truth
    pixels: list[int]  # of the truth
    miou: float  # mean over classes
    mean_accuracy: float  # the same
    pixel_accuracy: float  # over pixels


def fit_of(matrix: Tensor) -> Fit:
    """Scores of a confusion matrix [C, C] that holds one pixel at least."""
    both, truth, predicted = matrix.diag().double(), matrix.sum(1).double(), matrix.sum(0).double()
    iou = 100 * both / (truth + predicted - both)  # 0 / 0 is NaN
    accuracy = 100 * both / truth
    return Fit(
        iou=iou.tolist(),
        accuracy=accuracy.tolist(),
        pixels=matrix.sum(1).tolist(),
        miou=iou.nanmean().item(),
        mean_accuracy=accuracy.nanmean().item(),
        pixel_accuracy=(100 * both.sum() / truth.sum()).item(),
    )


# Pictures of any size, seen a window at a time: the squares that a network was trained with, one third over the next.

MAX_LOGITS = 1 << 29  # numbers kept for one picture: 2 GB
ROWS = 1 << 24  # numbers that are brought to the picture's size at a time
AT_ONCE = 8  # windows


@torch.no_grad()
def segment(model: Any, pixels: np.ndarray, *, window: int, short_side: int = 0) -> np.ndarray:
    """uint8 [h, w]: the class of every pixel of a picture, uint8 [h, w, 3].

    model: a Segmenter in evaluation mode. window: pixels of its squares. short_side: the picture is seen at this size;
    0: at its own. A picture whose logits would not fit into 2 GB is seen smaller.
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
    """(height, width) at which a picture is seen."""
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
    )  # what is beyond the picture looks as in training, and is cut off again
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


# A trained segmentation model in use: what it says of a picture, and its masks as files.


class Trained:
    """A trained model: pictures of any size in, class numbers out."""

    def __init__(self, model: Segmenter, card: SegmentationCard) -> None:
        self.model, self.card = model, card
        self.names = card.names
        self.classes = Classes(tuple(card.names), card.void)

    def __call__(self, picture: np.ndarray | Image.Image | str | Path) -> np.ndarray:
        """uint8 [h, w]: the class of each pixel. picture: of Pillow, a file, or uint8 [h, w, 3].

        Raises UnreadableImageError for a file that is no picture.
        """
        if isinstance(picture, str | Path):
            picture = decode_upright(Path(picture).read_bytes())[0]
        pixels = np.asarray(to_rgb(picture)) if isinstance(picture, Image.Image) else picture
        return segment(self.model, pixels, window=self.card.image_size, short_side=self.card.short_side)


def load_segmenter(out: str | Path, device: str = "auto") -> Trained:
    """catlip.load_segmenter("runs/seg")("photo.jpg") -> uint8 [h, w]; the classes' names are in `.names`.

    out: the folder that `catlip segment` wrote. Raises UsageError for another one.
    """
    model, card = restore_segmenter(out)
    return Trained(model.to(pick_device(device)), card)


def save_mask(path: Path, predicted: np.ndarray, classes: Classes) -> None:
    """A prediction as PNG, with the numbers that the masks of the data have, and colours for people."""
    colours = np.roll(palette(len(classes)), classes.first, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_png(predicted + np.uint8(classes.first), colours).save(path)


def file_names(keys: list[str]) -> list[str]:
    """A name of a file in one folder for each key, whatever is in it; like the key as far as may be."""
    plain = [re.sub(r"[^\w.-]+", "_", key).lstrip(".")[:150] for key in keys]
    times = Counter(name.lower() for name in plain)
    return [name if times[name.lower()] == 1 and name else f"{name}-{i}" for i, name in enumerate(plain)]
