"""The training state: model, optimisers, running average; how it is updated by a batch, saved and put back."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp

from catlip.data.batches import Batch
from catlip.errors import UsageError
from catlip.notices import warn
from catlip.training import checkpoint
from catlip.training.distributed import World, all_reduce_min, no_sync, wrap
from catlip.training.optim import OptimConfig, make_optimizers
from catlip.training.precision import Precision, Setting


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """How a task is computed and kept."""

    precision: Setting = "auto"  # of matrix products and convolutions, weights stay fp32; auto: what is fast here
    ema: float = 0.999  # decay of the moving average of the weights that is saved; 0: none
    save_every: int = 0  # samples between checkpoints; 0: twenty a run
    micro_batch: int = 0  # pictures per forward pass of a process, gradients accumulate; 0: as many as memory allows
    checkpointing: bool = False  # recompute activations instead of keeping them: less memory, a third more time
    compile: bool = False  # torch.compile the encoder
    shard: bool = False  # several GPUs: spread weights and optimiser over them (FSDP2) instead of a replica each (DDP)


class Average:
    """Exponential moving average of a module's weights and running statistics, as a module of its own."""

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(task).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, task: nn.Module, steps: int) -> None:
        # Short runs: an average over the last tenth at most, so that it is not full of the initial weights.
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.module.parameters()), list(task.parameters()), 1 - decay
        )
        for mine, new in zip(self.module.buffers(), task.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)


def accumulate(
    module: nn.Module,
    batch: Batch,
    world: World,
    *,
    dtype: torch.dtype,
    micro_batch: int,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> dict[str, Tensor]:
    """Add a batch's gradients to the module's, some pictures at a time (0: all at once); the metrics, averaged.

    scale: what a loss is multiplied with, so that its gradients can be told from 0 in fp16.

    The mean over processes is the gradient of the step's mean loss.
    """
    assert batch.step is not None
    metrics: dict[str, Tensor] = {}
    micro = batch.split(micro_batch or len(batch))
    for i, part in enumerate(micro):
        with no_sync(module, i + 1 < len(micro)), _batch_norm_needs_two(len(part)):
            with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
                loss, found = _promised(module(part.to(world.device)))
            scale(loss * (len(part) * world.size / batch.step.batch)).backward()
        for name, value in found.items():
            metrics[name] = metrics.get(name, 0.0) + value * (len(part) / len(batch))
    return metrics


def _promised(found: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of a task or of somebody's objective. Raises UsageError for anything else."""
    loss, metrics = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    numbers: list[Any] = [loss, *metrics.values()] if isinstance(metrics, dict) and "loss" in metrics else [None]
    if any(not isinstance(one, Tensor) or one.numel() != 1 for one in numbers) or not numbers[0].requires_grad:
        told = "(loss, {'loss': loss.detach(), ...}), tensors of one number each, the first with a gradient"
        raise UsageError(f"`objective`: forward returns {told}")
    return numbers[0], metrics or {}


@contextlib.contextmanager
def _batch_norm_needs_two(pictures: int) -> Iterator[None]:
    """Raises UsageError where BatchNorm meets a single value and says so in torch's words."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a process' share of a step is {pictures} picture, and BatchNorm needs two: a larger `batch_size` (or "
            "`micro_batch`), or a ViT, which has none"
        ) from None


class Before:
    """What a try of a step moves although it fails: running statistics, counts, random numbers."""

    def __init__(self, task: nn.Module, device: torch.device) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in task.buffers()]
        self._random = torch.get_rng_state()
        self._device = device if device.type == "cuda" else None
        self._random_there = torch.cuda.get_rng_state(device) if self._device else None

    def put_back(self) -> None:
        for buffer, value in self._buffers:
            buffer.copy_(value)
        torch.set_rng_state(self._random)
        if self._random_there is not None:
            torch.cuda.set_rng_state(self._random_there, self._device)  # type: ignore[arg-type]


class State:
    """Everything that training changes. One object on every process."""

    def __init__(self, task: Any, world: World, optim: OptimConfig, loop: LoopConfig, precision: Precision) -> None:
        """task: a `Task`, with its initial weights."""
        self.world, self.optim, self.dtype = world, optim, precision.dtype
        shard, ema = loop.shard, loop.ema
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision.scaled)  # pyright: ignore[reportPrivateImportUsage]
        self.sharded = shard and world.size > 1
        # To be measured during the run: methods of a sharded module go past the hooks that put its weights together.
        self._plain = copy.deepcopy(task) if self.sharded else None
        # Convolutions like channels last; FSDP2 refuses weights that are not contiguous.
        layout = torch.contiguous_format if shard else torch.channels_last
        self.task: Any = task.to(device=world.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.average = Average(task, ema) if ema else None
        if shard and self.average:
            self.average.module = wrap(self.average.module, world, sharded=True)
        self.wrapped = wrap(task, world, sharded=shard)
        self.optimizers = make_optimizers(task, optim)
        self.micro_batch = loop.micro_batch  # samples of this process at a time; 0: all of its share
        self.seen = self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.int64, device=world.device)  # first step whose loss was not finite

    def update(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One optimiser step on this process' share of a step's batch; the metrics, averaged over it.

        Every picture weighs the same whatever the shares and micro-batches: gradients are sums over pictures,
        divided by the step's whole batch.
        """
        assert batch.step is not None
        metrics = self._gradients(batch)
        if (norm := self._step(lr)) is not None:
            metrics["grad_norm"] = norm
        self.task.after_step()
        self._note_if_not_finite(batch.step.number, metrics)
        self.seen, self.steps = batch.step.start + batch.step.batch, self.steps + 1
        if self.average:
            self.average.update(self.task, batch.step.number + 1)
        return metrics

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Those of a step, made in as many parts as memory asks for; the metrics."""
        # Several processes end at the first try: half of an exchange of gradients cannot be taken back.
        before = Before(self.task, self.world.device) if self.world.size == 1 else None
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):  # its traceback holds on to all that the try has made
                return accumulate(
                    self.wrapped,
                    batch,
                    self.world,
                    dtype=self.dtype,
                    micro_batch=self.micro_batch,
                    scale=self.scaler.scale,
                )
            self._halve(len(batch))
            assert before is not None
            before.put_back()

    def _step(self, lr: float) -> Tensor | None:
        """Move the weights; the norm of the gradients before they were clipped, if they are."""
        norm: Any = None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.scaler.unscale_(optimizer)
        if self.optim.clip:
            norm = nn.utils.clip_grad_norm_(self.task.parameters(), self.optim.clip).detach()
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return norm

    def _note_if_not_finite(self, step: int, metrics: dict[str, Tensor]) -> None:
        """A gradient that is not finite has just spoilt the weights, although the loss before it was fine. Where the
        loss is scaled, the step was left out instead, and the scale will be less the next time."""
        unscaled = self.scaler.scale(torch.ones((), device=self.world.device)) <= 1
        steady = torch.isfinite(metrics.get("grad_norm", metrics["loss"])) | ~unscaled
        finite = torch.isfinite(metrics["loss"]) & steady
        self.bad = torch.where((self.bad < 0) & ~finite, step, self.bad)

    def _halve(self, share: int) -> None:
        """Out of memory: go on with half the micro-batch. The same result, if a loss looks at pictures one by one."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        now = min(self.micro_batch or share, share)
        where = f"out of memory with {now} pictures at a time"
        if self.task.needs_global_batch:
            raise UsageError(f"{where}, and this objective compares all of them; a smaller `batch_size` is needed")
        half = self._half_of(now)
        if self.world.size > 1:
            raise UsageError(f"{where}; the same command with `micro_batch` {half} goes on from the last checkpoint")
        self.micro_batch = half
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = -(-share // self.micro_batch)
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.task.modules())
        but = (
            "which changes nothing but speed"
            + norms * f" and BatchNorm, whose statistics are of {self.micro_batch} now"
        )
        warn(f"{where}; going on with {self.micro_batch} x {parts}, {but}")

    @staticmethod
    def _half_of(pictures: int) -> int:
        if pictures == 1:
            raise UsageError("out of memory with 1 pictures at a time; a smaller `backbone` or `image_size` is needed")
        return -(-pictures // 2)

    def fit_memory(self, batch: Batch) -> None:
        """Several processes: find the micro-batch that all of them have memory for, before gradients are exchanged.

        Not if the weights are sharded: every try gathers them, and a process that runs out would leave the others
        waiting.
        """
        if self.world.size == 1 or self.world.device.type != "cuda" or self.sharded:
            return
        if self.task.needs_global_batch:
            return
        before, micro, fits = Before(self.task, self.world.device), self.micro_batch or len(batch), False
        while not fits:
            with contextlib.suppress(torch.OutOfMemoryError):
                accumulate(self.task, batch, self.world, dtype=self.dtype, micro_batch=micro)
                fits = True
            self.task.zero_grad(set_to_none=True)
            before.put_back()
            if not fits:
                micro = self._half_of(micro)
                torch.cuda.empty_cache()
        # A tenth is left for what a step needs beside it: gradients in flight, the optimiser's moments.
        micro = micro if micro >= len(batch) else max(1, int(0.9 * micro))
        self.micro_batch = all_reduce_min(micro)

    def save(self, out: Path) -> None:
        """Write a checkpoint; every process must call it. Raises OSError on the one that writes."""
        whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = {
            "samples": self.seen,
            "task": dcp.get_model_state_dict(self.task, options=whole),
            "optimizers": [dcp.get_optimizer_state_dict(self.task, o, options=whole) for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": dcp.get_model_state_dict(self.average.module, options=whole) if self.average else None,
        }
        if self.world.rank == 0:
            checkpoint.save(out, state)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back what `save` wrote. The file is read by every process."""
        if state is None:
            return
        whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        dcp.set_model_state_dict(self.task, state["task"], options=whole)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            dcp.set_optimizer_state_dict(self.task, optimizer, saved, options=whole)
            for group, now in zip(optimizer.param_groups, settings, strict=True):
                group.update(now)  # a change that was accepted counts, and not what the file says
        if self.average:  # switched on since: it begins with the weights that are there, not with the initial ones
            dcp.set_model_state_dict(self.average.module, state["average"] or state["task"], options=whole)
        if self.scaler.is_enabled() and state.get("scaler"):  # a run that began elsewhere has none
            self.scaler.load_state_dict(state["scaler"])
        self.seen = state["samples"]

    def unsharded(self) -> Any:
        """The task to be measured: the average, if there is one, all of its weights here. Every process must call."""
        module = self.average.module if self.average else self.task
        if self._plain is None:
            return module
        plain = copy.deepcopy(self._plain)
        plain.load_state_dict(dcp.get_model_state_dict(module, options=dcp.StateDictOptions(full_state_dict=True)))
        return plain.to(self.world.device)

    def finished(self) -> Any:
        """The task with the weights to use, the average's if there is one, on rank 0. Every process must call."""
        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = dcp.get_model_state_dict(self.average.module if self.average else self.task, options=options)
        task = self.task if self._plain is None else self._plain
        if self.world.rank == 0:
            task.load_state_dict(weights)
        return task.eval()
