"""The one loop. It knows no objective: what is trained is a module with forward(batch) -> (loss, metrics)."""

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from catlip.data.loader import Loader
from catlip.errors import UsageError
from catlip.notices import warn
from catlip.training import checkpoint
from catlip.training.distributed import World, agree, all_gather, any_rank
from catlip.training.log import Log, append_json
from catlip.training.optim import learning_rate
from catlip.training.precision import Precision
from catlip.training.runfolder import add_unreadable
from catlip.training.state import State
from catlip.training.task import Task


class Preempted(Exception):
    """A signal asked the run to stop, and it has saved."""

    def __init__(self, reason: str, samples: int) -> None:
        super().__init__(f"{reason}: saved at {samples:,} samples")
        self.samples = samples


class _Signals:
    """SIGTERM or SIGUSR1 came: SLURM's warning before the time is up, a preempted machine.

    Handlers belong to the main thread; a run in another one (a notebook's, a server's) is stopped by its owner.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def fit(
    task: Task,
    loader: Loader,
    cfg: Any,
    world: World,
    budget: int,
    precision: Precision,
    out: Path,
    log: Log,
    measure: Callable[[Any], dict[str, float]] | None = None,
) -> Task:
    """Train until `budget` samples are seen; the task with the weights to use, on rank 0.

    Goes on from the checkpoint in `out` if there is one. cfg: a `TrainConfig`. measure(task) is asked for more numbers
    now and then. Raises UsageError at a loss that is not finite, Preempted after a signal.
    """
    state = State(task, world, cfg.optim, cfg.loop, precision)
    state.restore(checkpoint.load(out))
    if len(set(places := all_gather(state.seen))) > 1:
        raise UsageError(
            f"`out` {out}: the processes found checkpoints at {places} samples; it is one folder for all of them"
        )
    log.begin(state.seen)
    saved = tried = state.seen  # samples of the newest checkpoint; when saving was last attempted
    every = cfg.loop.save_every or math.ceil(budget / 20)
    state.task.train()
    with _Signals() as signals:
        upcoming, waited = loader.batches_from(loader.batches.steps.after(state.seen), lend=True), time.perf_counter()
        for batch in upcoming:
            log.waited(time.perf_counter() - waited, batch.cost)
            assert batch.step is not None
            if not state.steps:
                state.fit_memory(batch)
            # Drop path, dropped patches, noise: a function of the sample number, so that resuming repeats them.
            torch.manual_seed((cfg.seed + 1) * 1_000_003 + state.seen * 1_009 + world.rank)
            lr = learning_rate(state.seen, budget, cfg.optim)
            metrics = state.update(batch, lr)
            stop, done = any_rank(signals.received is not None), state.seen >= budget
            if log.due(done or stop):
                if problem := _not_finite(state, loader, out):
                    raise UsageError(problem)
                log.report(state.seen, metrics, lr)
            if stop or done or state.seen - tried >= every:
                agree(_not_finite(state, loader, out))
                saved, tried = _save(state, loader, out, saved, must=stop or done), state.seen
            if stop:
                raise Preempted(signals.received or "another process was asked to stop", state.seen)
            if measure and (done or log.watch_due(state.seen, batch.step.batch)):
                log.watched(state.seen, measure(state.unsharded()))
                state.task.train()
            waited = time.perf_counter()
    return state.finished()


def _save(state: State, loader: Loader, out: Path, saved: int, *, must: bool) -> int:
    """Save; samples of the newest checkpoint afterwards. A full disk ends the run only if this was the last chance."""
    problem = ""
    unreadable = {key: why for found in all_gather(loader.unreadable.reasons) for key, why in found.items()}
    try:
        state.save(out)
        if state.world.rank == 0:
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
