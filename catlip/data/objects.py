"""What an image shows: objects with boxes and masks, as COCO has them. Nothing in this file needs torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from catlip.errors import UsageError

Polygons = list[np.ndarray]  # float64 [2 K] each: x, y, x, y, ... in pixels


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask as COCO's run lengths: pixels off, on, off, ... down the columns."""

    counts: str | np.ndarray  # compressed, or int64
    height: int
    width: int


Mask = Polygons | RunLengths


@dataclass(slots=True)
class Objects:
    """What one picture shows: N objects, in pixels of the upright picture."""

    id: Any  # of the picture, as the file has it
    name: str  # of the picture's file
    width: int
    height: int
    boxes: np.ndarray  # float32 [N, 4]: left, top, right, bottom, inside the picture
    classes: np.ndarray  # int64 [N]
    crowd: np.ndarray  # bool [N]: around many of them
    areas: np.ndarray  # float64 [N]: square pixels, of the mask where there is one
    masks: list[Mask | None]  # N

    def __len__(self) -> int:
        return len(self.classes)


def mask_tools() -> Any:
    """The module with COCO's masks. Raises UsageError if it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UsageError("masks and COCO's AP need faster-coco-eval: pip install 'catlip[detect]'") from None
    return mask


def bitmap(mask: Mask, width: int, height: int) -> np.ndarray:
    """uint8 [height, width], 0 or 1. Raises ValueError for run lengths that are not the picture's."""
    if isinstance(mask, RunLengths):
        return _painted(mask)
    tools = mask_tools()
    return tools.decode(tools.merge(tools.frPyObjects([points.tolist() for points in mask], height, width)))


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    """uint8 [height, width] -> COCO's compressed run lengths, fit for JSON."""
    found = mask_tools().encode(np.asfortranarray(pixels))
    counts = found["counts"]
    return {"size": list(map(int, found["size"])), "counts": counts if isinstance(counts, str) else counts.decode()}


def _painted(mask: RunLengths) -> np.ndarray:
    counts = run_lengths(mask.counts) if isinstance(mask.counts, str) else mask.counts
    if (counts < 0).any() or counts.sum() != mask.height * mask.width:
        raise ValueError(f"run lengths of {counts.sum():,} pixels for {mask.width} x {mask.height}")
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(values, counts).reshape(mask.width, mask.height).T


def run_lengths(text: str) -> np.ndarray:
    """COCO's compression undone: five bits a character, the lowest first, a sixth that says more follow; from the
    fourth number on, differences to the number two before. Read here, as the library does not check bounds."""
    found: list[int] = []
    value, shift = 0, 0
    for character in text.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("damaged run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value, shift = 0, 0
    return np.array(found, np.int64)
