"""Does naming nouns keep improving where contrast flattens? Pictures, model and length, each varied alone.

    uv run benchmarks/scaling.py ../shared/data runs/scaling --processes 2
        Two CPU cores (OMP_NUM_THREADS=1), resnet10t and its larger kin at 64 px: hours; stop it and give it again.
    uv run benchmarks/scaling.py ../shared/data runs/scaling-small --small --processes 2
        The same at 32 px with a quarter of the samples.
    uv run benchmarks/scaling.py ../shared/data runs/scaling-gpu --unsaved --processes 6 --workers 3 --seeds 3
        The runs of the first line on one GPU (benchmarks/gpu.sh): a quarter of a minute each.
    uv run benchmarks/scaling.py ../shared/data runs/scaling-vit --gpu --processes 3 --axes pictures
        ViT-Ti, -S and -B/16 at 112 px on one GPU.
    uv run benchmarks/scaling.py ../shared/data runs/scaling-tiny --tiny
        A toy: does the script work?

Axes: `pictures` 750 to 6,000 of Flickr8k, each half of the next, with the same number of samples seen (fewer pictures,
more epochs) and one vocabulary, counted on all, from which the judge of nouns has its classes; `models` three sizes of
one family on all pictures; `epochs` a third and three times the length on all pictures. Judges and units are those of
`objectives.py`. Writes scaling.json and scaling.html, with a line score = a + b log2(x) for each objective and the
error of b.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from objectives import comparison, prepare, sentences_of, write_tar
from pool import keep_results, run_all

from catlip import page
from catlip.atomic import write_text
from catlip.data.open import open_dataset
from catlip.data.subsets import shuffled
from catlip.recipes import compare as comparing
from catlip.recipes import load_recipe
from catlip.report.comparison import ComparedRun, gain_over

AXES = ("pictures", "models", "epochs")
PICTURES = (750, 1500, 3000, 6000)
MODELS = {
    "cpu": ("resnet10t", "resnet14t", "resnet26t"),
    "gpu": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
    "tiny": ("test_vit", "test_vit2", "test_vit3"),
}
LENGTHS = (1 / 3, 1.0, 3.0)  # of the recipe's
# Of an objective where it is not the recipe's (RESULTS.md).
RATES = {"cpu": {"clip": 1e-3, "clip_frozen": 1e-3}, "gpu": {}, "tiny": {}}


@dataclass(frozen=True, slots=True)
class Cell:
    """A run, and its place on an axis."""

    axis: str
    x: float  # pictures, millions of parameters, or epochs
    objective: str
    pictures: int
    backbone: str
    samples: int
    seed: int


def parameters(backbone: str) -> float:
    """Millions, without a head."""
    import timm
    import torch

    with torch.device("meta"):
        return round(sum(p.numel() for p in timm.create_model(backbone, num_classes=0).parameters()) / 1e6, 2)


def cells(
    kind: str, axes: Sequence[str], objectives: Sequence[str], seeds: int, samples: int, lengths: Sequence[float]
) -> list[Cell]:
    """In an order such that a stopped benchmark has all objectives equally often; the pictures first."""
    small, base = MODELS[kind][0], MODELS[kind][1 if kind == "gpu" else 0]
    all_of_them = PICTURES[-1]
    places: list[tuple[str, float, int, str, float]] = []
    if "pictures" in axes:
        places += [("pictures", n, n, base, 1.0) for n in reversed(PICTURES)]
    if "models" in axes:
        places += [("models", parameters(name), all_of_them, name, 1.0) for name in MODELS[kind]]
    if "epochs" in axes:
        places += [
            ("epochs", round(samples * share / all_of_them, 2), all_of_them, small if kind == "cpu" else base, share)
            for share in lengths
        ]
    return [
        Cell(axis, x, objective, pictures, backbone, round(samples * share), seed)
        for seed in range(seeds)
        for axis, x, pictures, backbone, share in places
        for objective in objectives
    ]


def pictures_of(shards: Path, out: Path, count: int) -> Path:
    """A tar of so many of the packed pictures, made if it is not there; more contain fewer."""
    path = out / f"pictures-{count}.tar"
    if path.exists():
        return path
    dataset = open_dataset(str(shards))
    samples = map(dataset.__getitem__, sorted(shuffled(len(dataset), 0)[:count].tolist()))
    write_tar(path, ((sample.key.split("/")[-1], bytes(sample.image), sample.captions) for sample in samples))
    return path


def run_cell(config: Any, cell: Cell, lr: float | None) -> dict[str, Any]:
    """The record of a run, from its folder if it is there."""
    key = comparing.key_of_comparison(config)
    recipe = comparing.settings_of(config, cell.objective, lr)
    settings = replace(recipe, backbone=cell.backbone, seed=cell.seed)
    folder = Path(config.out) / f"{cell.backbone}-{cell.pictures}"
    return comparing.run(config, cell.objective, settings, folder, key)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """(a, b, standard error of b) of score = a + b log2(x) by least squares; None for fewer than three points."""
    x, y = np.log2([p[0] for p in points]), np.array([p[1] for p in points])
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    b = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    a = float(y.mean() - b * x.mean())
    rest = float(np.square(y - a - b * x).sum()) / (len(x) - 2)
    return a, b, (rest / float(np.square(x - x.mean()).sum())) ** 0.5


def report(out: Path, found: Sequence[tuple[Cell, dict[str, Any]]]) -> None:
    """scaling.json and scaling.html. Gains are over the first objective."""
    parts, fits = [], []
    for axis in dict.fromkeys(cell.axis for cell, _ in found):
        mine = [(cell, record) for cell, record in found if cell.axis == axis]
        places = sorted({cell.x for cell, _ in mine})
        objectives, judges = list(dict.fromkeys(cell.objective for cell, _ in mine)), list(values(mine[0][1]))
        series, rows, slopes = [], [], []
        for objective in objectives:
            at = {x: [r for cell, r in mine if (cell.objective, cell.x) == (objective, x)] for x in places}
            at = {x: some for x, some in at.items() if some}
            series.append(curve(objective, at))
            rows += [row_of(objective, x, some, [r for c, r in mine if (c.objective, c.x) == (objectives[0], x)])
                     for x, some in at.items()]  # fmt: skip
            lines = {j: line([(x, values(r)[j]) for x, some in at.items() for r in some]) for j in judges}
            slopes.append([objective, *(f"{fit[1]:+.2f} ± {fit[2]:.2f}" if fit else "" for fit in lines.values())])
            fits += [
                {"axis": axis, "objective": objective, "judge": judge, "a": fit[0], "b": fit[1], "error": fit[2]}
                for judge, fit in lines.items()
                if fit
            ]
        label = {"pictures": "pictures", "models": "millions of parameters", "epochs": "epochs"}[axis]
        head = ["objective", label, *judges, f"gain over {objectives[0]}", "seconds", "seeds"]
        parts += [
            page.heading(f"Score against {label}"),
            page.chart(series, label, "mean over the judges, %", log_x=True),
            page.table(f"Scores by {label}", head, rows),
            page.heading(f"Points a doubling of {label}"),
            page.table(f"Slopes over {label}", ["objective", *judges], slopes),
        ]
    told = [{**cell_json(cell), "record": {**record, "judges": values(record)}} for cell, record in found]
    write_text(out / "scaling.json", json.dumps({"fits": fits, "cells": told}, indent=1) + "\n")
    page.write(out / "scaling.html", page.page("Scaling", *parts))
    for fit in fits:
        slope = f"{fit['b']:+.2f} ± {fit['error']:.2f} points a doubling"
        print(f"{fit['axis']:<9}{fit['objective']:<20}{fit['judge']:<24}{slope}")
    print(f"{out / 'scaling.html'}: the page")


def curve(objective: str, at: dict[float, list[dict[str, Any]]]) -> page.Series:
    """Means over seeds, and their deviations as bars."""
    scores = {x: [values(record)["mean"] for record in some] for x, some in at.items()}
    spread = [float(np.std(some, ddof=1)) if len(some) > 1 else 0.0 for some in scores.values()]
    return page.Series(objective, [(x, float(np.mean(some))) for x, some in scores.items()], spread=spread)


def row_of(objective: str, x: float, runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[str]:
    """Means and deviations over seeds, and the gain over the base's runs, paired."""
    numbers = [values(record) for record in runs]
    cells = []
    for judge in numbers[0]:
        some = [one[judge] for one in numbers]
        cells.append(f"{np.mean(some):.1f}" + (f" ± {np.std(some, ddof=1):.1f}" if len(some) > 1 else ""))
    gain = gain_over([*map(compared, base)], [*map(compared, runs)]) if runs != base else ""
    seconds = f"{np.mean([record['seconds'] for record in runs]):.0f}"
    return [objective, f"{x:g}", *cells, str(gain or ""), seconds, str(len(runs))]


def compared(record: dict[str, Any]) -> ComparedRun:
    return ComparedRun("runs", "", 0.0, 0, 0, record["seed"], record["judges"])


def values(record: dict[str, Any]) -> dict[str, float]:
    """The mean of the judges, and what each says."""
    found = {name: judge["value"] for name, judge in record["judges"].items()}
    return {"mean": float(np.mean(list(found.values()))), **found}


def cell_json(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in Cell.__slots__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with flickr8k/, cifar10/ and coco128/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--axes", nargs="+", default=AXES, choices=AXES)
    parser.add_argument("--objectives", nargs="+", default=("synsets", "clip"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="of a run of the recipe's length; 0: the recipe's")
    parser.add_argument("--small", action="store_true", help="32 px and a quarter of the samples")
    parser.add_argument("--unsaved", action="store_true", help="no checkpoints: where runs are short")
    parser.add_argument("--gpu", action="store_true", help="ViTs at 112 px")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--lengths", nargs="+", type=float, default=LENGTHS, help="shares of the recipe's length")
    parser.add_argument("--workers", type=int, default=0, help="of decoding, for each run; 0: the recipe's")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no run is begun")
    parser.add_argument("--results", type=Path, help="tar of the numbers, written anew after each run")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    kind = "tiny" if args.tiny else "gpu" if args.gpu else "cpu"
    ours = "small" if args.small else "unsaved" if args.unsaved else ""
    recipe = {"tiny": "tiny", "gpu": "vit_s16", "cpu": ours}[kind]
    name = f"{Path(__file__).with_name('objectives.py')}:{recipe}" if recipe else "flickr8k_cpu"
    shards, vocab = prepare(args.data, args.out)
    kept = sentences_of(args.data, args.out, args.objectives)
    samples = args.samples or load_recipe(name).samples
    plan = cells(kind, args.axes, args.objectives, args.seeds, samples, args.lengths)
    tasks: dict[Cell, tuple[Any, ...]] = {}  # a run that lies on two axes is one task
    for cell in plan:
        part = pictures_of(shards, args.out, cell.pictures)
        config = comparison(
            args.data,
            args.out,
            part,
            vocab,
            objectives=(cell.objective,),
            recipe=name,
            samples=cell.samples,
            workers=args.workers,
        )
        task = (replace(config, retrieve="", classes="", sentence_encoder=kept), cell, RATES[kind].get(cell.objective))
        tasks.setdefault(replace(cell, axis="", x=0.0), task)
    ended = run_all(run_cell, list(tasks.values()), args.processes, until, lambda: keep_results(args.out, args.results))
    records = {list(tasks)[number]: record for number, record in ended.items()}
    places = [(cell, replace(cell, axis="", x=0.0)) for cell in plan]
    report(args.out, [(cell, records[run]) for cell, run in places if run in records])
    keep_results(args.out, args.results)


if __name__ == "__main__":
    main()
