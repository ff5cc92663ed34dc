"""Pictures of any kind, opened with care: size limits, odd modes, rotation, and what becomes of unreadable ones."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from catlip.data.records import NoImage
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
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])  # width becomes height


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


def open_image(data: bytes) -> Image.Image:
    """A picture whose pixels are not decoded yet. Raises UnreadableImageError."""
    if not data:
        raise UnreadableImageError(data.why if isinstance(data, NoImage) else "an empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"not a picture ({len(data):,} bytes): {error}") from None
    if image.format == "EPS":
        raise UnreadableImageError("EPS is a program, and Pillow would have it run")
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def decode_upright(
    data: bytes, least: Callable[[int, int], tuple[int, int]] | None = None
) -> tuple[np.ndarray, int, int]:
    """Any picture, turned as its EXIF says -> (uint8 [h, w, 3], full width, full height). Raises UnreadableImageError.

    least(width, height) says how many pixels are needed; a JPEG is then decoded at the smallest scale that has them.
    """
    image = open_image(data)
    try:
        turn = _turn(image)
        sideways = turn in SIDEWAYS
        width, height = (image.height, image.width) if sideways else (image.width, image.height)
        if least is not None:
            wanted = least(width, height)
            image.draft("RGB", (wanted[1], wanted[0]) if sideways else wanted)
        image.load()
        pixels = np.array(upright(image))  # a copy: Pillow's own memory is read-only
    except UnreadableImageError:
        raise  # of `least`
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"damaged picture: {error}") from None
    return pixels, width, height


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, in RGB. Turning is done once: the result says nothing of it any more."""
    turn = _turn(image)
    if turn is None:
        return to_rgb(image)
    turned = image.transpose(turn)
    turned.info.pop("exif", None)
    return to_rgb(turned)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture once it is turned as its EXIF says; no pixel is decoded. Raises
    UnreadableImageError."""
    image = open_image(data)
    return (image.height, image.width) if _turn(image) in SIDEWAYS else (image.width, image.height)


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
    return image if image.mode == "RGB" else image.convert("RGB")
