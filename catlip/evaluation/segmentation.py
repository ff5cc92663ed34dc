"""How well predicted masks fit: the confusion matrix of pixels, and what follows from it.

The matrix is whole numbers, so those of parts of the data, wherever they were counted, add up to exactly that of all.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from catlip.data.mask_sets import VOID, Classes, as_png, palette


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
