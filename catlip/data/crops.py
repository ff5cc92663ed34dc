"""Encoded pictures -> uint8 arrays of one size: decode, crop, resize. Runs in the loader's workers.

JPEGs, nearly all there is, go through libjpeg-turbo (simplejpeg), everything else through Pillow. The resize is
torch's own for uint8, which runs on vector units and gives Pillow's result to a grey level or two; Pillow's own took
twice as long as decoding. What was measured stands in RESULTS.md (loader).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from catlip.data.images import MAX_PIXELS, UnreadableImageError, decode_upright

TRIES = 10
DRAWS = 3 + 4 * TRIES  # random numbers that a crop may use: flip, blur, its strength; area, ratio, left, top a try


@dataclass(kw_only=True, slots=True)
class CropConfig:
    """Random resized crop (Szegedy et al. 2014), the augmentation of CLIP and CatLIP alike."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    blur: float = 0.0  # share of the pictures that lose detail: shrunk to half the size or more, then enlarged again


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def decode_crop(data: Any, crop: CropConfig, draws: Sequence[float], out: Tensor) -> None:
    """Decode and cut a random part out into `out`: uint8 [3, size, size], channels last in memory.

    draws: DRAWS numbers in [0, 1). Raises UnreadableImageError.
    """

    blurred = draws[1] < crop.blur
    part = empty(round(out.shape[-1] * (0.5 + 0.5 * draws[2]))) if blurred else out
    decode_part(data, lambda width, height: (random_box(width, height, crop, draws[3:]), part))
    if blurred:
        _resize(part, out)


def empty(height: int, width: int = 0) -> Tensor:
    """uint8 [3, height, width], channels last in memory; a square without width."""
    return torch.empty((height, width or height, 3), dtype=torch.uint8).permute(2, 0, 1)


def random_box(width: int, height: int, crop: CropConfig, draws: Sequence[float]) -> Box:
    """A box of random area and shape, by up to ten tries; then the largest central box of an allowed shape."""
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    smallest, largest = crop.scale
    for i in range(0, 4 * TRIES, 4):
        area = width * height * (smallest + (largest - smallest) * draws[i])
        ratio = math.exp(low + (high - low) * draws[i + 1])
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = (width - w) * draws[i + 2], (height - h) * draws[i + 3]
            return left, top, left + w, top + h
    ratio = min(max(width / height, crop.ratio[0]), crop.ratio[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def decode_part(data: Any, choose: Callable[[int, int], tuple[Box, Tensor]]) -> None:
    """Decode; choose(width, height) of the upright picture says which box is resized into which uint8 [3, h, w].

    data: as of `open_image`.

    Raises UnreadableImageError.
    """
    if isinstance(data, bytes) and data[:3] == b"\xff\xd8\xff" and not _has_exif(data):
        try:
            header: Any = simplejpeg.decode_jpeg_header(data, strict=False)
            height, width = header[:2]
            if width * height > MAX_PIXELS:
                raise UnreadableImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
            box, out = choose(width, height)
            # libjpeg scales by eighths while it decodes; it pays from a half on, and never below the pixels needed.
            room = _room(box, out)
            least = (math.ceil(height / room), math.ceil(width / room)) if room >= 2 else (0, 0)
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
            return _cut(pixels, box, width, height, out)
        except (ValueError, KeyError):
            pass  # CMYK, 12 bit, damaged: Pillow decides

    def least_of(width: int, height: int) -> tuple[int, int]:
        room = max(1.0, _room(*choose(width, height)))
        return math.ceil(width / room), math.ceil(height / room)

    pixels, width, height = decode_upright(data, least_of)
    box, out = choose(width, height)
    return _cut(pixels, box, width, height, out)


def _has_exif(data: bytes) -> bool:
    """Whether a JPEG has EXIF before its pixels, which only Pillow heeds; also where its header is not understood."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == b"\xda":  # pixels begin
            return False
        if marker == b"\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 1 if marker == b"\xff" else 2 + length  # any number of 0xff may fill the space before a marker
    return True


def _room(box: Box, out: Tensor) -> float:
    """Pixels of the picture for one of the result, where they are fewest."""
    return min((box[2] - box[0]) / out.shape[-1], (box[3] - box[1]) / out.shape[-2])


def _cut(pixels: np.ndarray, box: Box, width: int, height: int, out: Tensor) -> None:
    """Cut a box, given in pixels of the width x height original, out of the decoded array and resize it."""
    by_x, by_y = pixels.shape[1] / width, pixels.shape[0] / height
    left, right = _span(box[0] * by_x, box[2] * by_x, pixels.shape[1])
    top, bottom = _span(box[1] * by_y, box[3] * by_y, pixels.shape[0])
    _resize(torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1), out)


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """Whole pixels, one at least."""
    first = min(max(round(low), 0), length - 1)
    return first, max(first + 1, min(round(high), length))


def _resize(image: Tensor, out: Tensor) -> None:
    """uint8 [3, h, w] -> out [3, height, width], bilinear, with a wider filter where the picture shrinks.

    The out= form of F.interpolate(antialias=True): it leaves the result channels last, in its place in the batch; the
    functional form takes three times as long, most of it in two copies.
    """
    if image.shape == out.shape:
        out.copy_(image)
    elif not out[None].is_contiguous(memory_format=torch.channels_last):  # part of a canvas: it would miss its rows
        dense = torch.empty((*out.shape[1:], 3), dtype=torch.uint8).permute(2, 0, 1)
        _resize(image, dense)
        out.copy_(dense)
    else:
        torch.ops.aten._upsample_bilinear2d_aa.out(image[None], list(out.shape[1:]), False, None, None, out=out[None])
