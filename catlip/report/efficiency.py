"""Accuracy against the number of labels, as a page. The verbs `probe` and `finetune`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from catlip import page
from catlip.errors import UsageError
from catlip.evaluation.probe import ProbeConfig as ProbeConfig
from catlip.evaluation.probe import numbers_in, spread
from catlip.evaluation.probe import probe as measure
from catlip.notices import say
from catlip.page import Series, chart
from catlip.tasks.finetune import FinetuneConfig as FinetuneConfig
from catlip.tasks.finetune import curve_key
from catlip.tasks.finetune import finetune as fine_tune
from catlip.training.log import append_json, table

# What a list of accuracies in a point of a curve is called, for each task whose results have curves.
NAMES = {"random": "random start", "transfer": "Transfer Init", "knn": "nearest neighbours"}


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracies, in percent, after learning from so many pictures; one a random part of the training set."""

    told: str
    pictures: int
    values: tuple[float, ...]

    @property
    def spread(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else 0.0


def probe(cfg: ProbeConfig) -> dict[str, Any]:
    """Measure; with several amounts of labels, also write the page. Raises UsageError as `measure` does."""
    result = measure(cfg)
    if len(result.get("curve", [])) > 1:
        folder = Path(cfg.run) if cfg.run and Path(cfg.run).is_dir() else Path()
        out = Path(cfg.out) if cfg.out else folder / "efficiency.html"
        write_page(out, [result])
        say(f"{out}: the curve")
    return result


def finetune(cfg: FinetuneConfig) -> dict[str, Any] | None:
    """Fine-tune; with --fractions or --seeds many times, below --out, and draw the curve beside the probe's, if the run
    has one on the same data. What is finished with these settings and sets is not done again, results of others are
    left alone. Raises UsageError as `fine_tune` does."""
    if not cfg.fractions and cfg.seeds == 1:
        return fine_tune(cfg)
    if cfg.seeds < 1:
        raise UsageError(f"`seeds` {cfg.seeds}: one or more")
    shares = numbers_in(cfg.fractions, "`fractions`", float) if cfg.fractions else [cfg.fraction]
    if not all(0 < share <= 1 for share in shares):
        raise UsageError(f"`fractions` {cfg.fractions or cfg.fraction}: shares of the training set, above 0, at most 1")
    curve, last, key = [], {}, curve_key(cfg)
    if others := [file for file in Path(cfg.out).glob("*-seed*/results.jsonl") if file.parent.name[-8:] != key]:
        say(f"{cfg.out}: {len(others)} results of other settings or sets are left there and not counted")
    for share in shares:
        entry: dict[str, Any] = {"told": f"{100 * share:g} %", "share": share}
        for init in ("random", "transfer") if cfg.init == "transfer" else ("random",):
            for seed in range(cfg.seed, cfg.seed + cfg.seeds):
                one = replace(cfg, fraction=share, fractions="", seeds=1, seed=seed, init=init)
                found = _once(replace(one, out=f"{cfg.out}/{init}-{share:g}-seed{seed}-{key}"))
                if found is None:
                    return None
                entry.setdefault(init, []).append(found["mAP" if "mAP" in found else "top1"])
                entry["pictures"], last = found["train"], found
        curve.append(entry)
    result = {**{k: last[k] for k in ("task", "classes", "test", "image_size", "data", "encoder")}, "curve": curve}
    append_json(Path(cfg.out) / "results.jsonl", result)
    out = Path(cfg.out) / "efficiency.html"
    write_page(out, [*_probed(cfg), result])
    rows = {
        f"{e['told']}, {e['pictures']:,}": "   ".join(
            f"{told} {spread(e[init])}" for init, told in NAMES.items() if init in e
        )
        for e in curve
    }
    say(table(rows, f"{cfg.out}: fine-tuned"))
    say(f"{out}: the curve")
    return result


def _once(cfg: FinetuneConfig) -> dict[str, Any] | None:
    """A run's result; of one that is finished, what it wrote."""
    done = Path(cfg.out) / "results.jsonl"
    return json.loads(done.read_text(encoding="utf-8").splitlines()[-1]) if done.is_file() else fine_tune(cfg)


def _probed(cfg: FinetuneConfig) -> list[dict[str, Any]]:
    """The newest curve of `catlip probe` on the same data."""
    file = Path(cfg.run) / "results.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines]
    same = [f for f in found if f["task"] == "probe" and f.get("curve") and f["data"] == [cfg.train, cfg.test]]
    return same[-1:]


def curves(results: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """Series by name, from results with a "curve": [{"told", "pictures", SERIES: [accuracies], ...}, ...].

    Of several tasks ("probe", "finetune"), each series says which it is of.
    """
    found: dict[str, list[Point]] = {}
    tasks = {result["task"] for result in results}
    for result in results:
        for entry in result["curve"]:
            for key, values in entry.items():
                if isinstance(values, list):
                    series = NAMES[key] if key in NAMES else str(key)
                    name = f"{result['task']}, {series}" if len(tasks) > 1 else series
                    found.setdefault(name, []).append(Point(entry["told"], entry["pictures"], tuple(values)))
    return {name: sorted(points, key=lambda point: point.pictures) for name, points in found.items()}


def write_page(out: Path, results: Sequence[dict[str, Any]]) -> None:
    """One figure and its table, of results on the same data."""
    first, found = results[0], curves(results)
    series = [
        Series(
            name,
            [(point.pictures, mean(point.values)) for point in points],
            spread=tuple(point.spread for point in points),
        )
        for name, points in found.items()
    ]
    amounts = {point.pictures: point.told for points in found.values() for point in points}
    at = {name: {point.pictures: point for point in points} for name, points in found.items()}
    rows = [
        [f"{told} ({pictures:,})", *(_cell(at[name].get(pictures)) for name in found)]
        for pictures, told in sorted(amounts.items())
    ]
    times = max(len(point.values) for points in found.values() for point in points)
    note = f"Chance is {100 / first['classes']:.1f} %. " + (
        f"Mean and deviation of {times} random parts of the training set; a larger part contains the smaller ones, and "
        "all series have the same parts."
        if times > 1
        else ""
    )
    parts = [
        page.paragraph(f"{first['encoder']}, {first['image_size']} px, {first['classes']} classes", soft=True),
        chart(series, "labelled pictures", "accuracy, %", log_x=True),
        page.table(["labels", *found], rows),
        page.paragraph(note, soft=True),
    ]
    if "names" in first:
        parts.append(
            page.folded(
                "Which rows the classes start from",
                page.table(["class", "row"], [[name, told] for name, told in first["names"].items()]),
            )
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    page.write(out, page.page("Accuracy against labels", *parts))


def _cell(point: Point | None) -> str:
    if point is None:
        return "-"
    return f"{mean(point.values):.1f}" + (f" ± {point.spread:.1f}" if len(point.values) > 1 else "")
