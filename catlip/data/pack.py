"""`catlip pack`: pictures and captions, wherever they are, -> tar shards of small JPEGs with an index.

It pays for itself in the first epoch: decoding a 256-px picture is some 15 times quicker than a 2-megapixel one.
"""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from catlip import machine
from catlip.atomic import whole, write_text
from catlip.config import configure
from catlip.data.dataset import Dataset, Sample
from catlip.data.files import OpenFile, sha256_of
from catlip.data.images import Unreadable, UnreadableImageError, open_image, upright
from catlip.data.open import open_dataset
from catlip.data.shards import INDEX_FILE, members, split_name
from catlip.errors import UsageError
from catlip.notices import say


@dataclass(kw_only=True, slots=True)
class PackConfig:
    """Write WebDataset-format shards with KEY.jpg, KEY.txt and KEY.json, and index.json beside them."""

    data: str  # captioned pictures: tars, a table, a folder, COCO captions, also several: a + b. Python: any dataset
    out: str  # folder for the shards
    size: int = 256  # shorter side of the pictures in pixels; smaller ones stay as they are
    quality: int = 90  # of the JPEGs
    per_shard: int = 10_000  # samples
    image_col: str | None = None
    text_col: str | None = None


def pack(data: Any = None, out: str | Path | None = None, *, config: PackConfig | None = None, **settings: Any) -> Path:
    """Write tar shards of any dataset; returns their folder. data: as of `open_dataset`, so also what is in memory.

    Class targets are written as KEY.cls. Raises UsageError before anything is written where it can, and for over 1 %
    unreadable images.

    >>> pack("pictures.csv", "shards/", size=256)  # doctest: +SKIP
    """
    cfg = configure(PackConfig, config, data=data, out=None if out is None else str(out), **settings)
    return _pack(cfg, Path(cfg.out))


def _pack(cfg: PackConfig, out: Path) -> Path:
    if cfg.size < 8 or cfg.per_shard < 1 or not 1 <= cfg.quality <= 100:
        raise UsageError("`size` is 8 or more, `per_shard` 1 or more, `quality` from 1 to 100")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"`out` {out} is not empty; choose another folder")
    with _all_or_nothing(out):
        source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
        say(f"{source.name}: {source.described}")
        index: dict[str, Any] = {"shards": {}, "samples": 0, "size": cfg.size}
        bad, without = Unreadable(), Counter[str]()
        samples = _samples(source, cfg, bad, without)
        number = 0
        while True:
            path = out / f"{number:06d}.tar"
            entry = _write_shard(path, islice(samples, cfg.per_shard), index["samples"])
            if entry is None:
                break
            index["shards"][path.name] = entry
            index["samples"] += entry["samples"]
            number += 1
            say(f"{path}: {entry['samples']:,} samples, {entry['bytes'] / 1e6:,.1f} MB")
        write_text(out / INDEX_FILE, json.dumps(index))
    if without:
        say(f"{without.total():,} of {index['samples']:,} samples have no caption, e.g. {next(iter(without))}")
    if bad.reasons:
        say(f"{len(bad.reasons)} pictures left out because they cannot be read: {bad.some()}")
    return out


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[None]:
    """An empty folder to write to; empty again, or away if it was not there, after an error."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:
        for path in out.iterdir():
            path.unlink()
        if made:
            out.rmdir()
        raise


def _samples(
    source: Dataset, cfg: PackConfig, bad: Unreadable, without: Counter[str]
) -> Iterator[tuple[Sample, bytes]]:
    """Records with their shrunken pictures, in order; bad ones are noted and left out, those without captions noted."""

    def shrink(number: int) -> tuple[Sample, bytes | str]:
        record = source[number]
        if source.has_classes:
            names = "; ".join(source.classes[number] for number in record.target)
            record = replace(record, metadata={**record.metadata, "cls": names})
        try:
            return record, _jpeg(record.image, cfg.size, cfg.quality)
        except UnreadableImageError as error:
            return record, str(error)

    workers = machine.cores()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), 64 * workers):
            for record, image in pool.map(shrink, range(start, min(start + 64 * workers, len(source)))):
                if isinstance(image, bytes):
                    if not record.captions:
                        without[record.key if not without else "more"] += 1
                    yield record, image
                    continue
                bad.add(record.key, image)
                try:
                    bad.check(len(source))
                except UsageError as error:
                    missing = source.missing()
                    raise UsageError(f"{error}{f'; {missing:,} files are not there' if missing else ''}") from None


def _jpeg(data: Any, size: int, quality: int) -> bytes:
    """Shrink to `size` pixels on the shorter side, upright and RGB; a small upright RGB JPEG passes unchanged."""
    image = open_image(data)
    try:
        straight = image.getexif().get(0x0112, 1) == 1
        if (
            isinstance(data, bytes)
            and min(image.size) <= size
            and image.format == "JPEG"
            and image.mode == "RGB"
            and straight
        ):
            image.load()
            return data
        scale = min(1.0, size / min(image.size))
        image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
        image = upright(image)
        scale = min(1.0, size / min(image.size))
        if scale < 1:
            target = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UnreadableImageError(f"damaged picture: {error}") from None
    return buffer.getvalue()


def _members(key: str, record: Sample, image: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content); key: a safe name, whatever the original was, which is kept in the .json."""
    yield f"{key}.jpg", image
    yield f"{key}.txt", "\n".join(" ".join(caption.split()) for caption in record.captions).encode()
    metadata = dict(record.metadata)
    label = metadata.pop("cls") if isinstance(metadata.get("cls"), str) else None
    yield f"{key}.json", json.dumps({"key": record.key, **metadata, "captions": record.captions}).encode()
    if label is not None:
        yield f"{key}.cls", label.encode()


def _write_shard(path: Path, samples: Iterator[tuple[Sample, bytes]], first: int) -> dict[str, Any] | None:
    """Write one shard in one step; its entry of the index, or None if there were no samples left."""
    written = 0
    with whole(path) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for record, image in samples:
                for name, data in _members(f"{first + written:09d}", record, image):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                written += 1
        if not written:
            part.unlink()
            return None
    offsets: dict[str, dict[str, list[int]]] = {}
    for name, at, size in members(OpenFile(os.open(path, os.O_RDONLY))):
        key, extension = split_name(name)
        offsets.setdefault(key, {})[extension] = [at, size]
    return {
        "samples": written,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "offsets": list(offsets.items()),
    }
