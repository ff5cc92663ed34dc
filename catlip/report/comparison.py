"""Objectives side by side: what they cost and what their encoders can do, on one page."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catlip import page
from catlip.page import Series, chart

FILE = "compare.html"


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A finished run of the comparison."""

    kind: str  # runs, equal_time or batch_sizes
    objective: str
    lr: float
    batch_size: int
    samples: int
    seed: int
    judges: dict[str, dict[str, Any]]  # name -> {"measure", "value", "each", "knn"}, in percent (`Verdict`)
    retrieve: dict[str, Any] = field(default_factory=dict)  # route -> recalls in percent
    zero_shot: dict[str, float] = field(default_factory=dict)  # route -> top-1 in percent
    seconds: float = 0.0  # that the training took
    commit: str = ""
    machine: str = ""

    @property
    def score(self) -> float:
        """The mean over the judges."""
        return statistics.mean(judge["value"] for judge in self.judges.values())


@dataclass(frozen=True, slots=True)
class Gain:
    """Points by which one objective is better than another, by the mean over the judges."""

    points: float
    error: float  # standard error
    seeds: int  # that both have

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.error:.2f}"


@dataclass(frozen=True, slots=True)
class Summary:
    """Runs that differ in nothing but the seed."""

    kind: str
    objective: str
    lr: float
    batch_size: int
    samples: int
    seeds: tuple[int, ...]
    score: float  # mean over judges and seeds
    spread: float  # deviation over seeds, n - 1; 0 of one run
    judges: dict[str, float]  # name -> mean over seeds
    measures: dict[str, str]  # name -> top-1, or mAP
    knn: float | None  # mean over seeds and over the judges that have one
    seconds: float  # samples at the measured speed
    to_image: float | None  # text to image R@10, of the best route
    route: str
    zero_shot: float | None  # top-1, of the best route
    gain: Gain | None  # over the first objective, where they have seeds in common

    @property
    def told(self) -> str:
        """The score, for people."""
        return f"{self.score:.2f}" + (f" ± {self.spread:.2f}" if len(self.seeds) > 1 else "")

    def card(self) -> dict[str, Any]:
        return asdict(self)


def summarise(runs: Sequence[ComparedRun], speeds: dict[str, float], first: str) -> list[Summary]:
    """One line an objective, budget, batch size and learning rate; the best mean over the judges comes first.

    speeds: images/s, of what is trained. first: the objective that the others' gains are over.
    """
    groups: dict[tuple[str, str, float, int, int], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.kind, run.objective, run.lr, run.batch_size, run.samples), []).append(run)
    bases = [some for some in groups.values() if some[0].objective == first and some[0].kind == "runs"]
    base = max(bases, key=len, default=[])
    found = []
    for some in groups.values():
        compared = some[0].kind != "batch_sizes" and some is not base
        speed = speeds.get(some[0].objective, math.inf)
        found.append(_summary(some, speed, gain_over(base, some) if compared else None))
    return sorted(found, key=lambda s: (s.kind, -s.score))


def gain_over(base: Sequence[ComparedRun], runs: Sequence[ComparedRun]) -> Gain | None:
    """The mean difference over judges and over the seeds that both have; None if there are none.

    Of each judge the differences are taken test image by test image, or class by class. The error's square is the sum
    of two: of the mean over these things, and, of several seeds, of the mean over seeds. What a single run's luck on a
    single image adds is in both, so it is rather too large.
    """
    mine, theirs = ({run.seed: run for run in some} for some in (runs, base))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    names = [name for name in mine[seeds[0]].judges if all(name in theirs[seed].judges for seed in seeds)]
    # Of each judge [seeds, images or classes].
    differences = [
        np.array([mine[s].judges[name]["each"] for s in seeds]) - [theirs[s].judges[name]["each"] for s in seeds]
        for name in names
    ]
    by_thing = sum(_squared_error(one.mean(0)) for one in differences) / len(names) ** 2
    by_seed = _squared_error(np.mean([one.mean(1) for one in differences], axis=0))
    points = float(np.mean([one.mean() for one in differences]))
    return Gain(round(points, 3), round(float(by_thing + by_seed) ** 0.5, 3), len(seeds))


def _squared_error(values: np.ndarray) -> float:
    """Of their mean; 0 of one."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _summary(runs: Sequence[ComparedRun], speed: float, gain: Gain | None) -> Summary:
    first, scores = runs[0], [run.score for run in runs]
    routes = [route for route in ("text", "head") if all(route in run.retrieve for run in runs)]
    recalls = {r: statistics.mean(run.retrieve[r]["text_to_image"]["r@10"] for run in runs) for r in routes}
    route = max(routes, key=lambda r: recalls[r], default="")
    nearest = [judge["knn"] for run in runs for judge in run.judges.values() if judge.get("knn") is not None]
    zero_shot = [max(run.zero_shot.values()) for run in runs if run.zero_shot]
    return Summary(
        kind=first.kind,
        objective=first.objective,
        lr=first.lr,
        batch_size=first.batch_size,
        samples=first.samples,
        seeds=tuple(sorted(run.seed for run in runs)),
        score=statistics.mean(scores),
        spread=statistics.stdev(scores) if len(runs) > 1 else 0.0,
        judges={name: statistics.mean(run.judges[name]["value"] for run in runs) for name in first.judges},
        measures={name: judge["measure"] for name, judge in first.judges.items()},
        knn=statistics.mean(nearest) if nearest else None,
        seconds=first.samples / speed,
        to_image=recalls.get(route),
        route=route,
        zero_shot=statistics.mean(zero_shot) if zero_shot else None,
        gain=gain,
    )


NOTE = (
    "In percent. Mean: over the judges, ± the deviation over seeds. Gain: over {first}, in points of the mean, ± its "
    "standard error, from differences test image by test image (class by class, of mean average precision) and seed by "
    "seed. kNN: 20 nearest. R@10: text to picture, among the pictures given; zero-shot: by class names alone; both by "
    "the better route. Seconds: samples at the speed measured in turns. Start: the encoder that all began with."
)


def write_report(out: Path, runs: Sequence[ComparedRun], summaries: Sequence[Summary], about: str, first: str) -> Path:
    """compare.html in `out`."""
    parts = [page.paragraph(f"{about}. Same encoder, data, order of samples and augmentation for all.", soft=True)]
    equal = [s for s in summaries if s.kind == "runs"]
    own = [s for s in equal if s.objective == first]
    timed = own + [s for s in summaries if s.kind == "equal_time"]
    if equal:
        parts += [*_table("The same number of samples", equal), page.paragraph(NOTE.format(first=first), soft=True)]
    if len(timed) > len(own):
        parts += _table("The same time", sorted(timed, key=lambda s: -s.score))
    if equal:
        parts += [page.heading("Score against cost"), _cost(runs, summaries)]
    if sizes := [s for s in summaries if s.kind == "batch_sizes"]:
        parts += [page.heading("Score against batch size"), _batch_sizes(sizes)]
    parts.append(page.paragraph(_provenance(runs), soft=True))
    return page.write(out / FILE, page.page("Objectives compared", *parts))


def _table(title: str, summaries: Sequence[Summary]) -> list[page.Html]:
    """One line a summary, a column a judge."""
    measures = summaries[0].measures
    header = ["objective", "mean", "gain", *(f"{name}, {measure}" for name, measure in measures.items())]
    return [page.heading(title), page.table(title, [*header, *COLUMNS], [_row(s) for s in summaries])]


COLUMNS = ["kNN", "R@10", "zero-shot", "seconds", "samples", "learning rate", "seeds"]


def _row(s: Summary) -> list[str]:
    return [
        s.objective,
        s.told,
        "-" if s.gain is None else str(s.gain),
        *(f"{value:.2f}" for value in s.judges.values()),
        _number(s.knn),
        "-" if s.to_image is None else f"{s.to_image:.1f} ({s.route})",
        _number(s.zero_shot),
        f"{s.seconds:,.0f}",
        f"{s.samples:,}",
        f"{s.lr:g}",
        ", ".join(map(str, s.seeds)),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _provenance(runs: Sequence[ComparedRun]) -> str:
    """Where the numbers are from."""
    machines = ", ".join(sorted({run.machine for run in runs if run.machine})) or "unknown"
    commits = ", ".join(sorted({run.commit for run in runs if run.commit})) or "unknown"
    return f"{len(runs)} runs on: {machines}; commit: {commits}."


def _cost(runs: Sequence[ComparedRun], summaries: Sequence[Summary]) -> page.Html:
    """A dot a run; seconds follow from the measured speed, so runs of an objective stand above one another."""
    seconds = {(s.kind, s.objective, s.samples): s.seconds for s in summaries}
    series = []
    for name in dict.fromkeys(s.objective for s in summaries):
        some = [run for run in runs if run.objective == name and run.kind != "batch_sizes"]
        points = [(seconds[run.kind, name, run.samples], run.score) for run in some]
        titles = tuple(f"{name}, seed {run.seed}: {run.score:.2f}" for run in some)
        series.append(Series(name, points, dots=True, titles=titles))
    return chart(series, "seconds of training", "mean over the judges, %")


def _batch_sizes(summaries: Sequence[Summary]) -> page.Html:
    names = dict.fromkeys(s.objective for s in summaries)
    series = [
        Series(name, sorted((float(s.batch_size), s.score) for s in summaries if s.objective == name)) for name in names
    ]
    return chart(series, "batch size", "mean over the judges, %", log_x=True)
