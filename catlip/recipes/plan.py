"""`catlip plan`: memory, speed, hours and cost of a recipe on other hardware, and where each number comes from.

Speed is measured (benchmarks/gpu.sh writes what it finds into measured.json) or follows from the FLOPs of the model
and an assumed share of the device's peak; the output says which.
"""

import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import timm
import torch

from catlip.data.steps import Phase, Steps
from catlip.errors import UsageError
from catlip.notices import say
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.hardware import DEVICES, device_facts, train_flops

ASSUMED_MFU = 0.4  # share of peak that a compiled ViT reaches on one machine, where nothing was measured


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Estimate a run before paying for it."""

    recipe: str  # a recipe's name
    gpus: str = "8xH100"  # how many of what
    price: float = 0.0  # a GPU-hour, in any currency
    classes: int = 24_320  # size of the vocabulary
    samples: int = 0  # budget; 0: the recipe's own
    mfu: float = 0.0  # share of peak to assume where nothing was measured; 0: 0.4


def plan(config: PlanConfig) -> dict[str, float]:
    """Estimates; prints them with their sources. Raises UsageError for an unknown recipe or device."""
    from catlip.recipes import load_recipe

    recipe = load_recipe(config.recipe)
    if min(config.samples, config.classes, config.price, config.mfu) < 0 or config.mfu > 1:
        raise UsageError("`samples`, `classes` and `price` are 0 or more, `mfu` is a share between 0 and 1")
    match = re.fullmatch(r"(\d+)\s*x\s*(.+)", config.gpus.strip())
    count, name = (int(match[1]), match[2]) if match else (1, config.gpus.strip())
    peak, room = device_facts(name)
    if not peak or not count:
        raise UsageError(f"`gpus` {config.gpus!r}: give it as 8xH100; known are {', '.join(DEVICES)}")
    samples = config.samples or recipe.samples
    if not samples:
        raise UsageError(f"recipe {config.recipe} has its budget in epochs or hours; give `samples`")
    flops = sum(p.share * train_flops(recipe.backbone, p.size, config.classes, p.keep) for p in _phases(recipe))
    measured = _measured(recipe.backbone, recipe.image_size, name)
    mfu = config.mfu or (measured["mfu"] if measured else ASSUMED_MFU)
    where = (
        "given with `mfu`"
        if config.mfu
        else f"measured on one {measured['device']}, {measured['images_per_s']:,.0f} images/s"
        if measured
        else "an assumption: nothing was measured for this backbone and device"
    )
    speed = count * peak * mfu / flops
    hours = samples / speed / 3600
    memory = _memory_gb(recipe, config.classes, count)
    result = {"images_per_s": speed, "hours": hours, "gpu_hours": hours * count, "memory_gb": memory}
    lines = [
        f"{config.recipe}: {recipe.backbone} at {recipe.image_size} px, {samples:,} samples, batch "
        f"{recipe.batch_size:,} ({recipe.batch_size / count:,.0f} a GPU) on {config.gpus}",
        f"  FLOPs a picture  {flops / 1e9:,.1f} G, forward and backward, counted; mean over the run's sizes",
        f"  MFU              {mfu:.0%} ({where})",
        f"  images/s         {speed:,.0f}",
        f"  time             {hours:,.1f} hours, {hours * count:,.0f} GPU-hours",
        f"  memory a GPU     {memory:,.0f} GB estimated (weights, AdamW, average, activations), of {room:,.0f}"
        + ("; accumulation or `checkpointing` will be needed" if memory > 0.9 * room else ""),
    ]
    if config.price:
        result["cost"] = hours * count * config.price
        lines.append(f"  cost             {result['cost']:,.0f} at {config.price:g} a GPU-hour")
    say("\n".join(lines))
    return result


def _phases(recipe: PretrainConfig) -> list[Phase]:
    """The kinds of steps that the run has: what it costs is averaged over them, as `--hours` averages their times."""
    return Steps(
        recipe.curriculum, budget=1, batch_size=recipe.batch_size, image_size=recipe.image_size, seed=recipe.seed
    ).phases()


def _memory_gb(recipe: PretrainConfig, classes: int, count: int) -> float:
    """Weights, gradient, two moments and the average in fp32; activations of a ViT in bf16, of the largest step.

    Activations: 34 bytes a token, layer and channel (Korthikanti et al. 2022, eq. 2, without the attention map, which
    fused attention does not keep); with checkpointing one block input a layer. count: devices that share a step.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(recipe.backbone, num_classes=classes)
    weights = sum(p.numel() for p in model.parameters()) * 4 * (4 + bool(recipe.loop.ema))
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        return weights / 1e9
    patch = model.patch_embed.patch_size[0]
    tokens = max(p.batch * (p.size / patch) ** 2 * p.keep for p in _phases(recipe)) / count
    a_block = tokens * model.embed_dim * 34
    if recipe.loop.checkpointing:  # the input of every block, and the block that is being computed again
        return (weights + tokens * model.embed_dim * 2 * len(blocks) + a_block) / 1e9
    return (weights + a_block * len(blocks)) / 1e9


def _measured(backbone: str, size: int, device: str) -> dict[str, Any] | None:
    """The newest measurement of this backbone on this device that came with catlip."""
    file = resources.files("catlip.recipes").joinpath("measured.json")
    entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    fitting = [
        e
        for e in entries
        if e["backbone"] == backbone and e["image_size"] == size and device.upper() in e["device"].upper()
    ]
    return fitting[-1] if fitting else None
