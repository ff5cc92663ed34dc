"""Where a training step's time goes: upload, gradients, optimiser, average; what the device does and what it waits for.

    python benchmarks/profile_step.py ../shared/data runs/profile --gpu --objectives synsets clip siglip
    python benchmarks/profile_step.py ../shared/data runs/profile --objectives synsets    # flickr8k_cpu, on any device

Real batches, made beforehand, so that no loader works beside the step: what remains is the trainer's own. Recipes are
those of `objectives.py`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from objectives import comparison, prepare, sentences_of
from torch.profiler import ProfilerActivity, profile

from catlip.data.batches import Batch
from catlip.recipes import compare as comparing
from catlip.tasks.pretrain import PretrainConfig
from catlip.tasks.pretrain import prepare as prepare_run
from catlip.training.distributed import World, joined
from catlip.training.precision import choose
from catlip.training.session import Session
from catlip.training.state import State

BATCHES, STEPS, TOLD = 12, 24, 14


def timed(work: Callable[[], Any], world: World) -> float:
    """Milliseconds, the device's work included."""
    wait(world)
    began = time.perf_counter()
    work()
    wait(world)
    return 1000 * (time.perf_counter() - began)


def wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def first_times(state: State, batches: list[Batch]) -> None:
    """Each batch twice: shapes that are met for the first time may cost more."""
    for turn in ("first", "second"):
        times = [f"{timed(lambda b=b: state.update(b, 1e-4), state.world):.0f}" for b in batches]
        print(f"  {turn} time: {' '.join(times)} ms")
    lengths = [b.tokens.shape[1] for b in batches if b.tokens is not None]
    if lengths:
        print(f"  tokens:      {' '.join(map(str, lengths))}")


def parts(state: State, batches: list[Batch]) -> None:
    """Milliseconds of each part, with a wait between them; then of whole steps without."""
    found: dict[str, list[float]] = {}
    for batch in batches:
        steps: dict[str, Callable[[], Any]] = {
            "upload": lambda b=batch: b.to(state.world.device),
            "gradients, upload included": lambda b=batch: state._gradients(b),
            "optimiser": lambda: state._step(1e-4),
            "average": lambda: state.average and state.average.update(state.task, 100),
        }
        for name, work in steps.items():
            found.setdefault(name, []).append(timed(work, state.world))
    for name, times in found.items():
        print(f"  {name:<28}{statistics.median(times):7.1f} ms")

    def run() -> None:
        for number in range(STEPS):
            state.update(batches[number % len(batches)], 1e-4)

    whole = timed(run, state.world) / STEPS
    print(f"  {'a step, nothing waited for':<28}{whole:7.1f} ms   {1000 * len(batches[0]) / whole:,.0f} images/s")


def profiled(state: State, batches: list[Batch]) -> None:
    """What the device did in three steps, and what the host did."""
    cuda = state.world.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as found:
        for batch in batches[:3]:
            state.update(batch, 1e-4)
        wait(state.world)
    events: list[Any] = list(found.key_averages())
    kernels = [event for event in events if event.device_type.name == "CUDA"]  # what calls them counts it again
    sides = [("device", kernels, "self_device_time_total"), ("host", events, "self_cpu_time_total")]
    for side, some, field in sides if cuda else sides[1:]:
        print(f"  {side}: {sum(getattr(e, field) for e in some) / 3000:.1f} ms a step")
        for event in sorted(some, key=lambda e: -getattr(e, field))[:TOLD]:
            print(f"    {getattr(event, field) / 3000:8.2f} ms  {event.count / 3:7.0f} x  {event.key[:90]}")


def look(settings: PretrainConfig, told: str) -> None:
    with joined(settings.device) as world:
        task, dataset = prepare_run(settings, world)
        session = Session.of(task, dataset, settings, world)
        state = State(task, world, settings.optim, settings.loop, choose(settings.loop.precision, world, model=task))
        made = session.loader(session.steps(settings.samples)).batches
        batches = [made.make(number) for number in range(BATCHES)]
        print(
            f"{told}: {settings.backbone}, {settings.image_size} px, batch {settings.batch_size}, {state.dtype}",
            flush=True,
        )
        state.task.train()
        first_times(state, batches)
        parts(state, batches)
        profiled(state, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/, cifar10/ and coco128/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", nargs="+", default=("synsets",))
    parser.add_argument("--gpu", action="store_true", help="ViT-S/16 at 112 px")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    shards, vocab = prepare(args.data, args.out)
    kept = sentences_of(args.data, args.out, args.objectives)
    recipe = "tiny" if args.tiny else "vit_s16" if args.gpu else ""
    name = f"{Path(__file__).with_name('objectives.py')}:{recipe}" if recipe else "flickr8k_cpu"
    config = comparison(
        args.data, args.out, shards, vocab, objectives=tuple(args.objectives), recipe=name, sentence_encoder=kept
    )
    for objective in args.objectives:
        settings = comparing.settings_of(config, objective)
        look(replace(settings, loop=replace(settings.loop, compile=args.compile)), objective)


if __name__ == "__main__":
    main()
