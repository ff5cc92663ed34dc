"""Images with masks, a class number for every pixel: where they lie, what the numbers mean, and whether they are right.

A mask is a PNG with one channel, in 8 or 16 bits, with a palette or without. Sets of this kind have ten thousand
images, not a billion, so their names are simply kept in memory. Nothing in this file needs torch.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops

from catlip import machine
from catlip.data.dataset import Dataset, Sample, bounded
from catlip.data.files import Files, expand, is_url
from catlip.data.image_files import is_image
from catlip.data.images import Unreadable, UnreadableImageError, open_image, upright_size
from catlip.data.shards import images_in
from catlip.errors import UsageError

Role = Literal["train", "test"]
MASK = ".seg.png"  # KEY.jpg has its mask in KEY.seg.png
# Names that the published sets have for their parts, the first that is there counts.
SPLITS: dict[Role, tuple[str, ...]] = {"train": ("training", "train"), "test": ("validation", "val", "test")}
CITYSCAPES = ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")
VOID = 255  # in the masks that training sees: this pixel counts for nothing
MAX_CLASSES = 255
VALUES = 1 << 16


class MaskDataset(Dataset):
    """Images with masks, which are the targets, both encoded; they have no captions."""

    def __init__(
        self,
        name: str,
        kind: str,
        pairs: list[tuple[str, Any, Any]],
        troubles: dict[str, str],
        void: tuple[int, ...],
        tars: Files | None = None,
    ) -> None:
        """pairs: key, image, mask; each a path, or (tar, offset, bytes). void: what masks of this layout have where
        nothing was labelled."""
        self.name, self.troubles, self.void = name, bounded(troubles), void
        self.keys = [key for key, _, _ in pairs]
        self._pairs, self._tars = [pair[1:] for pair in pairs], tars
        self.described = f"{len(pairs):,} pictures with masks {kind}"
        if troubles:
            first, why = next(iter(troubles.items()))
            self.described += f" ({len(troubles):,} left out, e.g. {first}: {why})"

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        image, mask = map(self._bytes, self._pairs[index])
        return Sample(self.keys[index], image, [], mask)

    def _bytes(self, place: Any) -> bytes:
        """Raises UsageError if the file is gone."""
        if self._tars is not None:
            tar, at, size = place
            return self._tars.open(tar).read(at, size)
        try:
            return place.read_bytes()
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be opened: {error.strerror}") from None

    def _size(self, place: Any) -> int:
        return os.stat(place).st_size if self._tars is None else place[2]

    def captions(self) -> Iterator[list[str]]:
        return ([] for _ in self.keys)

    def fingerprint(self) -> list[Any]:
        facts = (f"{key} {self._size(a)} {self._size(b)}" for key, (a, b) in zip(self.keys, self._pairs, strict=True))
        return [len(self), hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:12]]


def _of_tars(data: str) -> MaskDataset:
    """KEY.jpg and KEY.seg.png in tars on this machine. Raises UsageError, also if not one image has a mask."""
    if is_url(data):
        raise UsageError(f"{data}: pictures with masks are read from this machine; copy the tars first")
    paths = expand(data)
    if other := [path for path in paths if path.suffix != ".tar"]:
        raise UsageError(
            f"{other[0]}: expected .tar files with KEY.jpg and KEY{MASK}, or a folder laid out as ADE20k, VOC or "
            "Cityscapes"
        )
    files = Files([str(path) for path in paths])
    troubles: dict[str, str] = {}
    pairs = []
    for tar, path in enumerate(paths):
        found = images_in(files.open_briefly(tar), path.name, troubles)
        masks = {name[: -len(MASK)]: at for name, at in found.items() if name.lower().endswith(MASK)}
        for name, at in found.items():
            key = name.rpartition(".")[0]
            if key in masks:
                pairs.append((key, (tar, *at), (tar, *masks[key])))
            elif not name.lower().endswith(MASK):
                troubles[f"{path.name}: {key}"] = f"no {MASK.lstrip('.')} beside it"
    if not pairs:
        raise UsageError(f"{data} holds no picture with a mask; expected KEY.jpg and KEY{MASK} in the tars")
    return MaskDataset(data, f"in {len(paths):,} tar{'s' if len(paths) > 1 else ''}", pairs, troubles, (255,), files)


def _of_files(name: str, kind: str, pairs: dict[str, tuple[Path, Path]], void: tuple[int, ...]) -> MaskDataset:
    """pairs: (image, mask) by key. Raises UsageError if not one of the masks is there."""
    missing = {key: f"there is no {mask}" for key, (_, mask) in pairs.items() if not mask.is_file()}
    found = [(key, *pairs[key]) for key in sorted(pairs) if key not in missing]
    if not found:
        first = next(iter(missing.values()), "there are no pictures")
        raise UsageError(f"{name} looks like {kind}, but holds no picture with a mask: {first}")
    return MaskDataset(name, f"laid out as {kind}", found, missing, void)


def open_masks(data: str, role: Role) -> MaskDataset:
    """Find out what `data` is, and open it: tars, or a folder laid out as ADE20k, VOC or Cityscapes.

    A folder's part is the one that is usual for the role; FOLDER:SPLIT names another, such as VOC2012:trainval.
    Raises UsageError for anything else.
    """
    folder, split = Path(data), ""
    if not folder.exists() and ":" in data and not is_url(data):
        name, _, split = data.rpartition(":")
        folder = Path(name)
    if not folder.is_dir():
        return _of_tars(data)
    if (folder / "leftImg8bit").is_dir():
        return _cityscapes(folder, _split(folder, folder / "leftImg8bit", split, role), data)
    if (folder / "JPEGImages").is_dir():
        return _voc(folder, split or SPLITS[role][1], data)
    if (folder / "images").is_dir() and (folder / "annotations").is_dir():
        return _ade(folder, _split(folder, folder / "images", split, role), data)
    if any(folder.glob("*.tar")):
        return _of_tars(f"{folder}/*.tar")
    raise UsageError(
        f"{data}: expected images/ and annotations/ (as ADE20k), JPEGImages/ and SegmentationClass/ (VOC), "
        f"leftImg8bit/ and gtFine/ (Cityscapes), or tars with KEY.jpg and KEY{MASK}; found none of them"
    )


def _split(folder: Path, inside: Path, split: str, role: Role) -> str:
    """The sub-folder to use; "" where the pictures are not divided. Raises UsageError, naming the ones there are."""
    there = sorted(path.name for path in inside.iterdir() if path.is_dir())
    wanted = [split] if split else [name for name in SPLITS[role] if name in there]
    if not there and not split:
        return ""
    if not wanted or wanted[0] not in there:
        raise UsageError(
            f"`{role}` {folder}: {inside} has no part {split or ' or '.join(SPLITS[role])}; there are "
            f"{', '.join(there[:8]) or 'none'}. `{role}` {folder}:NAME names one"
        )
    return wanted[0]


def _ade(folder: Path, split: str, name: str) -> MaskDataset:
    """ADEChallengeData2016: 0 is what nobody labelled, classes begin at 1."""
    images, masks = folder / "images" / split, folder / "annotations" / split
    pairs = {path.stem: (path, masks / f"{path.stem}.png") for path in _pictures(images)}
    return _of_files(name, "ADE20k", pairs, (0,))


def _voc(folder: Path, split: str, name: str) -> MaskDataset:
    """VOC2012: a list of names; the palette's 255 is the seam around objects."""
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt")))
        raise UsageError(f"{name}: there is no {file}; there are {there or 'no lists'}")
    stems = file.read_text(encoding="utf-8").split()
    masks = folder / "SegmentationClass"
    pairs = {stem: (folder / "JPEGImages" / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems}
    return _of_files(name, "VOC", pairs, (255,))


def _cityscapes(folder: Path, split: str, name: str) -> MaskDataset:
    """leftImg8bit and gtFine; the 19 classes that are scored are in *_labelTrainIds.png."""
    pairs = {}
    for path in sorted((folder / "leftImg8bit" / split).rglob(f"[!.]*{CITYSCAPES[0]}")):  # no ._ twins of macOS
        stem = path.name.removesuffix(CITYSCAPES[0])
        mask = folder / "gtFine" / split / path.parent.name / f"{stem}{CITYSCAPES[1]}"
        pairs[stem] = path, mask
    if pairs and not any(mask.is_file() for _, mask in pairs.values()):
        first = next(iter(pairs.values()))[1]
        raise UsageError(
            f"{name}: there is no {first}; cityscapesscripts' csCreateTrainIdLabelImgs makes these files from the "
            "polygons (the *_labelIds.png of the download number classes otherwise)"
        )
    return _of_files(name, "Cityscapes", pairs, (255,))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image(path) and not path.name.startswith("."))


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
class Classes:
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
        found = table(self)[numbers]
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
def table(classes: Classes) -> np.ndarray:
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


def find_classes(train: Survey, names: list[str], void: tuple[int, ...], told: str) -> Classes:
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
    classes = Classes(tuple(names) or tuple(f"class {first + c}" for c in range(count)), void)
    check_numbers(train, classes, told)
    return classes


def check_readable(found: Survey, told: str) -> None:
    """Raises UsageError for what a survey noted, and if more than 1 % cannot be read."""
    if found.problem:
        raise UsageError(f"{told}: {found.problem}")
    if not found.pixels.any():
        raise UsageError(f"{told}: no mask can be read: {next(iter(found.unreadable.items()), 'there is none')}")
    Unreadable(dict(found.unreadable)).check(found.met)


def check_numbers(found: Survey, classes: Classes, told: str) -> None:
    """Raises UsageError for a number that is neither a class nor void, with the key of a mask that has it."""
    meaning = table(classes)
    for number in np.flatnonzero(found.pixels).tolist():
        if meaning[number] < 0:
            raise UsageError(f"{told}: {classes.told(number, found.where[number])}")


def pixels_of(found: Survey, classes: Classes) -> np.ndarray:
    """int64 [C]: pixels of each class."""
    return found.pixels[classes.first : classes.first + len(classes)]
