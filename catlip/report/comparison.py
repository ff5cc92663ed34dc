"""Objectives side by side: what they cost and what their encoders can do, on one page."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    linear_probe: float  # accuracy in percent
    knn: float
    retrieve: dict[str, Any] = field(default_factory=dict)  # route -> recalls in percent


@dataclass(frozen=True, slots=True)
class Summary:
    """Runs that differ in nothing but the seed."""

    kind: str
    objective: str
    lr: float
    batch_size: int
    samples: int
    seeds: int
    linear_probe: float  # mean
    spread: float  # deviation over seeds, n - 1; 0 of one run
    knn: float
    seconds: float  # samples at the measured speed
    to_image: float | None  # text to image R@10, of the best route
    route: str

    @property
    def probed(self) -> str:
        """The linear probe, for people."""
        return f"{self.linear_probe:.2f}" + (f" ± {self.spread:.2f}" if self.seeds > 1 else "") + " %"

    def card(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def summarise(runs: list[ComparedRun], speeds: dict[str, float]) -> list[Summary]:
    """One line an objective, budget, batch size and learning rate; the best probe first. speeds: images/s."""
    groups: dict[tuple[str, str, float, int, int], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.kind, run.objective, run.lr, run.batch_size, run.samples), []).append(run)
    found = [_summary(some, speeds[some[0].objective]) for some in groups.values()]
    return sorted(found, key=lambda s: (s.kind, -s.linear_probe))


def _summary(runs: list[ComparedRun], speed: float) -> Summary:
    first, accuracies = runs[0], [run.linear_probe for run in runs]
    routes = [route for route in ("text", "head") if all(route in run.retrieve for run in runs)]
    recalls = {r: statistics.mean(run.retrieve[r]["text_to_image"]["r@10"] for run in runs) for r in routes}
    route = max(routes, key=lambda r: recalls[r], default="")
    return Summary(
        kind=first.kind,
        objective=first.objective,
        lr=first.lr,
        batch_size=first.batch_size,
        samples=first.samples,
        seeds=len(runs),
        linear_probe=statistics.mean(accuracies),
        spread=statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        knn=statistics.mean(run.knn for run in runs),
        seconds=first.samples / speed,
        to_image=recalls.get(route),
        route=route,
    )


def write_report(out: Path, runs: list[ComparedRun], summaries: list[Summary], about: str) -> Path:
    """compare.html in `out`."""
    parts = [page.paragraph(f"{about}. Same encoder, data, order of samples and augmentation for all.", soft=True)]
    equal = [s for s in summaries if s.kind == "runs"]
    timed = equal[:1] + [s for s in summaries if s.kind == "equal_time"] if equal else []
    if equal:
        note = "Deviation over seeds. Retrieval: text to picture, among the pictures given, by the better route."
        parts += [
            page.heading("The same number of samples"),
            page.table(HEADER, list(map(_row, equal))),
            page.paragraph(note, soft=True),
        ]
    if any(s.kind == "equal_time" for s in summaries):
        parts += [
            page.heading("The same time"),
            page.table(HEADER, [_row(s) for s in sorted(timed, key=lambda s: -s.linear_probe)]),
        ]
    if equal:
        parts += [page.heading("Accuracy against cost"), _cost(runs, summaries)]
    if sizes := [s for s in summaries if s.kind == "batch_sizes"]:
        parts += [page.heading("Accuracy against batch size"), _batch_sizes(sizes)]
    page.write(out / FILE, page.page("Objectives compared", *parts))
    return out / FILE


HEADER = ["objective", "linear probe", "20 nearest", "R@10", "seconds", "samples", "learning rate", "seeds"]


def _row(s: Summary) -> list[str]:
    recall = "-" if s.to_image is None else f"{s.to_image:.1f} % ({s.route})"
    return [
        s.objective,
        s.probed,
        f"{s.knn:.2f} %",
        recall,
        f"{s.seconds:,.0f}",
        f"{s.samples:,}",
        f"{s.lr:g}",
        str(s.seeds),
    ]


def _cost(runs: list[ComparedRun], summaries: list[Summary]) -> page.Html:
    """A dot a run; seconds follow from the measured speed, so runs of an objective stand above one another."""
    seconds = {(s.kind, s.objective, s.samples): s.seconds for s in summaries}
    series = []
    for name in dict.fromkeys(s.objective for s in summaries):
        some = [run for run in runs if run.objective == name and run.kind != "batch_sizes"]
        points = [(seconds[run.kind, name, run.samples], run.linear_probe) for run in some]
        titles = tuple(f"{name}, seed {run.seed}: {run.linear_probe:.2f} %" for run in some)
        series.append(Series(name, points, dots=True, titles=titles))
    return chart(series, "seconds of training", "linear probe, %")


def _batch_sizes(summaries: list[Summary]) -> page.Html:
    names = dict.fromkeys(s.objective for s in summaries)
    series = [
        Series(name, sorted((float(s.batch_size), s.linear_probe) for s in summaries if s.objective == name))
        for name in names
    ]
    return chart(series, "batch size", "linear probe, %", log_x=True)
