"""The one loop. It knows no objective: what is trained is a module with forward(batch) -> (loss, metrics)."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from catlip.errors import UsageError
from catlip.training import checkpoint
from catlip.training.log import Meter, append_json
from catlip.training.optim import Optim, learning_rate, make_optimizer


class Endless(Protocol):
    """Batches from any sample on."""

    batch_size: int

    def from_sample(self, seen: int) -> Any: ...


@dataclass(kw_only=True, slots=True)
class Loop:
    """Settings of the loop."""

    precision: Literal["bf16", "fp32"] = "bf16"  # of matrix products and convolutions; weights stay fp32
    ema: float = 0.999  # decay of the moving average of the weights that is saved; 0: none
    save_every: int = 0  # samples between checkpoints; 0: only at the end
    compile: bool = False  # torch.compile the task


class Average:
    """Exponential moving average of a module's weights and running statistics."""

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in task.state_dict().items()}
        self._floats = [name for name, value in self.state.items() if value.is_floating_point()]
        self._others = [name for name in self.state if name not in set(self._floats)]

    @torch.no_grad()
    def update(self, task: nn.Module, steps: int) -> None:
        # Short runs: an average over the last tenth at most, so that it is not full of the initial weights.
        decay = min(self.decay, (1 + steps) / (10 + steps))
        now = task.state_dict()
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.state[n] for n in self._floats], [now[n] for n in self._floats], 1 - decay
        )
        for name in self._others:
            self.state[name].copy_(now[name])


def fit(
    task: nn.Module, batches: Endless, *, budget: int, optim: Optim, loop: Loop, seed: int, out: Path,
    device: torch.device,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Train until `budget` samples are seen; the state to use afterwards (the average's, if there is one).

    Goes on from the checkpoint in `out` if there is one. Raises UsageError at a loss that is not finite.
    """
    task.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(task, optim)
    average = Average(task, loop.ema) if loop.ema else None
    seen = _restore(checkpoint.load(out), task, optimizer, average)
    forward = torch.compile(task) if loop.compile else task
    meter = Meter(budget, seen)
    task.train()
    saved, upcoming = seen, batches.from_sample(seen)
    while seen < budget:
        asked = time.perf_counter()
        batch = next(upcoming)
        meter.waited(time.perf_counter() - asked)
        lr = learning_rate(seen, budget, optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(seed + seen)  # drop path and dropout: a function of the step, so that resuming repeats them
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.precision == "bf16"):
            loss, metrics = forward(batch.to(device))
        loss.backward()
        if optim.clip:
            nn.utils.clip_grad_norm_(task.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += batches.batch_size
        if average:
            average.update(task, seen // batches.batch_size)
        # Once in a while: look, save.
        if meter.due(seen):
            values = {name: float(value) for name, value in metrics.items()}
            _check_finite(values, seen, batch.keys, out)
            append_json(out / "log.jsonl", meter.report(seen, values, lr))
        if (loop.save_every and seen - saved >= loop.save_every) or seen >= budget:
            _check_finite({"loss": float(loss.detach())}, seen, batch.keys, out)
            checkpoint.save(out, _state(task, optimizer, average, seen))
            saved = seen
    upcoming.close()
    return average.state if average else task.state_dict()


def _state(task: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, seen: int) -> dict[str, Any]:
    return {
        "samples": seen,
        "task": task.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state if average else None,
    }


def _restore(
    state: dict[str, Any] | None, task: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> int:
    """Put a saved state back; samples seen so far."""
    if state is None:
        return 0
    task.load_state_dict(state["task"])
    optimizer.load_state_dict(state["optimizer"])
    if average and state["average"]:
        average.state = {name: value.to(average.state[name].device) for name, value in state["average"].items()}
    return state["samples"]


def _check_finite(values: dict[str, float], seen: int, keys: list[str], out: Path) -> None:
    """A loss that is not finite ends the run, before it can overwrite the last good checkpoint."""
    if all(map(math.isfinite, values.values())):
        return
    append_json(
        out / "log.jsonl",
        {"samples": seen, "not_finite": {k: str(v) for k, v in values.items()}, "keys": keys},
    )
    raise UsageError(
        f"the loss is not finite after {seen:,} samples; the batch's keys are in {out / 'log.jsonl'}. "
        "A lower --lr or a longer --warmup usually mends it"
    )
