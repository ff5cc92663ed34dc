"""What a run says: log.jsonl for programs, one line of progress for people."""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def append_json(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def table(rows: dict[str, str], title: str) -> str:
    """A small table for the terminal: a title, then a line per entry."""
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Meter:
    """Speed and waiting since the last report, and the line that says so."""

    def __init__(self, budget: int, seen: int, every: float = 10.0, stream: TextIO | None = None) -> None:
        self.budget, self.every = budget, every
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()
        self._begin = self._since = time.perf_counter()
        self._first = self._seen = seen
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def due(self, seen: int) -> bool:
        return seen >= self.budget or time.perf_counter() - self._since >= (1.0 if self._live else self.every)

    def report(self, seen: int, metrics: dict[str, float], lr: float) -> dict[str, Any]:
        """Print the line and return the entry for log.jsonl."""
        now = time.perf_counter()
        speed = (seen - self._seen) / max(now - self._since, 1e-9)
        overall = (seen - self._first) / max(now - self._begin, 1e-9)
        wait = self._waited / max(now - self._since, 1e-9)
        eta = (self.budget - seen) / max(overall, 1e-9)
        line = (
            f"samples {seen:,}/{self.budget:,} {seen / self.budget:.0%} | loss {metrics['loss']:.3f} | "
            f"{speed:,.0f} images/s | data wait {wait:.0%} | ETA {duration(eta)}"
        )
        self.stream.write(f"\r\x1b[K{line}" if self._live else line + "\n")
        if self._live and seen >= self.budget:
            self.stream.write("\n")
        self.stream.flush()
        self._since, self._seen, self._waited = now, seen, 0.0
        return {
            "samples": seen, **{k: round(v, 6) for k, v in metrics.items()}, "lr": lr,
            "images_per_s": round(speed, 1), "data_wait": round(wait, 4), "seconds": round(now - self._begin, 2),
        }  # fmt: skip
