"""How fast will this run be? Measured on its own data, model and settings; the model is left as it was."""

import copy
import time
from collections.abc import Callable, Sequence

from torch import nn

from catlip.data.loader import Loader
from catlip.data.steps import Phase, Steps
from catlip.training.distributed import World, smallest
from catlip.training.loop import LoopConfig
from catlip.training.optim import OptimConfig
from catlip.training.precision import choose
from catlip.training.state import State

WARM = 3  # steps of each kind that are not counted: compilation, caches, the loader's start
MOST = 10_000  # steps of each kind that are measured


def measure(
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
    trial = copy.deepcopy(task)
    state = State(
        trial,
        world,
        optim,
        ema=loop.ema,
        precision=choose(loop.precision, world),
        shard=loop.shard,
        micro_batch=loop.micro_batch,
    )
    cost = sum(
        phase.share * _seconds_a_picture(state, loader(phase.steps(MOST)), seconds * phase.share) for phase in phases
    )
    return max(1, smallest(round(1000 / cost))) / 1000  # of the slowest process; whole numbers are what they exchange


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
        if number > WARM + 1 and smallest(int(time.perf_counter() - began > seconds)):
            break
    return (time.perf_counter() - began) / seen
