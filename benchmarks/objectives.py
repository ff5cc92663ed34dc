"""Every objective on Flickr8k: what `catlip compare` says, from the data as it lies to the page.

    uv run benchmarks/objectives.py ../shared/data runs/objectives
        resnet10t, 64 px, 90,000 samples, three seeds, every objective. Hours on two CPU
        cores; stop it and give the command again. Two processes of one thread each, with other --objectives, are
        faster than one of two threads; the last one to finish, or one more call, writes the page.
    uv run benchmarks/objectives.py ../shared/data runs/objectives-gpu --gpu
        ViT-S/16, 112 px, 100 epochs, one seed, on one GPU.

Pictures are packed at 128 px first (a crop of .3 of that is 70 px: nothing is lost at 64), so that
decoding does not compete with the model for the cores.
"""

import argparse
from pathlib import Path

from catlip.data.corpus import build_vocabulary
from catlip.data.crops import CropConfig
from catlip.data.pack import PackConfig, pack
from catlip.labels.tokenizer import TokenizerConfig
from catlip.models.text_tower import TextConfig
from catlip.recipes.compare import CompareConfig, compare
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

ALL = (
    "synsets", "synsets_softmax", "synsets_asymmetric", "subwords", "clip", "siglip", "clip_lite", "clip+subwords",
    "siglip+synsets",
)  # fmt: skip


def vit_s16() -> PretrainConfig:
    """100 epochs of Flickr8k's 6,000 training pictures."""
    return PretrainConfig(
        data="",
        vocab="",
        out="",
        backbone="vit_small_patch16_224",
        image_size=112,
        samples=600_000,
        batch_size=512,
        crop=CropConfig(scale=(0.3, 1.0)),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1),
        tokens=TokenizerConfig(tokens=4096, context=32),
        text=TextConfig(text_width=384, text_layers=6),
        loop=LoopConfig(ema=0.998, compile=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/ and cifar10/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", nargs="+", default=ALL, choices=ALL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[])
    parser.add_argument("--equal-time", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    size = 224 if args.gpu else 128
    shards, vocab = args.out / f"shards-{size}", args.out / "vocab.tsv"
    if not shards.exists():
        pack(
            config=PackConfig(
                data=str(args.data / "flickr8k" / "train-{000000..000005}.tar"), out=str(shards), size=size
            )
        )
    if not vocab.exists():
        build_vocabulary(str(shards / "*.tar"), out=str(vocab), min_count=8)
    compare(
        CompareConfig(
            out=str(args.out),
            objectives=tuple(args.objectives),
            data=str(shards),
            vocab=str(vocab),
            train=str(args.data / "cifar10" / "train-000000.tar"),
            test=str(args.data / "cifar10" / "test-000000.tar"),
            retrieve=str(args.data / "flickr8k" / "test-000000.tar"),
            recipe="benchmarks/objectives.py:vit_s16" if args.gpu else "flickr8k_cpu",
            lr=() if args.gpu else (1e-3, 3e-3, 1e-2),
            seeds=1 if args.gpu else args.seeds,
            equal_time=args.equal_time,
            batch_sizes=tuple(args.batch_sizes),
        )
    )


if __name__ == "__main__":
    main()
