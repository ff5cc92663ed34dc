"""How fast will this run be? Measured on its own data, model and settings; the model is left as it was."""

import copy
import itertools
import time
from collections.abc import Callable

from torch import nn

from catlip.data.loader import Loader
from catlip.training.distributed import World, smallest
from catlip.training.loop import Loop
from catlip.training.optim import Optim
from catlip.training.state import State

WARM = 3  # steps that are not counted: compilation, caches, the loader's start


def measure(
    task: nn.Module, loader: Callable[[int], Loader], world: World, optim: Optim, loop: Loop, seconds: float
) -> float:
    """Images a second of all processes together, waiting for data included; measured for so many seconds."""
    trial = copy.deepcopy(task)
    state = State(
        trial, world, optim, ema=loop.ema, bf16=loop.precision == "bf16", shard=loop.shard, micro_batch=loop.micro_batch
    )
    batches = loader(1 << 40)
    began, seen = time.perf_counter(), 0
    for number, batch in enumerate(itertools.islice(batches.batches_from(0, lend=True), 10_000)):
        metrics = state.update(batch, 0.0)
        float(metrics["loss"])  # wait for the device
        if number == WARM:
            began, seen = time.perf_counter(), state.seen
        # All processes stop at the same step: the clock of the slowest decides.
        if number > WARM + 1 and smallest(int(time.perf_counter() - began > seconds)):
            break
    return max(1, smallest(int((state.seen - seen) / (time.perf_counter() - began))))
