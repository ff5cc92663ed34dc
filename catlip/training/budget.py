"""How many samples a run takes: as told, as epochs, or as many as the hours allow at the speed that is measured."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from catlip.data.loader import Loader
from catlip.data.steps import Phase, Steps
from catlip.errors import UsageError
from catlip.notices import say
from catlip.training.distributed import World, all_reduce_min
from catlip.training.optim import OptimConfig
from catlip.training.precision import choose
from catlip.training.runfolder import HEAD, read_card
from catlip.training.state import LoopConfig, State

WARM = 3  # steps of each kind that are not counted: compilation, caches, the loader's start
MOST = 10_000  # steps of each kind that are measured


def speed(
    task: nn.Module,
    loader: Callable[[Steps], Loader],
    phases: Sequence[Phase],
    world: World,
    optim: OptimConfig,
    loop: LoopConfig,
    seconds: float,
) -> float:
    """Images a second over a whole run, of all processes together, waiting for data included.

    Each kind of step that the run will have is timed for its share of `seconds` (two steps at least): a run that begins
    with small pictures and half of their patches is not as fast at its end. Evaluation and saving are not timed.
    """
    trial: Any = copy.deepcopy(task)
    state = State(trial, world, optim, loop, choose(loop.precision, world, model=trial))
    cost = sum(
        phase.share * _seconds_a_picture(state, loader(phase.steps(MOST)), seconds * phase.share) for phase in phases
    )
    # Of the slowest process; whole numbers are what they exchange.
    return max(1, all_reduce_min(round(1000 / cost))) / 1000


def _seconds_a_picture(state: State, loader: Loader, seconds: float) -> float:
    began, seen = time.perf_counter(), 0
    for number, batch in enumerate(loader.batches_from(0, lend=True)):
        assert batch.step is not None
        metrics = state.update(batch, 0.0)
        float(metrics["loss"])  # wait for the device
        if number <= WARM:
            began, seen = time.perf_counter(), 0
            continue
        seen += batch.step.batch
        # All processes stop at the same step: the clock of the slowest decides.
        if number > WARM + 1 and all_reduce_min(int(time.perf_counter() - began > seconds)):
            break
    return (time.perf_counter() - began) / seen


def samples_of(cfg: Any, out: Path, length: int, measured: Callable[[], float]) -> int:
    """The budget in samples: a whole number of batches.

    cfg: a `TrainConfig`. length: samples of an epoch. measured(): images a second. Raises UsageError unless the budget
    is given once.
    """
    ways = {"samples": cfg.samples, "epochs": cfg.epochs, "hours": cfg.hours}
    if sum(map(bool, ways.values())) != 1:
        raise UsageError("give the budget as `samples`, `epochs` or `hours`, one of them")
    if cfg.batch_size < 1 or min(ways.values()) < 0:
        raise UsageError("`batch_size`, `samples`, `epochs` and `hours` are positive numbers")
    if cfg.hours:
        # A run in progress keeps the budget that was measured when it began.
        if out.exists() and any(path.name != HEAD for path in out.iterdir()):
            return int(read_card(out).get("facts", {}).get("budget", 0)) or cfg.batch_size
        rate = measured()
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
