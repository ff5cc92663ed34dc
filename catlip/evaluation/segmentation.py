"""How well predicted masks fit: the confusion matrix of pixels, and what follows from it.

The matrix is whole numbers, so those of parts of the data, wherever they were counted, add up to exactly that of all.
"""

import colorsys
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from catlip import page
from catlip.data.mask_classes import VOID, MaskClasses
from catlip.evaluation.result import NOT_SAVED, Result, Table, percent


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: pixels of the true class (row) that were given the predicted one (column). Void is left out.

    predicted, truth: uint8 of the same shape; predicted is never void.
    """
    assert predicted.shape == truth.shape, "masks of one size"
    valid = truth != VOID
    pairs = truth[valid].long() * classes + predicted[valid].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


GAP = 6  # pixels between the parts of a drawing


@dataclass(slots=True)
class Seen:
    """A test image and what became of it, small."""

    key: str
    pixels: np.ndarray  # uint8 [h, w, 3]
    truth: np.ndarray  # uint8 [h, w]: a class, or VOID
    predicted: np.ndarray  # uint8 [h, w]
    accuracy: float  # percent of its pixels that have a class; NaN if none has

    def drawn(self, colours: np.ndarray) -> Image.Image:
        """The image, the prediction over it, the truth over it. colours: uint8 [classes, 3]."""
        height, width = self.pixels.shape[:2]
        sheet = np.full((height, 3 * width + 2 * GAP, 3), 255, np.uint8)
        for number, mask in enumerate((None, self.predicted, self.truth)):
            left = number * (width + GAP)
            sheet[:, left : left + width] = self.pixels if mask is None else self._under(mask, colours)
        return Image.fromarray(sheet)

    def _under(self, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
        void = (mask == VOID)[..., None]
        mixed = (0.4 * self.pixels + 0.6 * colours[np.where(mask == VOID, 0, mask)]).astype(np.uint8)
        return np.where(void, self.pixels, mixed)


@dataclass(kw_only=True)
class SegmentationResult(Result):
    """mIoU in percent at the images' own size, and each class's IoU: None if it is neither there nor predicted."""

    task: ClassVar[str] = "segment"
    heading: ClassVar[str] = "What is where?"
    page_name: ClassVar[str] = "segmentation.html"

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    classes: int
    train: int  # images
    test: int
    samples: int | None  # the budget, in one of two ways
    epochs: float | None
    head: str
    stride: int  # pixels between features, at most
    image_size: int  # pixels of the window that slides over each image
    short_side: int  # pixels at which images are seen; 0: their own size
    iou: dict[str, float | None]
    pixels: dict[str, int]  # of the test set
    data: list[str]  # training set, test set
    seen: list[Seen] = field(default_factory=list, metadata=NOT_SAVED)

    def tables(self) -> list[Table]:
        title = (
            f"{self.encoder}, {self.head} head: {self.classes} classes, {self.train:,} pictures to train on, "
            f"{self.test:,} to test at their own size, by a window of {self.image_size} px"
        )
        means = {"mIoU": self.miou, "mean accuracy": self.mean_accuracy, "pixels right": self.pixel_accuracy}
        shown = sorted(self.iou.items(), key=lambda entry: -1 if entry[1] is None else entry[1], reverse=True)
        rows = [[name, percent(value), f"{self.pixels[name]:,}"] for name, value in shown]
        note = "-: not in the test set, nor predicted" if None in self.iou.values() else ""
        return [
            Table(title, [[name, percent(value)] for name, value in means.items()]),
            Table("Classes", rows, ["class", "IoU", "pixels of the test"], note),
        ]

    def drawings(self) -> list[page.Html]:
        colours = palette(self.classes)
        legend = [(name, tuple(colours[c].tolist())) for c, name in enumerate(self.iou)]
        cards = []
        for one in self.seen:
            known = one.accuracy == one.accuracy
            text = f"{one.accuracy:.1f} % of the pixels right" if known else "nothing labelled"
            cards.append(page.card(page.drawing(one.drawn(colours), one.key), one.key, [("", page.tags([text]))]))
        note = "Left the picture, in the middle the prediction over it, right the truth; void is not coloured."
        return [page.heading("Predictions"), page.paragraph(note), page.legend(legend), page.grid(cards, 720)]


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


def palette(count: int) -> np.ndarray:
    """uint8 [256, 3]: a colour for each of up to 255 classes, unlike its neighbours'; void is black."""
    colours = np.zeros((256, 3), np.uint8)
    for c in range(count):  # steps of the golden ratio spread any number of hues evenly
        rgb = colorsys.hsv_to_rgb(c * 0.61803398875 % 1, 0.9 - 0.4 * (c // 2 % 2), 1.0 - 0.35 * (c % 2))
        colours[c] = [round(255 * part) for part in rgb]
    return colours


def as_png(mask: np.ndarray, colours: np.ndarray) -> Image.Image:
    """uint8 [h, w] -> a picture with a palette: numbers for programs, colours for people."""
    image = Image.fromarray(mask)
    image.putpalette(colours.flatten().tolist())
    return image


def save_mask(path: Path, predicted: np.ndarray, classes: MaskClasses) -> None:
    """A prediction as PNG, with the numbers that the masks of the data have, and colours for people."""
    colours = np.roll(palette(len(classes)), classes.first, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_png(predicted + np.uint8(classes.first), colours).save(path)


def file_names(keys: list[str]) -> list[str]:
    """A name of a file in one folder for each key, whatever is in it; like the key as far as may be."""
    plain = [re.sub(r"[^\w.-]+", "_", key).lstrip(".")[:150] for key in keys]
    times = Counter(name.lower() for name in plain)
    return [name if times[name.lower()] == 1 and name else f"{name}-{i}" for i, name in enumerate(plain)]
