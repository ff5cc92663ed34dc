"""What objectives ask of other processes, with gradients; without a process group, as with one process, all are no-ops.

Gradients add up: the gradient that comes back for a tensor is the sum over all processes' losses. Averaged over
processes afterwards, as data-parallel training does with parameters, that is the gradient of the mean loss.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes; no gradient."""
    if world()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def row_counts(x: Tensor) -> list[int]:
    """len(x) of every process. They differ where a picture could not be read."""
    if world()[1] == 1:
        return [len(x)]
    # On the CPU where the process group can: reading a number back from an accelerator would wait for its queue.
    device = "cpu" if "cpu:gloo" in dist.get_backend_config() else x.device
    mine = torch.tensor([len(x)], device=device)
    every = [torch.empty_like(mine) for _ in range(world()[1])]
    dist.all_gather(every, mine)
    return [int(n) for n in every]


def all_rows(x: Tensor, counts: list[int]) -> Tensor:
    """Rows of all processes [sum counts, D], in the order of ranks, with gradient. counts: of row_counts."""
    return _AllRows.apply(x, counts) if len(counts) > 1 else x  # pyright: ignore[reportReturnType]


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.counts = counts
        padded = x.new_zeros(max(counts), *x.shape[1:])  # collectives want equal shapes
        padded[: len(x)] = x
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded)
        return torch.cat([rows[:n] for rows, n in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)  # reduce_scatter would send half as much, but gloo has it only since torch 2.8
        return grad.split(ctx.counts)[dist.get_rank()], None


def ring(x: Tensor, counts: list[int]) -> Iterator[Tensor]:
    """The rows of every other process, one process at a time, with gradient; they travel from neighbour to neighbour.

    Only one neighbour's rows are held beside one's own, whereas all_rows holds all (SigLIP, section 3.3).
    """
    rank, n = world()
    for step in range(1, n):
        x = _FromLeft.apply(x, counts[(rank - step) % n], 1)  # pyright: ignore[reportAssignmentType]
        yield x


class _FromLeft(torch.autograd.Function):
    """Send to the neighbour `towards` (1: right, -1: left), receive `rows` rows from the other one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, towards: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.rows, ctx.towards = len(x), towards
        return _exchange(x, rows, towards)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grads[0], ctx.rows, -ctx.towards), None, None


def _exchange(x: Tensor, rows: int, towards: int) -> Tensor:
    rank, n = world()
    received = x.new_empty(rows, *x.shape[1:])
    sending = dist.P2POp(dist.isend, x.contiguous(), (rank + towards) % n)
    receiving = dist.P2POp(dist.irecv, received, (rank - towards) % n)
    for request in dist.batch_isend_irecv([sending, receiving]):
        request.wait()
    return received
