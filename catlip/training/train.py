"""The trainer: budget, order, steps, workers, precision, memory, averaging, resume, logging, one process or many."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catlip.config import checked, plain
from catlip.data.dataset import Dataset
from catlip.errors import UsageError
from catlip.notices import say
from catlip.training.distributed import World, any_rank, joined
from catlip.training.hardware import device_peak, train_flops
from catlip.training.log import Log, Trackers
from catlip.training.loop import Preempted, fit
from catlip.training.optim import OptimConfig
from catlip.training.precision import choose, record
from catlip.training.run import Run
from catlip.training.runfolder import UNREADABLE, acquire, add_unreadable, read_card, set_machine, write_card
from catlip.training.session import Session
from catlip.training.state import LoopConfig
from catlip.training.task import Task

Evaluator = Callable[[nn.Module], dict[str, float]]  # an encoder in eval mode -> numbers, by name


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Settings of every run. The configs of tasks are this and what the task adds."""

    samples: int = 0  # budget: images seen, repetitions counted; or epochs, or hours
    epochs: float = 0.0  # budget: times the data is seen
    hours: float = 0.0  # budget: time of training; the speed is measured first, and the samples follow from it
    batch_size: int = 256  # of all processes together
    seed: int = 0
    workers: int = 0  # decoding processes of each training process; 0: what the cores allow
    device: str = "auto"  # auto, cpu, cuda, mps
    accept_changes: bool = False  # go on with a run although its data or settings changed
    evaluate: tuple[Any, ...] = ()  # functions of the encoder that return {name: number}, called during the run
    watch_every: int = 0  # samples between evaluations during the run; 0: ten a run
    track: tuple[str, ...] = ()  # beside TensorBoard: wandb, trackio
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def train(task: Task, dataset: Dataset, cfg: TrainConfig, out: str | Path) -> Run:
    """Train, or resume the run in `out`.

    Raises UsageError for invalid settings, for a folder that holds anything but this run, and for a loss that is not
    finite.
    """
    if not out or not isinstance(out, str | os.PathLike):
        raise UsageError(f"`out` is a folder, not {out!r}" if out else "`out` is missing")
    checked(cfg)
    out, began = Path(out), time.perf_counter()
    with joined(cfg.device) as world:
        session = Session.of(task, dataset, cfg, world)
        budget = session.budget(out)
        loader = session.loader(session.steps(budget))
        measure = _evaluation(task, cfg.evaluate, out, world)
        trackers = _open_folder(session, out, budget) if world.rank == 0 else None
        any_rank(False)  # nobody looks into the folder before rank 0 has made it this run's
        precision = choose(cfg.loop.precision, world, read_card(out).get("machine"), task)
        if world.rank == 0:
            set_machine(out, record(precision, world.device))
            say(
                f"{dataset.described}; {task.described} on {world.size} x {world.device.type}, batch "
                f"{cfg.batch_size:,}, {loader.workers} loader workers; {precision}"
            )
        log = _log(session, out, budget, trackers)
        stopped = ""
        try:
            trained, seen = fit(task, loader, cfg, world, budget, precision, out, log, measure), budget
        except Preempted as reason:
            trained, seen, stopped = task, reason.samples, str(reason)
            say(f"{out}: {reason}; the same command goes on from there")
        except BaseException:
            with contextlib.suppress(OSError):  # what was met since the last checkpoint; the error matters more
                add_unreadable(out, loader.unreadable.reasons)
            raise
        finally:  # no collective here: the others may be inside another one
            log.close()
        if world.rank == 0 and (found := add_unreadable(out, {})):
            key, why = next(iter(found.items()))
            where = out / UNREADABLE
            say(f"{len(found):,} samples could not be read and were skipped, e.g. {key}: {why}; all in {where}")
        result = None if stopped else trained.finish(out, world)
        any_rank(False)  # nobody looks for the weights before rank 0 has written them
        return Run(out.absolute(), seen, time.perf_counter() - began, stopped, result)


def _open_folder(session: Session, out: Path, budget: int) -> Trackers:
    """Make the folder this run's, or find that it is. Raises UsageError."""
    task, dataset, cfg = session.task, session.dataset, session.cfg
    facts = {**task.fingerprint(), "data": dataset.fingerprint(), "budget": budget}
    try:
        json.dumps(facts)
        if not acquire(out, cfg, facts, accept=cfg.accept_changes):
            write_card(out, cfg, facts)
            task.begin(out)
        add_unreadable(out, dataset.troubles)
        return Trackers(out, cfg.track, plain(cfg))
    except TypeError as error:
        raise UsageError(f"`fingerprint` of {dataset.name} or of the task is not fit for JSON: {error}") from None
    except OSError as error:
        raise UsageError(f"`out` {out} cannot be written: {error.strerror or error}; choose another folder") from None


def _log(session: Session, out: Path, budget: int, trackers: Trackers | None) -> Log:
    task, cfg, world = session.task, session.cfg, session.world
    peak = device_peak(world.device) * world.size
    return Log(
        out,
        budget,
        main=world.rank == 0,
        trackers=trackers,
        watch_every=cfg.watch_every or budget // 10,
        peak=peak,
        flops=train_flops(task.encoder.architecture, task.image_size, task.n_classes) if peak else 0.0,
        workers=session.workers,
    )


def _evaluation(
    task: Task, evaluators: Sequence[Evaluator], out: Path, world: World
) -> Callable[[Task], dict[str, float]] | None:
    """All that is measured during the run, of a task whose weights are all here; None if that is nothing."""
    if wrong := [evaluator for evaluator in evaluators if not callable(evaluator)]:
        raise UsageError(f"`evaluate` is a list of functions of the encoder, not of {wrong[0]!r}")
    own = task.evaluation(out, world)
    if own is None and not evaluators:
        return None

    @torch.no_grad()
    def measure(trained: Task) -> dict[str, float]:
        trained.eval()
        found = own(trained) if own is not None else {}
        for evaluator in evaluators:
            numbers: Any = evaluator(trained.encoder)
            try:
                found |= {str(name): float(value) for name, value in numbers.items()}
            except (AttributeError, TypeError, ValueError, RuntimeError):  # no dict, or not of numbers
                raise UsageError(f"`evaluate` {evaluator!r} returned {numbers!r:.60}, not numbers by name") from None
        return found

    return measure
