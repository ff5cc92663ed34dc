"""Pictures with masks: a class number for every pixel. Where they lie; `masklabels.py` says what the numbers mean.

Sets of this kind have ten thousand pictures, not a billion, so their names are simply kept in memory. Nothing in this
file needs torch.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from catlip.data.dataset import Dataset, Sample, bounded
from catlip.data.pictures import is_picture
from catlip.data.remote import Files, is_url
from catlip.data.shards import IMAGE_EXTENSIONS, MAX_MEMBER, DamagedError, expand, members
from catlip.errors import UsageError

Role = Literal["train", "test"]
MASK = ".seg.png"  # KEY.jpg has its mask in KEY.seg.png
# Names that the published sets have for their parts, the first that is there counts.
SPLITS: dict[Role, tuple[str, ...]] = {"train": ("training", "train"), "test": ("validation", "val", "test")}
CITYSCAPES = ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")


class MaskDataset(Dataset):
    """Images with masks, which are the targets, both encoded; they have no captions."""

    def __init__(self, name: str, kind: str, keys: list[str], troubles: dict[str, str], void: tuple[int, ...]) -> None:
        self.name, self.keys, self.troubles = name, keys, bounded(troubles)
        self.void = void  # what this layout's masks have where nothing was labelled
        self.described = f"{len(keys):,} pictures with masks {kind}"
        if troubles:
            first, why = next(iter(troubles.items()))
            self.described += f" ({len(troubles):,} left out, e.g. {first}: {why})"
        self.shards = np.array([len(keys)], np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Sample:
        """Raises UsageError if the file is gone."""
        raise NotImplementedError

    def sizes(self) -> list[tuple[int, int]]:
        """(bytes of the picture, bytes of the mask) of each sample."""
        raise NotImplementedError

    def captions(self) -> Iterator[list[str]]:
        return ([] for _ in self.keys)

    def fingerprint(self) -> list[Any]:
        facts = "\n".join(f"{key} {a} {b}" for key, (a, b) in zip(self.keys, self.sizes(), strict=True))
        return [len(self), hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:12]]


class MaskTars(MaskDataset):
    """KEY.jpg and KEY.seg.png in tars on this machine."""

    def __init__(self, data: str) -> None:
        """Raises UsageError for files that are no tars, or hold no picture with a mask."""
        if is_url(data):
            raise UsageError(f"{data}: pictures with masks are read from this machine; copy the tars first")
        paths = expand(data)
        if other := [path for path in paths if path.suffix != ".tar"]:
            raise UsageError(
                f"{other[0]}: expected .tar files with KEY.jpg and KEY{MASK}, or a folder laid out as ADE20k, VOC or "
                "Cityscapes"
            )
        self._files = Files([str(path) for path in paths])
        troubles: dict[str, str] = {}
        keys, places = [], []
        for tar, path in enumerate(paths):
            for key, image, mask in _pairs(*_members(self._files, tar, path.name, troubles), path.name, troubles):
                keys.append(key)
                places.append((tar, *image, *mask))
        if not keys:
            raise UsageError(f"{data} holds no picture with a mask; expected KEY.jpg and KEY{MASK} in the tars")
        self._places = np.array(places, np.int64)
        super().__init__(data, f"in {len(paths):,} tar{'s' if len(paths) > 1 else ''}", keys, troubles, (255,))

    def __getitem__(self, number: int) -> Sample:
        tar, image, image_size, mask, mask_size = self._places[number].tolist()
        file = self._files.open(tar)
        return Sample(self.keys[number], file.read(image, image_size), [], file.read(mask, mask_size))

    def sizes(self) -> list[tuple[int, int]]:
        return [(image, mask) for _, _, image, _, mask in self._places.tolist()]


Places = dict[str, tuple[int, int]]  # key -> (offset, bytes)


def _members(files: Files, tar: int, name: str, troubles: dict[str, str]) -> tuple[Places, Places]:
    """Pictures and masks of a tar."""
    images: Places = {}
    masks: Places = {}
    try:
        for member, at, size in members(files.open_briefly(tar)):
            stem, _, extension = member.rpartition(".")
            if size > MAX_MEMBER:
                troubles[f"{name}: {member}"] = f"{size:,} bytes, more than {MAX_MEMBER:,}"
            elif member.rpartition("/")[2].startswith("."):
                continue  # the ._ twins that macOS leaves
            elif member.lower().endswith(MASK):
                masks[member[: -len(MASK)]] = at, size
            elif extension.lower() in IMAGE_EXTENSIONS:
                images[stem] = at, size
    except DamagedError as damage:
        if not images:
            raise UsageError(f"{name} is not a readable tar file ({damage})") from None
        troubles[name] = f"{damage}; what comes before is used. Copy or download it again"
    return images, masks


def _pairs(
    images: Places, masks: Places, name: str, troubles: dict[str, str]
) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    for key, image in images.items():
        if key in masks:
            yield key, image, masks[key]
        else:
            troubles[f"{name}: {key}"] = f"no {MASK.lstrip('.')} beside it"


class MaskFolder(MaskDataset):
    """Pictures and masks as files."""

    def __init__(self, name: str, kind: str, pairs: dict[str, tuple[Path, Path]], void: tuple[int, ...]) -> None:
        """pairs: (picture, mask) by key. Raises UsageError if not one of the masks is there."""
        missing = {key: f"there is no {mask}" for key, (_, mask) in pairs.items() if not mask.is_file()}
        found = sorted(key for key in pairs if key not in missing)
        if not found:
            first = next(iter(missing.values()), "there are no pictures")
            raise UsageError(f"{name} looks like {kind}, but holds no picture with a mask: {first}")
        self._pairs = [pairs[key] for key in found]
        super().__init__(name, f"laid out as {kind}", found, missing, void)

    def __getitem__(self, number: int) -> Sample:
        image, mask = self._pairs[number]
        try:
            return Sample(self.keys[number], image.read_bytes(), [], mask.read_bytes())
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be opened: {error.strerror}") from None

    def sizes(self) -> list[tuple[int, int]]:
        return [(os.stat(image).st_size, os.stat(mask).st_size) for image, mask in self._pairs]


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
        return MaskTars(data)
    if (folder / "leftImg8bit").is_dir():
        return _cityscapes(folder, _split(folder, folder / "leftImg8bit", split, role), data)
    if (folder / "JPEGImages").is_dir():
        return _voc(folder, split or SPLITS[role][1], data)
    if (folder / "images").is_dir() and (folder / "annotations").is_dir():
        return _ade(folder, _split(folder, folder / "images", split, role), data)
    if any(folder.glob("*.tar")):
        return MaskTars(f"{folder}/*.tar")
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
    return MaskFolder(name, "ADE20k", pairs, (0,))


def _voc(folder: Path, split: str, name: str) -> MaskDataset:
    """VOC2012: a list of names; the palette's 255 is the seam around objects."""
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt")))
        raise UsageError(f"{name}: there is no {file}; there are {there or 'no lists'}")
    stems = file.read_text(encoding="utf-8").split()
    masks = folder / "SegmentationClass"
    pairs = {stem: (folder / "JPEGImages" / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems}
    return MaskFolder(name, "VOC", pairs, (255,))


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
    return MaskFolder(name, "Cityscapes", pairs, (255,))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_picture(path) and not path.name.startswith("."))
