"""Objectives in three processes: `python -m tests.sharded FOLDER` writes results.pt there, for test_objectives.py."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from catlip.objectives.contrastive import info_nce, pairwise_sigmoid
from tests.test_objectives import PARALLEL, SHARES, make_objective, two_steps, vectors

WORLD = 3


def losses(rank: int) -> dict[str, torch.Tensor]:
    """Loss of the whole batch and gradients of all vectors, scale and bias, put together from all processes."""
    found = {}
    for shares, sizes in SHARES.items():
        start, total = sum(sizes[:rank]), sum(sizes)
        for kind, function in (("clip", info_nce), ("siglip", pairwise_sigmoid)):
            inputs = vectors(total)[: 3 if kind == "clip" else 4]
            mine = [x[start : start + sizes[rank]] for x in inputs[:2]]
            # A process' share of the mean over the batch; with equal shares that is the average over processes.
            loss = function(*mine, *inputs[2:]) * sizes[rank] / total
            loss.backward()
            parts = [loss.detach(), *(x.grad for x in inputs)]
            for part in parts:
                dist.all_reduce(part)
            names = ["loss", *(f"grad{i}" for i in range(len(inputs)))]
            found |= {f"{kind}.{shares}.{name}": part for name, part in zip(names, parts, strict=True)}
    return found


def training(rank: int) -> dict[str, torch.Tensor]:
    found = {}
    for name in PARALLEL:
        objective = make_objective(name).train()
        parallel = DistributedDataParallel(objective)  # has to live until backward is through
        loss = two_steps(objective, parallel, slice(4 * rank, 4 * rank + 4)) / WORLD
        dist.all_reduce(loss)
        found |= {f"{name}.loss": loss}
        found |= {f"{name}.{n}": p.grad for n, p in objective.named_parameters() if p.grad is not None}
        found |= {f"{name}.{n}": b for n, b in objective.named_buffers()}
    return found


def work(rank: int, out: Path) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not resolve
    # Who waits longer for the others than this has lost them.
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    found = {**losses(rank), **training(rank)}
    if rank == 0:
        torch.save(found, out / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    # A fork has imported everything already, which takes longer than all that is computed here.
    method = "fork" if sys.platform == "linux" else "spawn"
    mp.start_processes(work, (Path(sys.argv[1]),), WORLD, start_method=method)
