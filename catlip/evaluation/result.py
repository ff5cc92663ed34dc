"""What evaluations return: numbers with what led to them, which print, save and draw themselves."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from catlip import page
from catlip.errors import UsageError
from catlip.evaluation.features import folder_of
from catlip.models.encoder import Encoder
from catlip.training.log import append_json

# Of a field: it is for Python and the page, and has no place in results.jsonl.
NOT_SAVED = {"saved": False}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title, for a terminal or a page."""

    title: str
    rows: Sequence[Sequence[str]]  # the first cell is the row's name
    header: Sequence[str] = ()
    note: str = ""

    @property
    def is_text(self) -> bool:
        """Whether the cells behind the names are words: they begin on the left, numbers end on the right."""
        return any(row[1][:1].isalpha() for row in self.rows if len(row) > 1)

    def __str__(self) -> str:
        lines = [list(row) for row in ([self.header] if self.header else []) + list(self.rows)]
        widths = [max(len(row[i]) for row in lines if i < len(row)) for i in range(max(map(len, lines), default=0))]
        side = "<" if self.is_text else ">"
        told = [
            "  ".join([f"  {row[0]:<{widths[0]}}", *(f"{cell:{side}{widths[i]}}" for i, cell in enumerate(row) if i)])
            for row in lines
        ]
        return "\n".join([self.title, *(line.rstrip() for line in told), *([f"  {self.note}"] if self.note else [])])

    def html(self) -> page.Html:
        parts = [page.table(self.title, list(self.header), [list(row) for row in self.rows], text=self.is_text)]
        return page.join([*parts, page.paragraph(self.note, soft=True)] if self.note else parts)


@dataclass(kw_only=True)
class Result:
    """Numbers in percent unless their names say otherwise, and what they were measured with.

    `print(result)` shows the table, a notebook draws it; `to_json()` is the line of results.jsonl, `to_html()` a page
    that needs nothing beside it. A field without a default is always in the JSON, another one where it says something.
    """

    task: ClassVar[str]
    heading: ClassVar[str]  # of the page
    page_name: ClassVar[str] = ""  # the file that the command line writes it to, if any

    encoder: str  # run folder, or what else the encoder is called
    seconds: float = field(default=0.0, metadata={"always": True})
    unreadable: dict[str, int] = field(default_factory=dict)  # set -> images that were left out

    def tables(self) -> list[Table]:
        """The numbers first, then their parts."""
        raise NotImplementedError

    def drawings(self) -> list[page.Html]:
        """What the page shows below the first table."""
        return []

    def __str__(self) -> str:
        """For a terminal."""
        return "\n".join(map(str, self.tables()))

    def to_json(self) -> dict[str, Any]:
        """The line of results.jsonl."""
        kept = {"task": self.task}
        for one in fields(self):
            value = getattr(self, one.name)
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if one.metadata.get("saved", True) and (one.metadata.get("always") or value != default):
                kept[one.name] = value
        return kept

    def to_clip_benchmark(self) -> dict[str, Any]:
        """As LAION's CLIP_benchmark writes its results, so that `clip_benchmark build` puts them into one table.

        Raises UsageError for what it has no name for.
        """
        raise UsageError(f"CLIP_benchmark has no name for what {self.task} measured here; --json has it")

    def as_clip_benchmark(
        self, task: str, data: str, percents: dict[str, float | None], route: str = ""
    ) -> dict[str, Any]:
        """percents: metrics by CLIP_benchmark's names, which are shares there."""
        return {
            "dataset": data,
            "model": f"catlip {route}".rstrip(),
            "pretrained": self.encoder,
            "task": task,
            "metrics": {name: None if value is None else value / 100 for name, value in percents.items()},
            "language": "en",
        }

    def to_html(self) -> str:
        """A self-contained page."""
        first, *rest = self.tables()
        parts = [page.paragraph(first.title, soft=True), first.html(), *self.drawings()]
        for part in rest:
            parts += [page.heading(part.title), part.html()]
        return page.page(self.heading, *parts)

    def write_html(self, out: str | Path) -> Path:
        """The page in a file; the file."""
        return page.write(Path(out), self.to_html())

    def saved(self, run: Any, began: float | None = None) -> Self:
        """This result, after a line is added to results.jsonl of a run folder, or of a Run.

        Not of an Encoder, which may not be any more what it was when it was loaded from there. began: of the work, by
        time.perf_counter().
        """
        if began is not None:
            self.seconds = round(time.perf_counter() - began, 1)
        folder = None if isinstance(run, Encoder) else folder_of(run)
        if folder is not None:
            append_json(folder / "results.jsonl", self.to_json())
        return self

    def _repr_html_(self) -> str:
        first = self.tables()[0]
        return page.join([page.paragraph(first.title), first.html()]).text


def beside_encoder(result: Result, settings: Any) -> Path | None:
    """The page of a verb that measures: `out`, else in the encoder's folder. None for a result that draws nothing."""
    if not result.page_name:
        return None
    folder = folder_of(settings.run) if settings.run else None
    return result.write_html(settings.out or (folder or Path()) / result.page_name)


def in_run_folder(result: Any, settings: Any) -> Path | None:
    """The page of a verb that trains, in `out`. None for a run that was stopped, or draws nothing."""
    result = getattr(result, "result", result)
    page_name = getattr(result, "page_name", "")
    return result.write_html(Path(settings.out) / page_name) if page_name else None


def listed(names: Iterable[str], between: str = ", ", most: int = 40) -> str:
    """The first of them, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return between.join(found[:most]) + more


def percent(value: float | None, digits: int = 2) -> str:
    """`12.34 %`, or `-` for a number that there is not."""
    return "-" if value is None or value != value else f"{value:.{digits}f} %"
