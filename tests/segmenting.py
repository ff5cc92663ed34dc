"""Segmentation in several processes: `python -m tests.segmenting DATA FOLDER`, for test_segment.py."""

import os
import shutil
import socket
import sys
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from catlip.models.segmenter import DecoderConfig
from catlip.tasks.segment import SegmentConfig
from catlip.tasks.segment import segment as fine_tune
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig


def work(rank: int, data: str, out: str, world: int, port: int) -> None:
    if world > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not resolve
    torch.set_num_threads(1)
    fine_tune(config=SegmentConfig(
        run="timm:test_resnet", untrained=True, train=data, test=data, out=out, image_size=32, samples=160,
        batch_size=8, workers=1, device="cpu", head=DecoderConfig(head="linear", stride=8), optim=OptimConfig(lr=1e-2),
        loop=LoopConfig(ema=0.0, precision="fp32"),
    ))  # fmt: skip


if __name__ == "__main__":
    # A fork has imported everything already, which takes longer than all that is computed here.
    method = "fork" if sys.platform == "linux" else "spawn"
    folder = Path(sys.argv[2])
    for world in (3, 1, 2):  # three train; for one and for two there is nothing left but the test
        if world != 3:
            shutil.copytree(folder / "3", folder / str(world))
            (folder / str(world) / "results.jsonl").unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start_processes(work, (sys.argv[1], str(folder / str(world)), world, port), world, start_method=method)
