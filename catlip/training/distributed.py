"""Several processes as one: who we are, how weights are kept equal, how all agree to stop.

Started by torchrun or SLURM; both are recognised by their environment variables. One process needs none of this.
"""

import contextlib
import functools
import itertools
import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from catlip import machine
from catlip.errors import UsageError, first_line, refusal
from catlip.objectives import gather

T = TypeVar("T")
_meetings = itertools.count()
_world: ContextVar["World | None"] = ContextVar("world", default=None)  # of the `joined` block that this thread is in


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # processes on this machine
    device: torch.device


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """The other processes, if there are any, for the time of a `with` block; they end it together.

    device: auto, cpu, cuda, mps. An error on one process ends all of them with its reason; a system's error (a full
    disk, a missing file, memory) is raised as UsageError. No collective is needed for that, and none may stand in a
    `finally`: the others may be waiting inside another one.
    """
    if (outer := _world.get()) is not None:  # a verb has joined them already, and the trainer goes on inside
        yield outer
        return
    world = join(device)
    if world.device.type == "cpu":
        machine.keep_memory()
    peers = None
    if world.size > 1:
        from catlip.training.peers import Peers  # one process needs none

        peers = Peers(world.rank, world.size)
    try:
        if world.size > 1 and world.device.type == "cuda":
            _check_own_gpu(world)
        token = _world.set(world)
        try:
            yield world
        finally:
            _world.reset(token)
    except BaseException as error:
        if peers and _is_lost_connection(error):
            peers.lost()
        plain = plainly(error)
        if peers:
            if plain is None and isinstance(error, Exception):
                traceback.print_exc()
                plain = UsageError(f"{type(error).__name__}: {error}")
            peers.fail(str(plain or repr(error)))
        if plain is None or plain is error:
            raise
        raise plain from error
    if peers:
        peers.leave()
        dist.destroy_process_group()


def join(device: str) -> World:
    """Find the other processes, if there are any. Raises UsageError."""
    rank, size, local_rank, local_size = _place(os.environ)
    found = pick_device(device, local_rank, alone=size == 1)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        try:
            # Kept, so that processes that part may meet again: rank 0 serves it, and some would still find the old one.
            store = PrefixStore(f"meeting {next(_meetings)}", _store(rank, size))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(minutes=30))
        except (dist.DistError, ValueError) as error:
            raise UsageError(f"rank {rank} of {size} did not find the others: {first_line(error)}") from None
    return World(rank, size, local_rank, local_size, found)


@functools.cache
def _store(rank: int, size: int) -> Any:
    """Where all processes find each other, served by rank 0 or by torchrun."""
    from catlip.training.peers import FIND

    return next(rendezvous("env://", rank, size, timeout=FIND))[0]


def plainly(error: BaseException) -> UsageError | None:
    """A user's mistake as it is, the system's trouble as one; None for anything else."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return UsageError(f"out of memory ({first_line(error)}); a smaller `batch_size` or `micro_batch` needs less")
    if isinstance(error, BrokenPipeError) or not isinstance(error, Exception):
        return None
    why = refusal(error)
    return UsageError(why) if why else None


def _is_lost_connection(error: BaseException) -> bool:
    """Whether it only says that another process has gone, in the words of torch, NCCL or gloo."""
    if isinstance(error, UsageError | torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl", "by peer"))


def pick_device(name: str, local_rank: int = 0, *, alone: bool = True) -> torch.device:
    """ "auto": the accelerator if there is one. Raises UsageError for one that is not there.

    A process takes its own GPU before it touches any: a context on GPU 0 costs half a gigabyte there for each of them.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and torch.cuda.is_available():
            if not alone and device.index is not None:
                raise UsageError(
                    f"`device` {name!r}: each of several processes takes its own GPU; leave the number out"
                )
            count = torch.cuda.device_count()
            # Under `srun --gpus-per-task=1` each process sees one GPU, its own, whatever its number on the machine.
            index = device.index if device.index is not None else local_rank if count > 1 else 0
            if device.index is None and index >= count:
                raise UsageError(f"process {local_rank} of this machine has no GPU; there are {count}")
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device` {name!r} cannot be used: {first_line(error)}") from None
    return device


def _check_own_gpu(world: World) -> None:
    """Raises UsageError where two processes have the same GPU, of which NCCL would complain in its own words."""
    mine = str(getattr(torch.cuda.get_device_properties(world.device), "uuid", world.rank))
    every = all_gather((socket.gethostname(), mine))
    shared = [rank for rank, other in enumerate(every) if other == every[world.rank]]
    if len(shared) > 1:
        raise UsageError(f"ranks {shared} have one GPU between them; start as many processes as there are GPUs")


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


def wrap(task: nn.Module, world: World, *, sharded: bool) -> nn.Module:
    """The task as all processes train it: a replica each (DDP), or its weights spread over them (FSDP2)."""
    if world.size == 1:
        return task
    if not sharded:
        return DistributedDataParallel(task, gradient_as_bucket_view=True, find_unused_parameters=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    encoder: Any = task.encoder.backbone  # pyright: ignore[reportAttributeAccessIssue]
    for block in getattr(encoder, "blocks", []):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    return task


@contextlib.contextmanager
def no_sync(shared: nn.Module, when: bool) -> Iterator[None]:
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


def agree(problem: str) -> None:
    """Raises UsageError on all processes if one of them has a problem. Every process must ask at the same time."""
    for rank, said in enumerate(all_gather(problem)):
        if said:
            raise UsageError(said if rank == gather.world()[0] else f"rank {rank}: {said}")


def all_reduce_min(value: int) -> int:
    """The least of all processes' values."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def all_reduce(values: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather(value: Any) -> list[Any]:
    """Every process' value, in order of rank, on all of them. Every process must ask at the same time."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """What rank 0 makes, on all processes. It may take longer than others wait for a collective."""
    if not dist.is_initialized():
        return make()
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    values: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, 0, group=patient)
    dist.destroy_process_group(patient)
    return values[0]
