"""Several processes as one: who we are, how weights are kept equal, how all agree to stop.

Started by torchrun or SLURM; both are recognised by their environment variables. One process needs none of this.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from catlip.errors import UsageError


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # processes on this machine
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def join(device: str) -> World:
    """Find the other processes, if there are any. device: auto, cpu, cuda, mps. Raises UsageError."""
    rank, size, local_rank, local_size = _place(os.environ)
    found = pick_device(device)
    if found.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UsageError(f"process {local_rank} of this machine has no GPU; there are {torch.cuda.device_count()}")
        found = torch.device("cuda", local_rank)
        torch.cuda.set_device(found)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(minutes=30))
    return World(rank, size, local_rank, local_size, found)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """ "auto": the accelerator if there is one. Raises UsageError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def one_device(name: str) -> torch.device:
    """As `pick_device`, for work that one process does. Raises UsageError if there are several."""
    if (size := _place(os.environ)[1]) > 1:
        raise UsageError(f"this verb works in one process, and {size} were started; call it without torchrun or srun")
    return pick_device(name)


def _place(env: Any) -> tuple[int, int, int, int]:
    """(rank, size, local rank, local size) from torchrun's or SLURM's variables."""
    if "RANK" in env and "WORLD_SIZE" in env:
        size = int(env["WORLD_SIZE"])
        return int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", size))
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        size = int(env["SLURM_NTASKS"])
        # torch's rendezvous: the first host of the job, a port that no other job of this user has.
        env.setdefault("MASTER_ADDR", first_host(env.get("SLURM_JOB_NODELIST", "localhost")))
        env.setdefault("MASTER_PORT", str(20_000 + int(env.get("SLURM_JOB_ID", 0)) % 20_000))
        local_size = int(re.match(r"\d+", env.get("SLURM_NTASKS_PER_NODE") or env["SLURM_NTASKS"])[0])  # type: ignore[index]
        return int(env["SLURM_PROCID"]), size, int(env.get("SLURM_LOCALID", 0)), local_size
    return 0, 1, 0, 1


def first_host(nodes: str) -> str:
    """First name of a SLURM node list: "gpu[03-05,9],login1" -> "gpu03"."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodes)
    if match is None:
        return nodes
    return match[1] + (re.split(r"[,-]", match[2])[0] if match[2] else "")


def share(task: nn.Module, world: World, *, sharded: bool) -> nn.Module:
    """The task as all processes train it: a replica each (DDP), or its weights spread over them (FSDP2)."""
    if world.size == 1:
        return task
    if not sharded:
        return DistributedDataParallel(task, gradient_as_bucket_view=True, find_unused_parameters=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    encoder: Any = task.get_submodule("objective.encoder.backbone")
    for block in getattr(encoder, "blocks", []):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    return task


@contextlib.contextmanager
def local_only(shared: nn.Module, when: bool) -> Iterator[None]:
    """Gradients stay with this process inside, if `when`: micro-batches before a step's last one."""
    if isinstance(shared, DistributedDataParallel):
        with shared.no_sync() if when else contextlib.nullcontext():
            yield
        return
    if hasattr(shared, "set_requires_gradient_sync"):
        shared.set_requires_gradient_sync(not when)  # type: ignore[operator]
    yield


def any_rank(flag: bool) -> bool:
    """Whether any process says so. Every process must ask at the same time."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def smallest(value: int) -> int:
    """The least of all processes' values."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def total(values: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """Every process' value, in order of rank, on all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
