"""`catlip bench data`: how fast do images arrive, and what takes the time?"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg

from catlip import machine
from catlip.config import configure
from catlip.data.batches import Batches, CaptionBatches
from catlip.data.crops import DRAWS, CropConfig, decode_crop, empty
from catlip.data.dataset import Sample
from catlip.data.images import UnreadableImageError, decode_upright, image_content
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order, uniforms
from catlip.data.steps import CurriculumConfig, Steps
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.notices import say

LOOKED_AT = 512  # samples, drawn at random


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """Measure reading, decoding, cropping, labelling and the whole loader on your own data."""

    data: str  # as for `catlip pretrain`
    image_size: int = 224
    batch_size: int = 256
    workers: int = 0  # loader processes; 0: one a core
    seconds: float = 3.0  # for each measurement
    device: str = "auto"  # where batches are copied to
    image_col: str | None = None
    text_col: str | None = None
    cache_gb: float = 100.0
    crop: CropConfig = field(default_factory=CropConfig)


@dataclass(slots=True)
class BenchResult:
    """Images a second, of each part on one core and of the whole loader."""

    rates: dict[str, float]
    looked_at: int  # images
    unreadable: int  # of them
    kilobytes: float  # an image, encoded

    def __str__(self) -> str:
        width = max(map(len, self.rates))
        share = self.rates["whole batches, one core"] / self.rates["decode in full"]
        return "\n".join(
            [
                f"{self.unreadable} of {self.looked_at} pictures unreadable; {self.kilobytes:,.0f} kB each",
                *(f"  {name:<{width}}  {rate:>10,.0f} pictures/s" for name, rate in self.rates.items()),
                f"  the loader reaches {share:.0%} of the pure decoding limit of a core",
            ]
        )


def bench_data(data: Any = None, *, config: BenchConfig | None = None, **settings: Any) -> BenchResult:
    """Measure reading, decoding, cropping, labelling and the whole loader. data: as of `open_dataset`."""
    cfg = configure(BenchConfig, config, data=data, **settings)
    source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col, cache_gb=cfg.cache_gb)
    say(f"{source.name}: {source.described}")
    order = Order(source.parts, 0)
    numbers = order.samples(np.arange(min(LOOKED_AT, len(source)))).tolist()
    records = [source[number] for number in numbers]
    good = [record for record in records if _decodes(record)]
    labeler = Labeler()
    draws = uniforms(np.arange(len(good)), DRAWS, 0).tolist()
    out = empty(cfg.image_size)

    def crop(i: int) -> None:
        decode_crop(good[i].image, cfg.crop, draws[i], out)

    rates = {
        "read": _rate(lambda i: source[numbers[i]], len(numbers), cfg.seconds),
        "decode in full": _rate(lambda i: _decode(good[i].image), len(good), cfg.seconds),
        "decode and crop": _rate(crop, len(good), cfg.seconds),
        "label": _rate(lambda i: labeler.sparse(good[i].captions), len(good), cfg.seconds),
    }
    words = Vocabulary(synsets=[], names=[], counts=[], samples=1)
    steps = Steps(CurriculumConfig(), budget=1 << 40, batch_size=cfg.batch_size, image_size=cfg.image_size, seed=0)
    batches = CaptionBatches(source, order, steps, vocabulary=words, labeler=labeler, crop=cfg.crop)
    rates["whole batches, one core"] = _whole(Loader(batches, 0), cfg.seconds)
    workers = cfg.workers or machine.cores()
    rates[f"loader, {workers} workers"] = _whole(Loader(batches, workers), cfg.seconds)
    copied = _transfer(batches, cfg.device, cfg.seconds)
    rates[f"copy to {copied[0]}"] = copied[1]
    kilobytes = float(np.mean([len(image_content(record.image)) for record in good])) / 1000
    return BenchResult(rates, len(records), len(records) - len(good), kilobytes)


def _decodes(record: Sample) -> bool:
    try:
        decode_upright(record.image)
    except UnreadableImageError:
        return False
    return True


def _decode(data: Any) -> None:
    if isinstance(data, bytes) and data[:2] == b"\xff\xd8":
        simplejpeg.decode_jpeg(data, "RGB")
    else:
        decode_upright(data)


def _rate(work: Callable[[int], object], count: int, seconds: float) -> float:
    """Calls a second, after one round that is not counted."""
    for i in range(min(count, 32)):
        work(i)
    began, done = time.perf_counter(), 0
    for i in itertools.cycle(range(count)):
        work(i)
        done += 1
        if done % 16 == 0 and time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def _whole(loader: Loader, seconds: float) -> float:
    stream = loader.batches_from(0, lend=True)
    for _ in range(2 * max(loader.workers, 1)):
        next(stream)  # the workers' start and their first batches are not counted
    began, done = time.perf_counter(), 0
    for batch in stream:
        done += len(batch)
        if time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def _transfer(batches: Batches, device: str, seconds: float) -> tuple[str, float]:
    """(device, pictures a second) of copying a batch there."""
    import torch

    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    batch = batches[0]
    if name == "cuda":
        batch = batch.pin_memory()

    def copy(_: int) -> None:
        moved = batch.image.to(name, copy=True)
        if name == "cuda":
            torch.cuda.synchronize()
        del moved

    return name, len(batch) * _rate(copy, 1, min(seconds, 1.0))
