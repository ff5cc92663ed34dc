"""The one loop. It knows no objective: what is trained is a module with forward(batch) -> (loss, metrics)."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from catlip.data.loader import Loader
from catlip.errors import UsageError
from catlip.notices import warn
from catlip.training import checkpoint
from catlip.training.distributed import World, agree, any_rank, gathered
from catlip.training.log import Log, append_json
from catlip.training.optim import OptimConfig, learning_rate
from catlip.training.precision import Precision, Setting
from catlip.training.runfolder import add_unreadable
from catlip.training.state import State


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """Settings of the loop."""

    precision: Setting = "auto"  # of matrix products and convolutions, weights stay fp32; auto: what is fast here
    ema: float = 0.999  # decay of the moving average of the weights that is saved; 0: none
    save_every: int = 0  # samples between checkpoints; 0: twenty a run
    micro_batch: int = 0  # pictures of one process at a time, the rest accumulates; 0: as many as memory allows
    checkpointing: bool = False  # activations are computed twice instead of kept: less memory, a third more time
    compile: bool = False  # torch.compile the encoder
    shard: bool = False  # several GPUs: spread weights and optimiser over them (FSDP2) instead of a replica each (DDP)


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


class _Asked:
    """SIGTERM or SIGUSR1 came: SLURM's warning before the time is up, a preempted machine."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Asked":
        for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def fit(
    task: nn.Module,
    loader: Loader,
    world: World,
    *,
    budget: int,
    optim: OptimConfig,
    loop: LoopConfig,
    precision: Precision,
    seed: int,
    out: Path,
    log: Log,
    watch: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> dict[str, Tensor]:
    """Train until `budget` samples are seen; the weights to use afterwards (on the main process, on the CPU).

    Goes on from the checkpoint in `out` if there is one. watch(weights' module, samples) is asked for more numbers now
    and then. Raises UsageError at a loss that is not finite, Stopped after a signal.
    """
    state = State(task, world, optim, ema=loop.ema, precision=precision, shard=loop.shard, micro_batch=loop.micro_batch)
    state.restore(checkpoint.load(out))
    if len(set(places := gathered(state.seen))) > 1:
        raise UsageError(
            f"`out` {out}: the processes found checkpoints at {places} samples; it is one folder for all of them"
        )
    log.begin(state.seen)
    saved = tried = state.seen  # samples of the newest checkpoint; when saving was last attempted
    every = loop.save_every or math.ceil(budget / 20)
    state.task.train()
    with _Asked() as asked:
        upcoming, waited = loader.batches_from(loader.batches.steps.after(state.seen), lend=True), time.perf_counter()
        for batch in upcoming:
            log.waited(time.perf_counter() - waited, batch.cost)
            assert batch.step is not None
            if not state.steps:
                state.fit_memory(batch)
            # Drop path, dropped patches, noise: a function of the place, so that resuming repeats them.
            torch.manual_seed((seed + 1) * 1_000_003 + state.seen * 1_009 + world.rank)
            lr = learning_rate(state.seen, budget, optim)
            metrics = state.update(batch, lr)
            stop, done = any_rank(asked.signal is not None), state.seen >= budget
            if log.due(done or stop):
                if problem := _not_finite(state, loader, out):
                    raise UsageError(problem)
                log.report(state.seen, metrics, lr)
            if stop or done or state.seen - tried >= every:
                agree(_not_finite(state, loader, out))
                saved, tried = _save(state, loader, out, saved, must=stop or done), state.seen
            if stop:
                raise Stopped(f"{asked.signal or 'another process was asked to stop'}: saved at {state.seen:,} samples")
            if watch and (done or log.watch_due(state.seen, batch.step.batch)):
                log.watched(state.seen, watch(state.whole(), state.seen))
                state.task.train()
            waited = time.perf_counter()
    return state.final()


def _save(state: State, loader: Loader, out: Path, saved: int, *, must: bool) -> int:
    """Save; samples of the newest checkpoint afterwards. A full disk ends the run only if this was the last chance."""
    problem = ""
    unreadable = {key: why for found in gathered(loader.unreadable.reasons) for key, why in found.items()}
    try:
        state.save(out)
        if state.world.main:
            add_unreadable(out, unreadable)
    except OSError as error:
        kept = f"the checkpoint at {saved:,} samples is kept" if saved else "there is no earlier checkpoint"
        problem = f"the checkpoint at {state.seen:,} samples could not be written ({error}); {kept}"
    agree(f"`out` {out}: {problem}. Make room and give the same command again" if problem and must else "")
    if problem:
        warn(f"{out}: {problem}")
    return saved if problem else state.seen


def _not_finite(state: State, loader: Loader, out: Path) -> str:
    """Why the run must end before it can overwrite the last good checkpoint, or nothing.

    The first step whose loss was not finite is remembered on the device, so looking costs a synchronisation only when
    something is written anyway; the batch's keys follow from the step's number.
    """
    if (step := int(state.bad)) < 0:
        return ""
    keys = loader.batches.keys(step)
    append_json(out / "log.jsonl", {"samples": state.seen, "not_finite_at_step": step, "keys": keys})
    return (
        f"the loss is not finite at step {step:,} (found at {state.seen:,} samples); the keys of its "
        f"{len(keys)} pictures are in {out / 'log.jsonl'}. A lower `lr` or a longer `warmup` usually mends it"
    )
