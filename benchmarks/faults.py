"""Faults of one process among several: 20 runs of 2 and 3 processes, in each of which a random rank meets a loss that
is not finite, a file that is missing, a full disk or kill -9 at a random step.

What is checked: every survivor ends within a minute, with exit code 2 and the reason on its terminal; and the same
command again goes on with the right sample: the keys of all steps that lead to the final weights are those of a run of
as many processes that nobody touched, and so are the weights. Of two processes they are the same bits. Of three, sums
of gradients differ in their last digit: DDP sorts its buckets anew after a run's first step, so after a resume the
exchange adds the same numbers up in another order.

A full disk is met by rank 0 alone, since it is the one that writes; it ends the run where the last checkpoint cannot be
written. Processes are forked, find each other as torchrun's do, and train on the demo's pictures.

    uv run benchmarks/faults.py
"""

import argparse
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from catlip.data.batches import Batch, Batches
from catlip.data.corpus import build_vocabulary
from catlip.demo.demo import unpack
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.tasks.pretrain import PretrainConfig, pretrain
from catlip.training.state import LoopConfig, State

STEPS, BATCH, LIMIT = 24, 24, 60.0  # LIMIT: seconds that a survivor may take
FULL = 64 << 10  # bytes that a file may have while the disk is "full": more than the log, less than a checkpoint
# kind of fault -> what a survivor, and the rank itself unless it was killed, must have said
REASONS = {
    "not finite": "the loss is not finite at step", "missing file": "No such file or directory: '/gone/photos.tar'",
    "full disk": "could not be written", "kill -9": "is gone without a word",
}  # fmt: skip
LABELER = Labeler()  # opened once, before processes are forked


def settings(folder: Path, out: Path) -> PretrainConfig:
    return PretrainConfig(
        data=str(folder / "data" / "noto.tar"),
        vocab=str(folder / "vocab.tsv"),
        out=str(out),
        backbone="test_vit",
        image_size=32,
        samples=STEPS * BATCH,
        batch_size=BATCH,
        workers=1,
        device="cpu",
        loop=LoopConfig(ema=0.9, precision="fp32", save_every=3 * BATCH),
    )


def work(rank: int, world: int, port: int, cfg: PretrainConfig, fault: tuple[str, int, int] | None) -> None:
    """One process as the command line has it. fault: (kind, rank that meets it, step)."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{cfg.out}.{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    kind, victim, step = fault or ("", -1, -1)
    update, make = State.update, Batches.make

    def noted(self: State, batch: Batch, lr: float) -> dict[str, torch.Tensor]:
        assert batch.step is not None
        with Path(f"{cfg.out}.keys{rank}").open("a") as file:
            file.write(f"{batch.step.number} {' '.join(batch.keys)}\n")
        return update(self, batch, lr)

    def updated(self: State, batch: Batch, lr: float) -> dict[str, torch.Tensor]:
        if batch.step is not None and batch.step.number == step:
            Path(f"{cfg.out}.time").write_text(str(time.time()))
            if kind == "kill -9":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "not finite":
                next(iter(self.task.parameters())).data.flatten()[0] = float("nan")
            elif kind == "full disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that is too long fails instead
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
        return noted(self, batch, lr)

    def made(self: Batches, number: int, memory: torch.Tensor | None = None) -> Batch:
        if kind == "missing file" and number >= step:  # in the loader's process
            if number == step:
                Path(f"{cfg.out}.time").write_text(str(time.time()))
            Path("/gone/photos.tar").read_bytes()
        return make(self, number, memory)

    troubled = rank == victim
    try:
        with (
            mock.patch.object(State, "update", updated if troubled else noted),
            mock.patch.object(Batches, "make", made if troubled else make),
            mock.patch.object(Vocabulary, "labeler", return_value=LABELER),
        ):
            pretrain(config=cfg)
    except UsageError as error:
        sys.stderr.write(f"catlip: {error}\n")
        sys.exit(2)


def life(world: int, cfg: PretrainConfig, fault: tuple[str, int, int] | None) -> tuple[list[int | None], float]:
    """(exit codes, seconds from the fault until the last process was gone)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=work, args=(rank, world, port, cfg, fault)) for rank in range(world)]
    for process in started:
        process.start()
    until = time.time() + 3 * LIMIT
    for process in started:
        process.join(max(0.0, until - time.time()))
    ended = time.time()
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    met = Path(f"{cfg.out}.time")
    return codes, ended - float(met.read_text()) if fault and met.exists() else 0.0


def saved(out: str) -> dict:
    return torch.load(Path(out) / "resume" / "state.pt", weights_only=True)


def apart(a: dict, b: dict) -> float:
    """Largest difference between two checkpoints' weights, of the model and of its average."""
    pairs = ((x, b[part][name]) for part in ("task", "average") for name, x in a[part].items())
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


def steps(out: str, world: int, first: int = 0) -> dict[tuple[int, int], str]:
    """(rank, step) -> keys that it trained on, the last time if several; from a step on."""
    lines = [
        (rank, *line.split(" ", 1))
        for rank in range(world)
        for line in Path(f"{out}.keys{rank}").read_text().splitlines()
    ]
    return {(rank, int(step)): keys for rank, step, keys in lines if int(step) >= first}


def trial(folder: Path, number: int, chance: random.Random, whole: dict[int, str]) -> bool:
    """One run with a fault and the run after it, as a line of the table; whether all was right."""
    kind = list(REASONS)[number % len(REASONS)]
    world = 2 + number // len(REASONS) % 2
    victim = 0 if kind == "full disk" else chance.randrange(world)
    step = chance.randrange(1, STEPS)
    cfg = settings(folder, folder / f"run{number}")
    codes, seconds = life(world, cfg, (kind, victim, step))
    survivors = [rank for rank in range(world) if kind != "kill -9" or rank != victim]
    said = [Path(f"{cfg.out}.err{rank}").read_text() for rank in survivors]
    ends = all(codes[rank] == 2 for rank in survivors) and seconds < LIMIT
    why = all(REASONS[kind] in text for text in said)
    state = Path(cfg.out) / "resume" / "state.pt"
    at = saved(cfg.out)["samples"] if state.exists() else 0
    before = steps(cfg.out, world)
    for rank in range(world):
        Path(f"{cfg.out}.keys{rank}").unlink()
    again, _ = life(world, cfg, None)
    after = steps(cfg.out, world)
    kept = {place: keys for place, keys in before.items() if place[1] < at // BATCH}
    off = apart(saved(cfg.out), saved(whole[world]))
    order = not kept.keys() & after.keys() and {**kept, **after} == steps(whole[world], world)
    same = again == [0] * world and order and off <= (0 if world == 2 else 1e-5)
    told, weights = "yes" if why else "NO", f"{off:.0e} apart" if off else "the same bits"
    print(
        f"{number + 1:>3}  {kind:<12} {world:>9} {victim:>5} {step:>5}  {codes!s:<12} {seconds:>6.1f} s  {told:<7} "
        f"{at // BATCH:>7}   {'right' if order else 'WRONG':<8}  {weights}",
        flush=True,
    )
    if not (ends and why and same):
        print("\n".join(said), again)
    return ends and why and same


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import_module("torch.utils.tensorboard")
    with TemporaryDirectory() as name:
        folder, chance, began = Path(name), random.Random(args.seed), time.time()
        unpack(folder / "data")
        build_vocabulary(str(folder / "data" / "noto.tar"), out=str(folder / "vocab.tsv"), min_count=6)
        whole = {}
        for world in (2, 3):
            cfg = settings(folder, folder / f"whole{world}")
            assert life(world, cfg, None)[0] == [0] * world
            whole[world] = cfg.out
        print(
            "run  fault        processes  rank  step  exit codes   ended in  told    saved at   and going on:\n"
            "                                                                                order     weights"
        )
        right = [trial(folder, number, chance, whole) for number in range(args.runs)]
        print(f"{sum(right)} of {len(right)} runs right, {time.time() - began:.0f} s")
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
