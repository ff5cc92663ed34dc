"""Encoded pictures -> uint8 arrays: decode, crop, resize. Runs in threads; Pillow lets go of the GIL while it works."""

import io
import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from catlip.errors import UsageError

# 100 megapixels: above any camera's picture, below what a decompression bomb needs to fill the memory.
MAX_PIXELS = 100_000_000
MAX_UNREADABLE = 0.01  # of the pictures met; beyond that something is wrong with the data, not with a few of them
# EXIF orientation -> what undoes it
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class UnreadableImageError(Exception):
    """The bytes are no picture, or one that is too large."""


@dataclass(slots=True)
class Unreadable:
    """Pictures that were skipped because they could not be read, and why."""

    reasons: dict[str, str] = field(default_factory=dict)  # key -> why

    def add(self, key: str, why: str) -> None:
        self.reasons[key] = why

    def check(self, met: int) -> None:
        """Raises UsageError if more than 1 % of the pictures met so far are unreadable."""
        if len(self.reasons) > MAX_UNREADABLE * met:
            share = f"more than {MAX_UNREADABLE:.0%}"
            raise UsageError(f"{len(self.reasons):,} of {met:,} pictures cannot be read, {share}: {self.some()}")

    def some(self) -> str:
        """The first few, for a message."""
        return "; ".join(f"{key}: {why}" for key, why in list(self.reasons.items())[:5])


@dataclass(kw_only=True, slots=True)
class Crop:
    """Random resized crop (Szegedy et al. 2014), the augmentation of CLIP and CatLIP alike."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    blur: float = 0.0  # share of the pictures that lose detail: shrunk to half the size or more, then enlarged again


def open_image(data: bytes) -> Image.Image:
    """A picture whose pixels are not decoded yet. Raises UnreadableImageError."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"not a picture ({len(data):,} bytes): {error}") from None
    if image.format == "EPS":
        raise UnreadableImageError("EPS is a program, and Pillow would have it run")
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def decode_crop(data: bytes, size: int, crop: Crop, random: np.random.Generator) -> np.ndarray:
    """Decode and cut a random part out -> uint8 [size, size, 3]. Raises UnreadableImageError."""
    image = open_image(data)
    box = _random_box(image.width, image.height, crop, random)
    if crop.blur and random.random() < crop.blur:
        shrunk = Image.fromarray(_cut(image, box, round(size * random.uniform(0.5, 1.0))))
        return np.asarray(shrunk.resize((size, size), Image.Resampling.BILINEAR))
    return _cut(image, box, size)


def decode_center(data: bytes, size: int, share: float = 1.0) -> np.ndarray:
    """Decode and cut the central square of `share` of the shorter side out -> uint8 [size, size, 3]."""
    image = open_image(data)
    side = min(image.width, image.height) * share
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _cut(image, (left, top, left + side, top + side), size)


def _random_box(width: int, height: int, crop: Crop, random: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of random area and shape, by up to ten tries; then the largest central box of an allowed shape."""
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for _ in range(10):
        area = width * height * random.uniform(*crop.scale)
        ratio = math.exp(random.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, crop.ratio[0]), crop.ratio[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _cut(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Resize the box to a square, upright. JPEGs are decoded at the smallest scale that has the pixels needed."""
    width, height = image.size
    turn = _turn(image)
    scale = max(1.0, min(box[2] - box[0], box[3] - box[1]) / size)
    try:
        image.draft("RGB", (math.ceil(width / scale), math.ceil(height / scale)))
        image.load()
        if image.mode != "RGB":
            image = to_rgb(image)
        if image.size != (width, height):
            by_x, by_y = image.width / width, image.height / height
            box = (
                box[0] * by_x,
                box[1] * by_y,
                min(box[2] * by_x, image.width),
                min(box[3] * by_y, image.height),
            )
        # reducing_gap makes large reductions in two steps: a box filter first, then a bilinear one.
        resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        if turn is not None:  # the small square and not the whole picture: a box of any shape turned is one as likely
            resized = resized.transpose(turn)
    except Exception as error:
        raise UnreadableImageError(f"damaged picture: {error}") from None
    return np.asarray(resized)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright. Looks at EXIF only if there is some; Pillow turns TIFFs itself."""
    if "exif" not in image.info or image.format == "TIFF":
        return None
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow's reader of EXIF raises what it likes; a damaged orientation is none
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; transparent parts become white, 16-bit grey is scaled."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32)
        return Image.fromarray((grey / max(255.0, grey.max()) * 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
