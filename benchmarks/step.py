"""Images a second and peak memory of one training step: catlip's against open_clip's contrastive one, and what comes
from where.

Every variant runs in a process of its own on the same machine, in the same precision, batch, optimiser (fused AdamW)
and attention (torch's); rounds alternate, the median counts. The variants:

  contrastive   open_clip ViT-B-16: picture and text tower, ClipLoss
  image-tower   open_clip's picture tower alone, its output's mean as a loss: the most that dropping the text can give
  dense         timm ViT and a linear head, logits and dense targets as the official code has them
  catlip        the same with the loss that never makes the logits
  keep-50       the same with half of the patches dropped
  low-160       the same at 160 px with half of the patches dropped: nine tenths of the budget recipe

The budget recipe's speed is the harmonic mean of low-160 (.9) and catlip (.1).

    uv run --with open_clip_torch==3.3.0 benchmarks/step.py --batch 16
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.training.precision import DTYPES, fastest, where

VARIANTS = ("contrastive", "image-tower", "dense", "catlip", "keep-50", "low-160")
CLASSES, LABELS = 24_320, 8  # labels a picture: the mean of Flickr8k's five captions
MODELS = {
    "B": ("vit_base_patch16_224", "ViT-B-16"),
    "L": ("vit_large_patch16_224", "ViT-L-16"),
    "S": ("vit_small_patch16_224", "ViT-S-16"),
}


def make(variant: str, size: str, batch: int, device: str, dtype: torch.dtype, compiled: bool) -> Callable[[], Tensor]:
    """One step of a variant on fixed random input; the loss."""
    torch.manual_seed(0)
    timm_name, clip_name = MODELS[size]
    if variant in ("contrastive", "image-tower"):
        forward, module = _theirs(variant, clip_name, batch, device, compiled)
    else:
        forward, module = _ours(variant, timm_name, batch, device, compiled)
    decayed, free = [], []
    for p in module.parameters():
        if p.requires_grad:
            (decayed if p.ndim > 1 else free).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": free, "weight_decay": 0.0}], lr=1e-4, fused=True
    )

    def step() -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _theirs(variant: str, name: str, batch: int, device: str, compiled: bool) -> tuple[Callable[[], Tensor], nn.Module]:
    import open_clip

    model: Any = open_clip.create_model(name).to(device).train()
    images = torch.randn(batch, 3, 224, 224, device=device)
    text = torch.randint(1, 49_000, (batch, 77), device=device)
    text[:, 20] = 49_407  # end of text: captions have some 20 tokens, but the tower works on 77
    loss = open_clip.ClipLoss()
    if variant == "image-tower":
        tower = model.visual
        for parameter in tower.parameters():
            parameter.requires_grad_(True)
        run = torch.compile(tower) if compiled else tower
        return (lambda: run(images).float().square().mean()), tower
    run = torch.compile(model) if compiled else model

    def forward() -> Tensor:
        found = run(images, text)
        found = (
            found
            if isinstance(found, tuple)
            else (found["image_features"], found["text_features"], found["logit_scale"])
        )
        return loss(*found[:3])

    return forward, model


def _ours(variant: str, name: str, batch: int, device: str, compiled: bool) -> tuple[Callable[[], Tensor], nn.Module]:
    from catlip.data.batches import Batch
    from catlip.data.steps import Step
    from catlip.models.encoder import Encoder
    from catlip.objectives.synsets import SynsetObjective, Synsets
    from catlip.training.task import Task

    drop = variant in ("keep-50", "low-160")
    pixels = 160 if variant == "low-160" else 224
    encoder = Encoder.create(name, image_size=224, any_size=variant == "low-160", drop_patches=drop)
    task = Task(SynsetObjective(encoder, [100] * CLASSES, 100_000, Synsets())).to(device).train()
    if compiled:
        encoder.compile()
    labels = torch.randint(0, CLASSES, (batch, LABELS), device=device).sort(dim=1).values.flatten()
    data = Batch(
        torch.randint(0, 256, (batch, 3, pixels, pixels), dtype=torch.uint8, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
        labels,
        torch.arange(0, batch * LABELS + 1, LABELS, device=device),
        [],
        [""] * batch,
        step=Step(0, 0, batch, pixels, 0.5 if drop else 1.0, 0.0),
    )
    if variant != "dense":
        return (lambda: task(data)[0]), task
    objective = task.objective

    def forward() -> Tensor:
        logits = objective.head(encoder.pooled(encoder.normalize(data.image))).float()
        target = torch.zeros(batch, CLASSES, device=device).scatter_(1, labels.view(batch, LABELS), 1.0)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / batch

    return forward, task


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Inside the variant's own process."""
    step = make(args.one, args.size, args.batch, args.device, DTYPES[args.precision], args.compile)
    for _ in range(args.warm):
        float(step())
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(args.steps):
        loss = step()
    float(loss)  # waits for the device
    seconds = (time.perf_counter() - began) / args.steps
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"images_per_s": args.batch / seconds, "peak_gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="B", choices=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--together", action="store_true", help="all variants in one process: no time is lost")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    if args.precision == "auto":
        args.precision = fastest(torch.device(args.device)).name
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in args.variants}
    if args.together:
        for variant in list(args.variants) * args.rounds:
            args.one = variant
            found[variant].append(measure(args))
            print(variant, found[variant][-1], flush=True)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
        report(args, found)
        return
    for _ in range(args.rounds):
        for variant in args.variants:
            out = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--precision", args.precision, "--one", variant],
                capture_output=True,
                text=True,
            )
            if out.returncode:
                print(f"{variant}: failed: {out.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found[variant].append(json.loads(out.stdout.splitlines()[-1]))
            print(variant, found[variant][-1], flush=True)
    report(args, {variant: results for variant, results in found.items() if results})


def report(args: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    how = f"batch {args.batch}, {args.precision}{', compiled' if args.compile else ''}"
    threads = "" if args.device == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"ViT-{args.size}/16, {CLASSES:,} classes, {how}, {where(torch.device(args.device))}{threads}")
    speed = {v: statistics.median(r["images_per_s"] for r in results) for v, results in found.items()}
    memory = {v: max(r["peak_gb"] for r in results) for v, results in found.items()}
    if "low-160" in speed and "catlip" in speed:
        speed["budget recipe"] = 1 / (0.9 / speed["low-160"] + 0.1 / speed["catlip"])
        memory["budget recipe"] = memory["catlip"]
    base = speed.get("contrastive")
    for variant, rate in speed.items():
        spread = [r["images_per_s"] for r in found.get(variant, [])]
        between = f"{min(spread):,.1f} to {max(spread):,.1f}" if spread else "from the two above"
        ratio = f"{rate / base:5.2f} x" if base else ""
        print(
            f"  {variant:<14} {rate:9,.1f} images/s ({between})  {ratio}  peak {memory[variant]:6.2f} GB"
            f"{_mfu(args, variant, rate)}",
            flush=True,
        )


def _mfu(args: argparse.Namespace, variant: str, rate: float) -> str:
    """Share of the device's peak, for catlip's full step."""
    from catlip.training.hardware import device_facts, train_flops

    peak = device_facts(torch.cuda.get_device_name())[0] if args.device == "cuda" else 0.0
    if not peak or variant not in ("catlip", "dense"):
        return ""
    return f"  MFU {rate * train_flops(MODELS[args.size][0], 224, CLASSES) / peak:.1%}"


if __name__ == "__main__":
    main()
