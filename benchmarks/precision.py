"""Images a second of a training step in each precision, and what `auto` makes of the machine.

A step is the trainer's own: forward, backward, clipping, AdamW, running average. Each precision in a process of its
own, in alternating rounds; the median counts. On a CPU that emulates bf16 its rows take minutes.

    uv run benchmarks/precision.py
    ONEDNN_MAX_CPU_ISA=AVX2 uv run benchmarks/precision.py     # as a CPU without AVX-512 would do it
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from catlip import machine

machine.prepare()

import torch  # noqa: E402

from catlip.data.batches import Batch  # noqa: E402
from catlip.data.steps import Step  # noqa: E402
from catlip.models.encoder import Encoder  # noqa: E402
from catlip.objectives.synsets import SynsetObjective, Synsets  # noqa: E402
from catlip.training.distributed import join  # noqa: E402
from catlip.training.optim import OptimConfig  # noqa: E402
from catlip.training.precision import choose, where  # noqa: E402
from catlip.training.state import LoopConfig, State  # noqa: E402
from catlip.training.task import Task  # noqa: E402

CLASSES, LABELS, PIXELS = 709, 8, 64  # Flickr8k's vocabulary
MODELS = {"resnet10t": 128, "vit_small_patch16_224": 64}  # with the pictures of a step


def measure(model: str, precision: str, seconds: float) -> dict[str, float | str]:
    """Inside a process of its own: the best of the steps that fit into the time, at least two."""
    torch.manual_seed(0)
    world, count = join("auto"), MODELS[model]
    chosen = choose(precision, world)  # type: ignore[arg-type]
    task = Task(SynsetObjective(Encoder.create(model, image_size=PIXELS), [100] * CLASSES, 6_000, Synsets()))
    state = State(task, world, OptimConfig(), LoopConfig(), chosen)
    batch = Batch(
        torch.randint(0, 256, (count, 3, PIXELS, PIXELS), dtype=torch.uint8),
        torch.zeros(count, dtype=torch.bool),
        torch.randint(0, CLASSES, (count * LABELS,)),
        torch.arange(0, count * LABELS + 1, LABELS),
        [],
        [""] * count,
        step=Step(0, 0, count, PIXELS, 1.0, 0.0),
    )
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:
        since = time.perf_counter()
        float(state.update(batch, 1e-3)["loss"])
        rates.append(count / (time.perf_counter() - since))
    return {"images_per_s": statistics.median(rates[1:]), "chosen": str(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], args.seconds)))
        return
    print(f"{where(join('auto').device)}, {machine.cores()} cores, {torch.get_num_threads()} threads, {PIXELS} px")
    for model in args.models:
        found: dict[str, list[dict]] = {name: [] for name in ("fp32", "bf16", "auto")}
        for _ in range(args.rounds):
            for name in found:
                command = [sys.executable, __file__, "--seconds", str(args.seconds), "--one", model, name]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(run.stdout.splitlines()[-1]))
        for name, runs in found.items():
            rates = [run["images_per_s"] for run in runs]
            spread = f"({min(rates):,.1f} to {max(rates):,.1f})"
            print(
                f"  {model:<22} {name:<5} {statistics.median(rates):8,.1f} images/s {spread:<20} {runs[-1]['chosen']}"
            )


if __name__ == "__main__":
    main()
