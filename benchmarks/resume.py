"""kill -9 at random moments, five times: the weights must be those of a run that nobody touched, bit for bit. And
two processes that are stopped and go on as three: the same samples in the same order.

    uv run benchmarks/resume.py 'flickr8k/train-*.tar'
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from catlip.data.corpus import build_vocabulary
from catlip.data.crops import CropConfig
from catlip.recipes.flickr8k_cpu import flickr8k_cpu
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.state import LoopConfig

KILLS = 5


def settings(data: str, folder: Path, name: str, samples: int) -> PretrainConfig:
    cfg = flickr8k_cpu()
    cfg.data, cfg.vocab, cfg.out, cfg.samples, cfg.device = (
        data,
        str(folder / "vocab.tsv"),
        str(folder / name),
        samples,
        "cpu",
    )
    cfg.crop, cfg.loop = CropConfig(scale=(0.3, 1.0), blur=0.5), LoopConfig(ema=0.998, save_every=256)
    return cfg


def child(data: str, folder: Path, name: str, samples: int) -> None:
    """Train, and note which sample stood at which place."""
    from catlip.data.batches import Batches
    from catlip.tasks.pretrain import pretrain

    make = Batches.make

    def noted(self: Batches, number: int, memory=None):
        batch = make(self, number, memory)
        first = batch.step.start + self.rank  # type: ignore[union-attr]
        with (folder / f"{name}.{os.environ.get('TAG', '')}.keys").open("a") as file:
            file.write("".join(f"{first + i * self.world} {key}\n" for i, key in enumerate(batch.keys)))
        return batch

    Batches.make = noted  # type: ignore[method-assign]
    pretrain(config=settings(data, folder, name, samples))


def start(data: str, folder: Path, name: str, samples: int, world: int = 1, tag: str = "") -> list[subprocess.Popen]:
    processes = []
    for rank in range(world):
        env = {**os.environ, "TAG": tag, "OMP_NUM_THREADS": "1"}
        if world > 1:
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(21_000 + os.getpid() % 20_000 + world),
            }
        command = [sys.executable, __file__, data, "--child", str(folder), name, str(samples)]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return processes


def wait(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.wait():
            raise SystemExit(f"a run ended with {process.returncode}")


def places(file: Path) -> dict[int, str]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {int(line[0]): line[1] for line in lines if len(line) == 2}  # the last line may be cut by a kill


def saved(folder: Path, name: str) -> dict:
    return torch.load(folder / name / "resume" / "state.pt", weights_only=True)


def killed(data: str, folder: Path, samples: int, seed: int) -> None:
    wait(start(data, folder, "whole", samples))
    targets = sorted(random.Random(seed).sample(range(samples // 10, samples), KILLS))
    stops, keys = [], folder / "killed..keys"
    for target in targets:
        process = start(data, folder, "killed", samples)[0]
        while process.poll() is None:  # until the loader has been so far; the trainer is a few batches behind
            if keys.exists() and max(places(keys), default=0) >= target:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stops.append(saved(folder, "killed")["samples"] if (folder / "killed" / "resume" / "state.pt").exists() else 0)
    wait(start(data, folder, "killed", samples))
    whole, again = saved(folder, "whole"), saved(folder, "killed")
    equal = all(
        torch.equal(a, b)
        for part in ("task", "average")
        for a, b in zip(whole[part].values(), again[part].values(), strict=True)
    )
    print(
        f"killed {KILLS} times near {targets}, checkpoints then at {stops} of {samples:,} samples: "
        f"weights and average {'bit-identical' if equal else 'DIFFER'}",
        flush=True,
    )


def two_then_three(data: str, folder: Path, samples: int) -> None:
    wait(start(data, folder, "alone", samples))
    processes = start(data, folder, "many", samples, world=2, tag="2")
    while not (folder / "many" / "resume" / "state.pt").exists():
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # one is told; both must stop at the same step
    wait(processes)
    at = saved(folder, "many")["samples"]
    wait(start(data, folder, "many", samples, world=3, tag="3"))
    before = {place: key for place, key in places(folder / "many.2.keys").items() if place < at}
    after = places(folder / "many.3.keys")
    alone = places(folder / "alone..keys")
    same = not set(before) & set(after) and {**before, **after} == alone
    a, b = saved(folder, "alone")["average"], saved(folder, "many")["average"]
    apart = max((x.float() - y.float()).abs().max().item() for x, y in zip(a.values(), b.values(), strict=True))
    print(
        f"2 processes until {at:,} of {samples:,} samples, then 3: the sequence of samples is "
        f"{'the same' if same else 'ANOTHER'}; weights differ by {apart:.2g} (BatchNorm)"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=9_600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.data, Path(args.child[0]), args.child[1], int(args.child[2]))
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        build_vocabulary(args.data, out=str(folder / "vocab.tsv"), min_count=8)
        killed(args.data, folder, args.samples, args.seed)
        two_then_three(args.data, folder, args.samples // 3)


if __name__ == "__main__":
    main()
