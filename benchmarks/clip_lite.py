"""What holds CLIP-Lite back: the number of negatives, the optimiser, the length?

    uv run benchmarks/clip_lite.py ../shared/data runs/clip-lite
        resnet10t at 32 px, batch 64, 24,576 samples, frozen text, three seeds: a minute or two a run on one core
        (OMP_NUM_THREADS=1); stop it and give it again.
    uv run benchmarks/clip_lite.py ../shared/data runs/clip-lite --samples 98304 --variants clip one
        Four times as long.

Variants: `clip` (InfoNCE), and CLIP-Lite with `one` negative a picture (the paper), `four`, or `all` of the batch, by
AdamW; `sgd-RATE`: one negative by the released code's optimiser: SGD with momentum .9 and look-ahead (5 steps, half of
the way), weight decay 1e-4, gradients clipped at norm 10, RATE for the CNN and RATE / 200 for all else. Data, judges
and units are those of `objectives.py`.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from objectives import comparison, prepare, sentences_of
from timm.optim.lookahead import Lookahead
from torch import nn

from catlip.objectives.clip import Clip
from catlip.objectives.clip_lite import ClipLite
from catlip.recipes import compare as comparing
from catlip.recipes import load_recipe
from catlip.training import state
from catlip.training.optim import OptimConfig

RATE = 1e-3  # of AdamW: RESULTS.md, "CLIP-Lite against batch size"
ALL = ("clip", "one", "four", "all", "sgd-0.02", "sgd-0.06", "sgd-0.2")


def released_optimizer(task: nn.Module, cfg: OptimConfig) -> list[Any]:
    """SGD and look-ahead; the CNN at cfg.lr, all else at 1e-3 / .2 of that."""
    cnn = {id(p) for p in task.encoder.backbone.parameters()}  # type: ignore[union-attr]
    groups = [
        {"params": [p for p in task.parameters() if p.requires_grad and (id(p) in cnn) is inside], "lr_scale": scale}
        for inside, scale in ((True, 1.0), (False, 1e-3 / 0.2))
    ]
    return [Lookahead(torch.optim.SGD(groups, lr=cfg.lr, momentum=0.9, weight_decay=cfg.weight_decay), 0.5, 5)]


def objective_of(variant: str) -> Any:
    if variant == "clip":
        return Clip(text="frozen")
    return ClipLite(text="frozen", negatives={"four": 4, "all": 0}.get(variant, 1))


def run(config: Any, variant: str, seed: int, key: str) -> dict[str, Any]:
    """The record of a run, from its folder if it is there."""
    settings = replace(comparing.settings_of(config, "clip_lite_frozen", RATE), seed=seed)
    settings.objective = objective_of(variant)
    ordinary = state.make_optimizers
    if variant.startswith("sgd"):
        settings.optim = replace(settings.optim, lr=float(variant.partition("-")[2]), weight_decay=1e-4, clip=10.0)
        state.make_optimizers = released_optimizer
    try:
        return comparing.run(config, "clip_lite_frozen", settings, Path(config.out) / variant, key)
    finally:
        state.make_optimizers = ordinary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/, cifar10/ and coco128/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", nargs="+", default=ALL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=0, help="of a run; 0: 24,576")
    args = parser.parse_args()
    name = f"{Path(__file__).with_name('objectives.py')}:small"
    shards, vocab = prepare(args.data, args.out)
    kept = sentences_of(args.data, args.out, ("clip_lite_frozen",))
    samples = args.samples or load_recipe(name).samples
    make = partial(comparison, args.data, args.out, shards, vocab, objectives=("clip_lite_frozen",))
    config = make(recipe=name, samples=samples, sentence_encoder=kept)
    key = comparing.key_of_comparison(config)
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
    for seed in range(args.seeds):
        for variant in args.variants:
            found[variant].append(run(config, variant, seed, key))
    for variant, records in found.items():
        judges = {name: [record["judges"][name]["value"] for record in records] for name in records[0]["judges"]}
        means = [statistics.mean(values) for values in zip(*judges.values(), strict=True)]
        told = {**judges, "mean": means}
        told["seconds"] = [record["seconds"] for record in records]
        spread = {what: statistics.stdev(some) if len(some) > 1 else 0.0 for what, some in told.items()}
        print(
            f"{variant:<9}",
            *(f"{what} {statistics.mean(some):.2f} ± {spread[what]:.2f}" for what, some in told.items()),
        )
        print(" " * 9, {r: records[0].get(r) for r in ("retrieve", "zero_shot")})


if __name__ == "__main__":
    main()
