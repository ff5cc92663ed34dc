"""A task and its data on one process, before anything is trained: how many samples, in which order, how fast."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catlip.data.dataset import Dataset
from catlip.data.loader import Loader
from catlip.data.order import Order
from catlip.data.steps import Steps
from catlip.errors import UsageError
from catlip.notices import say
from catlip.training.distributed import World, all_reduce_min
from catlip.training.hardware import default_workers
from catlip.training.precision import choose
from catlip.training.runfolder import HEAD, read_card
from catlip.training.state import State
from catlip.training.task import Task

SECONDS = 30.0  # of measuring the speed, where the budget is given in hours
WARM = 3  # steps of each kind that are not counted: compilation, caches, the loader's start
MOST = 10_000  # steps of each kind that are measured
WINDOW = 100_000  # samples that are shuffled together where shards are fetched one by one


@dataclass(slots=True)
class Session:
    """What a run is made of on this process. cfg: a `TrainConfig`."""

    task: Task
    dataset: Dataset
    cfg: Any
    world: World
    order: Order
    workers: int

    @classmethod
    def of(cls, task: Task, dataset: Dataset, cfg: Any, world: World) -> "Session":
        """Raises UsageError for a batch that the processes cannot share."""
        if task.needs_global_batch and (cfg.batch_size % world.size or cfg.loop.micro_batch):
            raise UsageError(
                "this objective compares the images of a batch: `batch_size` must be a multiple of the "
                f"{world.size} processes, and `micro_batch` 0"
            )
        if cfg.loop.compile:
            task.encoder.compile()
        if cfg.loop.checkpointing:
            task.encoder.backbone.set_grad_checkpointing(True)
        window = min(WINDOW, dataset.window or WINDOW) if dataset.remote else 0
        order = Order(dataset.parts, cfg.seed, dataset.shards.tolist(), window, dataset.keep)
        workers = cfg.workers or default_workers(world.local_size, world.device)
        return cls(task, dataset, cfg, world, order, workers)

    def steps(self, budget: int) -> Steps:
        task, cfg, world = self.task, self.cfg, self.world
        steps = Steps(
            task.curriculum, budget=budget, batch_size=cfg.batch_size, image_size=task.image_size, seed=cfg.seed
        )
        if min(batch for batch, _ in steps.shapes()) < world.size:
            raise UsageError(f"`batch_size` {cfg.batch_size} gives {world.size} processes less than an image each")
        return steps

    def loader(self, steps: Steps) -> Loader:
        world = self.world
        return Loader(self.task.batches(self.dataset, self.order, steps, world.rank, world.size), self.workers)

    def speed(self, seconds: float) -> float:
        """Images a second over a whole run, of all processes together, waiting for data included; nothing is written.

        Each kind of step that the run will have is timed for its share of `seconds` (two steps at least): a run that
        begins with small pictures and half of their patches is not as fast at its end. Evaluation and saving are not
        timed.
        """
        trial, cfg, world = copy.deepcopy(self.task), self.cfg, self.world
        state = State(trial, world, cfg.optim, cfg.loop, choose(cfg.loop.precision, world, model=trial))
        cost = sum(
            phase.share * _seconds_a_picture(state, self.loader(phase.steps(MOST)), seconds * phase.share)
            for phase in self.steps(cfg.batch_size).phases()
        )
        # Of the slowest process; whole numbers are what they exchange.
        return max(1, all_reduce_min(round(1000 / cost))) / 1000

    def budget(self, out: Path) -> int:
        """Samples of the run: a whole number of batches. Raises UsageError unless the budget is given once."""
        cfg, length = self.cfg, self.order.length
        ways = {"samples": cfg.samples, "epochs": cfg.epochs, "hours": cfg.hours}
        if sum(map(bool, ways.values())) != 1:
            raise UsageError("give the budget as `samples`, `epochs` or `hours`, one of them")
        if cfg.batch_size < 1 or min(ways.values()) < 0:
            raise UsageError("`batch_size`, `samples`, `epochs` and `hours` are positive numbers")
        if cfg.hours:
            # A run in progress keeps the budget that was measured when it began.
            if out.exists() and any(path.name != HEAD for path in out.iterdir()):
                return int(read_card(out).get("facts", {}).get("budget", 0)) or cfg.batch_size
            rate = self.speed(SECONDS)
            wanted = rate * cfg.hours * 3600
            say(f"{rate:,.0f} images/s measured: {wanted:,.0f} samples in {cfg.hours:g} hours")
        else:
            wanted = cfg.samples or cfg.epochs * length
        budget = max(1, round(wanted / cfg.batch_size)) * cfg.batch_size
        if cfg.epochs and abs(budget - wanted) > 0.05 * wanted:
            say(
                f"`epochs` {cfg.epochs:g} of {length:,} samples is no whole number of batches of {cfg.batch_size:,}: "
                f"{budget / length:.3g} epochs ({budget:,} samples); a smaller `batch_size` comes closer"
            )
        return budget


def _seconds_a_picture(state: State, loader: Loader, seconds: float) -> float:
    began, seen, before = time.perf_counter(), 0, 0.0
    for number, batch in enumerate(loader.batches_from(0, lend=True)):
        assert batch.step is not None
        loss = state.update(batch, 0.0)["loss"]
        # Wait for the device, one step behind: in a run the host prepares a step while the device is at the one before.
        float(before if number > WARM else loss)
        before = loss
        if number <= WARM:
            began, seen = time.perf_counter(), 0
            continue
        seen += batch.step.batch
        # All processes stop at the same step: the clock of the slowest decides.
        if number > WARM + 1 and all_reduce_min(int(time.perf_counter() - began > seconds)):
            break
    float(before)
    return (time.perf_counter() - began) / seen
