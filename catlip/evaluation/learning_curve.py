"""Accuracy against the number of labels, of linear probes and of fine-tuning: the curves, drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any, ClassVar

from catlip import page
from catlip.evaluation.result import Result, Table

# What a list of accuracies in a point of a curve is called.
NAMES = {"random": "random start", "transfer": "Transfer Init", "knn": "nearest neighbours"}


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracies, in percent, after learning from so many images; one a random part of the training set."""

    told: str
    pictures: int
    values: tuple[float, ...]

    @property
    def spread(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        return f"{mean(self.values):.2f}" + (f" ± {self.spread:.2f}" if len(self.values) > 1 else "") + " %"


@dataclass(kw_only=True)
class CurveResult(Result):
    """Fine-tuning with several amounts of labels, with several seeds each."""

    task: ClassVar[str] = "finetune"
    heading: ClassVar[str] = "Accuracy against labels"
    page_name: ClassVar[str] = "efficiency.html"

    classes: int
    test: int  # images
    image_size: int
    data: list[str]  # training set, test set
    # One an amount: {"told": "1 %", "share", "pictures", "random": [accuracy of each seed], "transfer": [...]}
    curve: list[dict[str, Any]]
    beside: list[dict[str, Any]] = field(default_factory=list, metadata={"saved": False})  # results with a curve

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if name != "seconds"}

    def tables(self) -> list[Table]:
        title = f"{self.encoder}, fine-tuned: {self.classes} classes, {self.test:,} to test"
        return [curve_table([self.to_json()], title)]

    def drawings(self) -> list[page.Html]:
        return drawn_curves([*self.beside, self.to_json()])


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
                    series = NAMES.get(key, str(key))
                    name = f"{result['task']}, {series}" if len(tasks) > 1 else series
                    found.setdefault(name, []).append(Point(entry["told"], entry["pictures"], tuple(values)))
    return {name: sorted(points, key=lambda point: point.pictures) for name, points in found.items()}


def curve_table(results: Sequence[dict[str, Any]], title: str) -> Table:
    """A row an amount of labels, a column a series."""
    found = curves(results)
    amounts = {point.pictures: point.told for points in found.values() for point in points}
    at = {name: {point.pictures: str(point) for point in points} for name, points in found.items()}
    rows = [
        [f"{told} ({pictures:,})", *(at[name].get(pictures, "-") for name in found)]
        for pictures, told in sorted(amounts.items())
    ]
    return Table(title, rows, ["labels", *found])


def drawn_curves(results: Sequence[dict[str, Any]]) -> list[page.Html]:
    """One figure of results on the same data, its numbers, and what they are."""
    first, found = results[0], curves(results)
    series = [
        page.Series(
            name, [(point.pictures, mean(point.values)) for point in points], spread=[point.spread for point in points]
        )
        for name, points in found.items()
    ]
    times = max(len(point.values) for points in found.values() for point in points)
    note = f"Chance is {100 / first['classes']:.1f} %. " + (
        f"Mean and deviation of {times} random parts of the training set; a larger part contains the smaller ones, and "
        "all series have the same parts."
        if times > 1
        else ""
    )
    return [
        page.heading("Accuracy against labels"),
        page.chart(series, "labelled pictures", "accuracy, %", log_x=True),
        *([curve_table(results, "").html()] if len(results) > 1 else []),
        page.paragraph(note, soft=True),
    ]
