"""Peak memory and time of the loss of a wide classifier: linear_bce against logits and dense targets.

Each in a process of its own: 1,024 pictures, 768 channels. What is counted is the most that forward and backward
take beyond what was there before (features and weights); once in all, and once without the weight's gradient, which
both have to make.

    uv run benchmarks/loss.py
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from catlip.training.precision import DTYPES, fastest

PICTURES, WIDTH, LABELS = 1024, 768, 8


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_of(work, device: str) -> tuple[int, float]:
    """(most bytes beyond what was there, seconds)."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, time.perf_counter() - began
    before, most, done = resident(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=look)
    watcher.start()
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    done.set()
    watcher.join()
    return most - before, took


def measure(kind: str, classes: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    from catlip.objectives.linear import linear_bce

    torch.manual_seed(0)
    x = torch.randn(PICTURES, WIDTH, device=device, requires_grad=True)
    weight = (torch.randn(classes, WIDTH, device=device) * 0.01).requires_grad_()
    bias = torch.full((classes,), -6.0, device=device, requires_grad=True)
    labels = torch.randint(0, classes, (PICTURES, LABELS), device=device)
    offsets = torch.arange(0, PICTURES * LABELS + 1, LABELS, device=device)

    def dense() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = F.linear(x, weight, bias)
        target = torch.zeros(PICTURES, classes, device=device).scatter_(1, labels, 1.0)
        (F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum") / PICTURES).backward()

    def chunked() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            linear_bce(x, weight, bias, labels.flatten(), offsets).backward()

    # A first small call, so that libraries and their buffers are there.
    small = torch.randn(8, WIDTH, device=device, requires_grad=True)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        nothing = torch.zeros(8, dtype=torch.int64, device=device), torch.arange(9, device=device)
        linear_bce(small, weight[:64].detach(), bias[:64].detach(), *nothing).backward()
    peak, seconds = peak_of(dense if kind == "dense" else chunked, device)
    return {"peak": peak, "seconds": seconds, "gradient": classes * WIDTH * 4}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.device, DTYPES[args.precision])))
        return
    if args.precision == "auto":
        args.precision = fastest(torch.device(args.device)).name
    for classes in (24_320, 200_000):
        found = {}
        for kind in ("dense", "chunked"):
            how = ["--device", args.device, "--precision", args.precision]
            command = [sys.executable, __file__, *how, "--one", kind, str(classes)]
            runs = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)
            ]
            found[kind] = min(runs, key=lambda run: run["seconds"])
        dense, ours = found["dense"], found["chunked"]
        without = (ours["peak"] - ours["gradient"]) / (dense["peak"] - dense["gradient"])
        print(f"{PICTURES:,} x {classes:,} classes on {args.device}, {args.precision}:")
        for kind, run in found.items():
            rest = (run["peak"] - run["gradient"]) / 1e6
            print(
                f"  {kind:<8} {run['peak'] / 1e6:8,.0f} MB in all, {rest:8,.0f} MB without the weight's gradient, "
                f"{run['seconds'] * 1000:7,.0f} ms"
            )
        print(f"  ratio    {ours['peak'] / dense['peak']:.3f} in all, {without:.3f} without", flush=True)


if __name__ == "__main__":
    main()
