"""What pre-training is worth for semantic segmentation: CamVid mIoU of one architecture from pre-trained and from
random weights, everything else equal.

    python benchmarks/segment.py RUN CAMVID_FOLDER --out /tmp/segment --samples 3670

CAMVID_FOLDER holds train-*.tar and test-*.tar (KEY.jpg, KEY.seg.png; 11 classes, 11 is void). Windows of --size px at
.5 to 2 times the picture's size; tested at full size in sliding windows. A table is printed, mIoU in percent; run the
same command again to go on. Both begin with the same head, see the same windows in the same order, and have the same
learning rate: give several (--lr 1e-3 3e-3) to give each its best.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from catlip.data.maskbatches import Window
from catlip.models.segmenter import DecoderConfig
from catlip.tasks.segment import SegmentConfig, segment
from catlip.training.optim import OptimConfig
from catlip.training.precision import Setting
from catlip.training.state import LoopConfig

NAMES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()


def measure(args: argparse.Namespace, lr: float, seed: int, untrained: bool) -> dict:
    """One run, or what it left when it was done before."""
    out = Path(args.out) / f"{'untrained' if untrained else 'pretrained'}-{args.head}-lr{lr:g}-seed{seed}"
    if (out / "results.jsonl").is_file():
        return json.loads((out / "results.jsonl").read_text().splitlines()[-1])
    names = Path(args.out) / "names.txt"
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("\n".join(NAMES) + "\n")
    found = segment(
        config=SegmentConfig(
            run=args.run,
            untrained=untrained,
            train=f"{args.camvid}/train-*.tar",
            test=f"{args.camvid}/test-*.tar",
            out=str(out),
            classes=str(names),
            void=(11,),
            image_size=args.size,
            samples=args.samples,
            batch_size=args.batch_size,
            seed=seed,
            workers=1,
            device=args.device,
            show=0,
            head=DecoderConfig(head=args.head, stride=args.stride, head_width=args.head_width, head_dropout=0.1),
            window=Window(),
            optim=OptimConfig(lr=lr, weight_decay=0.05),
            loop=LoopConfig(precision=args.precision, ema=0.99),
        )
    ).result
    if found is None:
        sys.exit("stopped; the same command goes on")
    return found.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a pre-trained encoder")
    parser.add_argument("camvid")
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=3670)  # ten epochs
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--head", default="deeplab", choices=get_args(get_type_hints(DecoderConfig)["head"]))
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--precision", default="auto", choices=get_args(Setting))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = []
    for lr in args.lr:
        for seed in range(args.seeds):
            for untrained in (True, False):
                r = measure(args, lr, seed, untrained)
                start = "untrained" if untrained else "pre-trained"
                lines.append(
                    f"{start:<12} {lr:>8g} {seed:>5} {r['miou']:>7.2f} {r['mean_accuracy']:>9.2f} "
                    f"{r['pixel_accuracy']:>7.2f} {r['seconds']:>8.0f}"
                )
    print(
        f"\nCamVid test, {args.head} head at stride {args.stride}, {args.samples:,} windows of {args.size} px, batch "
        f"{args.batch_size}\n{'':<12} {'lr':>8} {'seed':>5} {'mIoU':>7} {'mean acc':>9} {'pixels':>7} {'s':>8}"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
