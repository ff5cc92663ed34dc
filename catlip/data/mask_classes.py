"""Masks, a class number for every pixel: reading them, what the numbers mean, and whether they are right.

A mask is a PNG with one channel, in 8 or 16 bits, with a palette or without. Nothing here needs torch.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from catlip import machine
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import Unreadable, UnreadableImageError, open_image, upright_size
from catlip.errors import UsageError

VOID = 255  # in the masks that training sees: this pixel counts for nothing
MAX_CLASSES = 255
VALUES = 1 << 16


def read_mask(record: Sample) -> np.ndarray:
    """uint16 [h, w]: the numbers as they stand in the file; a palette's colours are left aside.

    Raises UnreadableImageError for a damaged file, UsageError for a picture in colours or with transparent parts.
    """
    image = open_image(record.target)
    try:
        numbers = np.asarray(_one_channel(image, record.key))
    except UsageError:
        raise
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"damaged mask: {error}") from None
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= VALUES:
        raise UsageError(f"the mask of {record.key} has the value {low if low < 0 else high}; 0..65535 can be read")
    return numbers.astype(np.uint16)


def _one_channel(image: Image.Image, key: str) -> Image.Image:
    """The class numbers, also of a mask whose colours are all grey or whose alpha says nothing. Raises UsageError."""
    if image.mode in ("1", "L", "P", "I", "I;16", "I;16B"):
        return image
    bands = image.split()
    if image.mode in ("LA", "PA", "RGBA"):
        if bands[-1].getextrema() != (255, 255):
            raise UsageError(
                f"the mask of {key} has transparent parts ({image.mode}), and it is not clear of which class they are: "
                "give them a number of their own, and save it without transparency"
            )
        bands = bands[:-1]
    grey = image.mode in ("LA", "PA", "RGB", "RGBA")
    if not grey or any(ImageChops.difference(bands[0], band).getbbox() for band in bands[1:]):
        raise UsageError(
            f"the mask of {key} is a picture in colours ({image.mode}), but a mask has one channel of class numbers: "
            "turn each colour into its number (0, 1, 2, ...) and save it as a grey PNG"
        )
    return bands[0]


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """Class c has the name names[c] and, in a mask's file, the number c, or c + 1 if 0 is void."""

    names: tuple[str, ...]
    void: tuple[int, ...]  # numbers of pixels that count for nothing

    def __len__(self) -> int:
        return len(self.names)

    @property
    def first(self) -> int:
        """Number of the first class."""
        return 1 if 0 in self.void else 0

    def of(self, numbers: np.ndarray, key: str) -> np.ndarray:
        """uint8 [h, w]: classes, VOID where there is none. Raises UsageError for a number that means nothing."""
        found = class_of_number(self)[numbers]
        if (found < 0).any():
            raise UsageError(self.told(int(numbers[found < 0][0]), key))
        return found.astype(np.uint8)

    def told(self, number: int, key: str) -> str:
        last = self.first + len(self) - 1
        return (
            f"the mask of {key} has the value {number}, but the {len(self)} classes are {self.first}..{last} and void "
            f"is {', '.join(map(str, self.void))}; `classes` names more of them, `void` N says that N is no class"
        )


@lru_cache(maxsize=8)
def class_of_number(classes: MaskClasses) -> np.ndarray:
    """int16 [65536]: number -> class, VOID, or -1 for numbers that mean nothing."""
    found = np.full(VALUES, -1, np.int16)
    found[classes.first : classes.first + len(classes)] = np.arange(len(classes))
    found[list(classes.void)] = VOID
    return found


@dataclass(slots=True)
class Survey:
    """What was found in masks. Surveys of parts of the data can be added up."""

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, np.int64))  # of each number
    where: dict[int, str] = field(default_factory=dict)  # number -> key of a mask that has it
    unreadable: dict[str, str] = field(default_factory=dict)
    met: int = 0  # masks
    problem: str = ""  # the first mistake that ends the matter

    def add(self, other: "Survey") -> None:
        self.pixels = self.pixels + other.pixels
        self.where = {**other.where, **self.where}
        self.unreadable = {**self.unreadable, **other.unreadable}
        self.met += other.met
        self.problem = self.problem or other.problem


def survey(source: Dataset, numbers: Iterable[int]) -> Survey:
    """Look at every mask once: is it a mask, of its picture's size, and which numbers does it hold?

    A mistake is noted, not raised, so that several processes can share the work and all hear of it.
    """
    found = Survey()

    def look(number: int) -> tuple[str, np.ndarray | str, bool]:
        record = source[number]
        try:
            return record.key, _counts(record), False
        except UnreadableImageError as error:
            return record.key, str(error), False
        except UsageError as error:
            return record.key, str(error), True

    with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow decodes without Python's lock
        for key, counts, fatal in pool.map(look, numbers):
            found.met += 1
            if isinstance(counts, np.ndarray):
                found.pixels += counts
                for number in np.flatnonzero(counts).tolist():
                    found.where.setdefault(number, key)
            elif fatal:
                found.problem = found.problem or counts
            else:
                found.unreadable[key] = counts
    return found


def _counts(record: Sample) -> np.ndarray:
    """int64 [65536]: pixels of each number. Raises as `read_mask`, and for a size that is not the picture's."""
    width, height = upright_size(record.image)
    numbers = read_mask(record)
    if numbers.shape != (height, width):
        raise UsageError(
            f"the mask of {record.key} has {numbers.shape[1]} x {numbers.shape[0]} pixels, its picture {width} x "
            f"{height}; they must be the same (a mask is enlarged with the nearest pixel, never smoothed)"
        )
    return np.bincount(numbers.ravel(), minlength=VALUES)


def find_classes(train: Survey, names: list[str], void: tuple[int, ...], told: str) -> MaskClasses:
    """The classes of a training set: those of `names`, or all numbers up to the greatest that is not void.

    told: the set, for messages. Raises UsageError for masks that are wrong and for numbers outside the names.
    """
    if wrong := [number for number in void if not 0 <= number < VALUES]:
        raise UsageError(f"`void` {wrong[0]}: a mask's numbers are 0..65535")
    check_readable(train, told)
    there = [number for number in np.flatnonzero(train.pixels).tolist() if number not in void]
    if not there:
        raise UsageError(f"{told}: not one pixel is of a class; void is {', '.join(map(str, void))} (`void`)")
    first = 1 if 0 in void else 0
    seen = set(np.flatnonzero(train.pixels).tolist())
    two = "; if 0 and 255 are two classes, write 0 and 1" if seen == {0, 255} else ""
    count = len(names) or there[-1] - first + 1
    if count > MAX_CLASSES:
        raise UsageError(
            f"{told}: {count:,} classes (the greatest number is {there[-1]:,}, e.g. in {train.where[there[-1]]}), but "
            f"{MAX_CLASSES} are the most{two or '; `void` N says that N is no class'}"
        )
    if count < 2:
        raise UsageError(f"{told}: every labelled pixel has the number {there[0]}, and one class teaches nothing{two}")
    classes = MaskClasses(tuple(names) or tuple(f"class {first + c}" for c in range(count)), void)
    check_numbers(train, classes, told)
    return classes


def check_readable(found: Survey, told: str) -> None:
    """Raises UsageError for what a survey noted, and if more than 1 % cannot be read."""
    if found.problem:
        raise UsageError(f"{told}: {found.problem}")
    if not found.pixels.any():
        raise UsageError(f"{told}: no mask can be read: {next(iter(found.unreadable.items()), 'there is none')}")
    Unreadable(dict(found.unreadable)).check(found.met)


def check_numbers(found: Survey, classes: MaskClasses, told: str) -> None:
    """Raises UsageError for a number that is neither a class nor void, with the key of a mask that has it."""
    meaning = class_of_number(classes)
    for number in np.flatnonzero(found.pixels).tolist():
        if meaning[number] < 0:
            raise UsageError(f"{told}: {classes.told(number, found.where[number])}")


def pixels_of(found: Survey, classes: MaskClasses) -> np.ndarray:
    """int64 [C]: pixels of each class."""
    return found.pixels[classes.first : classes.first + len(classes)]
