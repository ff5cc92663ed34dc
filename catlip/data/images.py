"""Images of any kind, opened with care: size limits, odd modes, rotation, and what becomes of unreadable ones."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from catlip.data.dataset import NoImage
from catlip.errors import UsageError
from catlip.notices import warn

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
    """Images that were skipped because they could not be read, and why."""

    reasons: dict[str, str] = field(default_factory=dict)  # key -> why
    met: int = 0  # pictures that were looked at, as far as `check` was told

    def add(self, key: str, why: str) -> None:
        self.reasons[key] = why

    def check(self, met: int) -> None:
        """Raises UsageError if more than 1 % of the pictures met so far are unreadable."""
        self.met = met
        if len(self.reasons) > MAX_UNREADABLE * met:
            share = f"more than {MAX_UNREADABLE:.0%}"
            raise UsageError(f"{len(self.reasons):,} of {met:,} pictures cannot be read, {share}: {self.some()}")

    def some(self) -> str:
        """The first few, for a message."""
        return "; ".join(f"{key}: {why}" for key, why in list(self.reasons.items())[:5])


def left_out(**sets: Unreadable) -> dict[str, Any]:
    """Name what could not be read, on standard error; for results: {"unreadable": {set: pictures}} if any are."""
    for name, found in sets.items():
        if found.reasons:
            count = f"{len(found.reasons):,} of {found.met:,}"
            warn(f"`{name}`: {count} pictures cannot be read and are left out: {found.some()}")
    counts = {name: len(found.reasons) for name, found in sets.items() if found.reasons}
    return {"unreadable": counts} if counts else {}


def image_content(image: Any) -> bytes:
    """What tells an image from others: its encoded bytes; of pixels in memory, their shape and values."""
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    return f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()


def open_image(data: Any) -> Image.Image:
    """An image whose pixels are not decoded yet. data: encoded bytes, a PIL image, or uint8 [h, w, 3] or [h, w].

    Raises UnreadableImageError.
    """
    if isinstance(data, np.ndarray):
        if not data.size:
            raise UnreadableImageError(f"an array without pixels, {list(data.shape)}")
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    if isinstance(data, Image.Image):
        return _checked_size(data)
    if not data:
        raise UnreadableImageError(data.why if isinstance(data, NoImage) else "an empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UnreadableImageError(f"not a picture ({len(data):,} bytes, of no format that Pillow knows)") from None
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"not a picture ({len(data):,} bytes): {error}") from None
    if image.format == "EPS":
        raise UnreadableImageError("EPS is a program, and Pillow would have it run")
    _checked_size(image)
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
        _load(image)  # the chunk may stand behind the pixels; whoever asks for the size has to know of it too
    return image


def _checked_size(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def read_image(data: Any) -> Image.Image:
    """Any image, decoded, turned as its EXIF says, in RGB. Raises UnreadableImageError."""
    return _decoded(open_image(data))


def decode_upright(
    data: Any, least: Callable[[int, int], tuple[int, int]] | None = None
) -> tuple[np.ndarray, int, int]:
    """As `read_image` -> (uint8 [h, w, 3], full width, full height). Raises UnreadableImageError.

    least(width, height) says how many pixels are needed; a JPEG is then decoded at the smallest scale that has them.
    """
    image = open_image(data)
    width, height = _upright_size(image)
    if least is not None:
        wanted = least(width, height)
        image.draft("RGB", wanted if image.size == (width, height) else (wanted[1], wanted[0]))
    return np.array(_decoded(image)), width, height  # a copy: Pillow's own memory is read-only


def _decoded(image: Image.Image) -> Image.Image:
    _load(image)
    return upright(image)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"damaged picture: {error}") from None


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, in RGB. Turning is done once: the result says nothing of it any more."""
    turn = _turn(image)
    if turn is None:
        return to_rgb(image)
    turned = image.transpose(turn)
    turned.info.pop("exif", None)
    return to_rgb(turned)


def upright_size(data: Any) -> tuple[int, int]:
    """(width, height) of a picture once it is turned as its EXIF says; no pixel is decoded. Raises
    UnreadableImageError."""
    return _upright_size(open_image(data))


def is_turned(data: Any) -> bool:
    """Whether EXIF exchanges the picture's width and height. Raises UnreadableImageError."""
    return _turn(open_image(data)) in SIDEWAYS


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _turn(image) in SIDEWAYS else image.size


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright. Looks at EXIF only if there is some; Pillow turns TIFFs itself."""
    if "exif" not in image.info or image.format == "TIFF":
        return None
    try:
        return TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow's reader of EXIF raises what it likes; a damaged orientation is none
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; transparent parts become white, grey of more than 8 bits is scaled, all pictures alike.

    Raises UnreadableImageError for numbers outside that scale.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Integers of 0..65535, or floating-point numbers of 0..1 or 0..255, -> grey of 8 bits.

    A picture's own extremes are not its black and white: what is dark stays dark. Floating-point numbers may lie a
    tenth outside, as a resize overshoots.
    """
    numbers = np.asarray(image).astype(np.float32)
    low, high = float(numbers.min()), float(numbers.max())
    white = 65535.0 if image.mode != "F" else 1.0 if high <= 1.1 else 255.0
    slack = 0.1 * white if image.mode == "F" else 0.0
    if not (low >= -slack and high <= white + slack):  # NaN is not in there either
        raise UnreadableImageError(
            f"grey of {low:g} to {high:g}; integers of 0..65535, or fractions of 0..1 or 0..255, can be read"
        )
    grey = np.rint(np.clip(numbers, 0, white) * (255 / white)).astype(np.uint8)
    if "transparency" in image.info:
        grey[numbers == image.info["transparency"]] = 255
    return Image.fromarray(grey)
