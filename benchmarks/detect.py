"""A detector that must learn a few pictures by heart, and what a step of the full-size one costs.

Overfitting on purpose, on the hundred pictures of COCO128's training half that have masks: AP on the very pictures it
was trained on says whether boxes, classes, masks, anchors and the metric fit together, and nothing about detection.
One core; 5,500 samples were meant for a quarter of an hour of an idle one.

    uv run benchmarks/detect.py learn timm:resnet10t coco128/ --out /tmp/learn
    uv run benchmarks/detect.py step timm:vit_base_patch16_224 --image-size 1024
"""

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from catlip.data.boxes import BoxBatch
from catlip.data.steps import Step
from catlip.models.detector import DetectorConfig
from catlip.models.weights import open_weights
from catlip.objectives.boxes import BoxObjective
from catlip.tasks.detect import DetectConfig, detect
from catlip.training.distributed import World, join
from catlip.training.optim import OptimConfig
from catlip.training.precision import DTYPES, choose
from catlip.training.state import LoopConfig, State
from catlip.training.task import Task

# The published ids, which COCO128's list of categories has lost while its annotations kept them.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def learn(args: argparse.Namespace) -> None:
    """Train on the pictures, and find in them what was learned."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        table = json.loads((args.data / "annotations" / "instances_train2017.json").read_text())
        for category, number in zip(table["categories"], COCO_IDS, strict=True):
            category["id"] = number
        table["images"] = table["images"][: args.pictures]
        kept = {image["id"] for image in table["images"]}
        table["annotations"] = [entry for entry in table["annotations"] if entry["image_id"] in kept]
        boxes = Path(folder) / "instances_train2017.json"
        boxes.write_text(json.dumps(table))
        began, cpu = time.perf_counter(), time.process_time()
        result = detect(config=learning(args, boxes)).result
        took, used = time.perf_counter() - began, time.process_time() - cpu
    if result is None:
        return  # stopped; the same command goes on
    print(f"{used / 60:.1f} minutes of one core ({took / 60:.1f} on the clock), the loader's apart")
    print(f"AP50 on the pictures learned: boxes {result.box['AP50']:.1f} %, masks {result.mask['AP50']:.1f} %")


def learning(args: argparse.Namespace, boxes: Path) -> DetectConfig:
    """A narrow Mask R-CNN for 256 pixels: anchors from 8 pixels on, and a high rate, as there is little time."""
    pictures, trained = str(args.data / "train2017.tar"), not args.untrained
    return DetectConfig(
        run=args.run,
        untrained=args.untrained,
        images=pictures,
        boxes=str(boxes),
        test_images=pictures,
        test_boxes=str(boxes),
        out=args.out,
        image_size=256,
        scale=(1.0, 1.0),
        samples=args.samples,
        batch_size=2,
        workers=1,
        device="cpu",
        objective=DetectorConfig(
            channels=64,
            hidden=256,
            mask_layers=1,
            anchors=(8, 16, 32, 64, 128),
            proposals=150,
            regions=64,
            freeze=1 if trained else 0,
            freeze_norm=trained,
        ),
        optim=OptimConfig(
            lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99), schedule="wsd", decay=0.35, warmup=0.03, clip=5.0
        ),
        loop=LoopConfig(precision="fp32", ema=0.0),
    )


def step(args: argparse.Namespace) -> None:
    """Steps of random pictures with two objects each: seconds, and memory at its highest."""
    world: World = join(args.device)
    size, n = args.image_size, args.batch_size
    half = np.zeros((2 * n, size, -(-size // 8)), np.uint8)
    half[:, : size // 2] = 255
    sides = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.3, 0.2, 0.9, 0.8]]) * size
    batch = BoxBatch(
        torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8),
        torch.zeros(n, dtype=torch.bool),
        torch.arange(2 * n) % 80,
        torch.arange(0, 2 * n + 1, 2),
        [[] for _ in range(n)],
        list(map(str, range(n))),
        boxes=sides.repeat(n, 1),
        masks=torch.from_numpy(half),
    )
    precision = choose(args.precision, world)
    torch.manual_seed(0)
    encoder = open_weights(args.run, untrained=True).build(image_size=size)
    if args.checkpointing:
        encoder.backbone.set_grad_checkpointing(True)
    state = State(
        Task(BoxObjective(encoder, 80, DetectorConfig())), world, OptimConfig(), LoopConfig(ema=0.0), precision
    )
    state.task.train()
    for number in range(args.steps):
        batch.step = Step(number, number * n, n, size, 1.0, 0.0)
        began, cpu = time.perf_counter(), time.process_time()
        loss = float(state.update(batch, 1e-4)["loss"])
        took, used = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"step {number}: {took:.2f} s ({used:.2f} s of the processor), {n / took:.3f} pictures/s, loss {loss:.2f}"
        )
    on_gpu = world.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.numel() for p in state.task.parameters())
    print(f"{args.run} at {size} px, batch {n}, {precision}: {weights:,} weights, {peak / 1e9:.1f} GB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("learn")
    one.add_argument("run")
    one.add_argument("data", type=Path)
    one.add_argument("--untrained", action="store_true")
    one.add_argument("--out", required=True)
    one.add_argument("--pictures", type=int, default=100)
    one.add_argument("--samples", type=int, default=5500)
    one.add_argument("--lr", type=float, default=1e-3)
    one.set_defaults(function=learn)
    one = verbs.add_parser("step")
    one.add_argument("run", nargs="?", default="timm:vit_base_patch16_224")
    one.add_argument("--image-size", type=int, default=1024)
    one.add_argument("--batch-size", type=int, default=1)
    one.add_argument("--steps", type=int, default=1)
    one.add_argument("--device", default="cpu")
    one.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    one.add_argument("--checkpointing", action="store_true")
    one.set_defaults(function=step)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
