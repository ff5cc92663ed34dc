"""Pictures a second on one core: catlip's loader against open_clip's own pipeline, in one run.

Both read the same shards, crop at random to 224 px and turn captions into what their objective needs: synset labels
of all captions here, open_clip's tokens of one caption there (its transform and tokenizer, through the webdataset
library, as its training script puts them together). One process each, one thread; rounds alternate, the median counts.

    uv run --with open_clip_torch==3.3.0 --with webdataset benchmarks/loader.py 'flickr8k/train-*.tar'
"""

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import simplejpeg
import torch
from PIL import Image

from catlip.data.batches import CaptionBatches
from catlip.data.crops import CropConfig
from catlip.data.files import expand
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary

BATCH, ROUNDS, SECONDS = 128, 5, 6.0


def ours(shards: list[Path], workers: int) -> Iterator[int]:
    source = open_dataset("{" + ",".join(map(str, shards)) + "}" if len(shards) > 1 else str(shards[0]))
    labeler = Labeler()
    counts = {
        labels[i]: 10 for labels in labeler([c for cs in source.captions() for c in cs]) for i in range(len(labels))
    }
    words = Vocabulary.from_counts(counts, labeler, samples=100, captions=100, source="bench")
    steps = Steps(CurriculumConfig(), budget=1 << 40, batch_size=BATCH, image_size=224, seed=0)
    batches = CaptionBatches(
        source, Order(source.parts, 0), steps, vocabulary=words, labeler=labeler, crop=CropConfig()
    )
    for batch in Loader(batches, workers).batches_from(0, lend=True):
        yield len(batch)


def theirs(shards: list[Path], workers: int) -> Iterator[int]:
    import open_clip
    from open_clip.transform import image_transform

    wds: Any = import_module("webdataset")

    transform = image_transform(224, is_train=True)
    tokenize = open_clip.get_tokenizer("ViT-B-16")
    data = wds.DataPipeline(  # as open_clip_train.data.get_wds_dataset does
        wds.ResampledShards([str(path) for path in shards]),
        wds.tarfile_to_samples(),
        wds.shuffle(500, initial=100),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=transform, text=lambda text: tokenize(text.splitlines()[0])[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    loader = wds.WebLoader(data, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=workers > 0)
    for image, _ in loader:
        yield len(image)


def rate(stream: Iterator[int], seconds: float) -> float:
    began, done = time.perf_counter(), 0
    for count in stream:
        done += count
        if time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def decode_limit(shards: list[Path]) -> float:
    """Decoding alone, in full, nothing else: what no loader that decodes whole pictures can beat on a core."""
    pictures = []
    with tarfile.open(shards[0]) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(pictures) < 512:
                pictures.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 3:
        for data in pictures:
            simplejpeg.decode_jpeg(data, "RGB")
        done += len(pictures)
    return done / (time.perf_counter() - began)


def enlarged(shards: list[Path], folder: Path, size: int = 500, count: int = 2000) -> list[Path]:
    """The same pictures with a longer side of `size`, encoded again at quality 90."""
    path = folder / "large.tar"
    done = 0
    with tarfile.open(path, "w") as out:
        for shard in shards:
            with tarfile.open(shard) as tar:
                for member in tar:
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    if member.name.endswith(".jpg"):
                        if done == count:
                            return [path]
                        done += 1
                        image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size * 3 // 4), 3)
                        buffer = io.BytesIO()
                        image.save(buffer, "JPEG", quality=90)
                        data = buffer.getvalue()
                    info = tarfile.TarInfo(member.name)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    return [path]


def compare(name: str, shards: list[Path], workers: int) -> None:
    makers: dict[str, Callable[[list[Path], int], Iterator[int]]] = {"catlip": ours, "open_clip": theirs}
    streams = {who: make(shards, workers) for who, make in makers.items()}
    if not workers:  # with workers both would prepare batches behind each other's back
        for stream in streams.values():
            rate(stream, 2.0)
    found: dict[str, list[float]] = {who: [] for who in makers}
    for _ in range(ROUNDS):
        for who, make in makers.items():
            if workers:
                stream = make(shards, workers)
                rate(stream, 3.0)
                found[who].append(rate(stream, SECONDS))
                stream.close()  # type: ignore[attr-defined]
            else:
                found[who].append(rate(streams[who], SECONDS))
    limit = decode_limit(shards)
    middle = {who: statistics.median(rates) for who, rates in found.items()}
    spread = {who: f"{min(rates):,.0f} to {max(rates):,.0f}" for who, rates in found.items()}
    print(f"{name}, {'one worker process' if workers else 'in the main process'}, one core:")
    for who in makers:
        print(f"  {who:<10} {middle[who]:8,.0f} pictures/s ({spread[who]})")
    print(
        f"  ratio {middle['catlip'] / middle['open_clip']:.2f}; decoding alone {limit:,.0f}/s, of which catlip "
        f"reaches {middle['catlip'] / limit:.0%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="shards with .jpg and .txt members")
    shards = expand(parser.parse_args().data)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        large = enlarged(shards, Path(folder))
        for workers in (0, 1):
            compare("224-px shards", shards, workers)
            compare("500-px pictures", large, workers)


if __name__ == "__main__":
    main()
