"""Sets of images with masks (`mask_classes.py`): tars, and folders laid out as the published sets are.

They have ten thousand images, not a billion, so their names are simply kept in memory. Nothing here needs torch.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from catlip.data.dataset import Dataset, Sample, bounded, troubles_said
from catlip.data.files import Files, expand, is_url
from catlip.data.image_files import is_image
from catlip.data.shards import images_in
from catlip.errors import UsageError

Role = Literal["train", "test"]
MASK = ".seg.png"  # KEY.jpg has its mask in KEY.seg.png
# Names that the published sets have for their parts, the first that is there counts.
SPLITS: dict[Role, tuple[str, ...]] = {"train": ("training", "train"), "test": ("validation", "val", "test")}
CITYSCAPES = ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")


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
        self._keys = [key for key, _, _ in pairs]
        self._pairs, self._tars = [pair[1:] for pair in pairs], tars
        self.described = f"{len(pairs):,} pictures with masks {kind}" + troubles_said(troubles)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        image, mask = map(self._bytes, self._pairs[index])
        return Sample(self._keys[index], image, [], mask)

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

    def keys(self) -> Iterator[str]:
        return iter(self._keys)

    def captions(self) -> Iterator[list[str]]:
        return ([] for _ in self._keys)

    def fingerprint(self) -> list[Any]:
        facts = (f"{key} {self._size(a)} {self._size(b)}" for key, (a, b) in zip(self._keys, self._pairs, strict=True))
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
