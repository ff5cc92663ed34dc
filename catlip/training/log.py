"""What a run says: log.jsonl for programs, one line of progress for people, TensorBoard and other trackers for both."""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from catlip.data.batches import Cost
from catlip.errors import UsageError
from catlip.notices import warn

WAIT_LIMIT = 0.2  # share of the time that may go into waiting for data before one line says so


def append_json(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to a .jsonl file; beneath a last one that a kill or a full disk has cut, if there is such a one."""
    with path.open("ab+") as file:
        cut = file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"
        file.write(("\n" * bool(cut) + json.dumps(entry) + "\n").encode())


def table(rows: dict[str, str], title: str) -> str:
    """A small table for the terminal: a title, then a line per entry."""
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Trackers:
    """TensorBoard always; wandb or trackio if asked for, which share `init`, `log` and `finish`."""

    def __init__(self, out: Path, names: tuple[str, ...], config: dict[str, Any]) -> None:
        """Raises UsageError for a tracker that is not installed."""
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(out))
        self._others = []
        for name in names:
            try:
                module = import_module(name)
            except ImportError:
                raise UsageError(f"`track` {name}: it is not installed; `pip install {name}`") from None
            module.init(project="catlip", name=out.name, config=config)
            self._others.append(module)

    def write(self, seen: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, seen)
        for module in self._others:
            module.log({**values, "samples": seen}, step=seen)

    def close(self) -> None:
        self._board.close()
        for module in self._others:
            module.finish()


class Log:
    """Speed, waiting and metrics since the last report; only the main process has a tongue."""

    def __init__(
        self,
        out: Path,
        budget: int,
        *,
        main: bool = True,
        trackers: Trackers | None = None,
        watch_every: int = 0,
        flops: float = 0.0,
        peak: float = 0.0,
        workers: int = 0,
        every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        """flops: of one picture, forward and backward. peak: FLOP/s of all devices together, 0 where it is not known.

        every: seconds between lines, where they are not rewritten in place.
        """
        self.out, self.budget, self.main, self.every = out, budget, main, every
        self._trackers, self._watch_every = trackers, watch_every
        self._flops, self._peak, self._workers = flops, peak, workers
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()
        self._warned = False
        self._last: dict[str, float] = {}  # what was watched last, for the line
        self.begin(0)

    def begin(self, seen: int) -> None:
        self._begin = self._since = time.perf_counter()
        self._first = self._seen = seen
        self._waited, self._cost = 0.0, Cost()

    def waited(self, seconds: float, cost: Cost) -> None:
        self._waited += seconds
        self._cost.seconds += cost.seconds
        self._cost.bytes += cost.bytes
        self._cost.samples += cost.samples

    def due(self, last: bool) -> bool:
        if not self.main:
            return False
        return last or time.perf_counter() - self._since >= (1.0 if self._live else self.every)

    def watch_due(self, seen: int, batch: int) -> bool:
        """Whether the step that ended at `seen` crossed a multiple of the interval; alike on all processes."""
        return bool(self._watch_every) and seen // self._watch_every != (seen - batch) // self._watch_every

    def report(self, seen: int, metrics: dict[str, Tensor], lr: float) -> None:
        """Print the line, write log.jsonl and the trackers."""
        now = time.perf_counter()
        took = max(now - self._since, 1e-9)
        speed = (seen - self._seen) / took
        values = {name: float(value) for name, value in metrics.items()}
        entry = {
            "samples": seen,
            **{k: round(v, 6) for k, v in values.items()},
            "lr": lr,
            "images_per_s": round(speed, 1),
            "data_wait": round(self._waited / took, 4),
            "memory_gb": round(_memory_gb(), 3),
            "seconds": round(now - self._begin, 2),
        }
        if self._peak:
            entry["mfu"] = round(speed * self._flops / self._peak, 4)
        self._say(entry, (self.budget - seen) * (now - self._begin) / max(seen - self._first, 1))
        append_json(self.out / "log.jsonl", entry)
        if self._trackers:
            self._trackers.write(seen, {name: v for name, v in entry.items() if name != "samples"})
        self._warn_of_waiting(now, took, speed)
        self._since, self._seen, self._waited, self._cost = now, seen, 0.0, Cost()

    def watched(self, seen: int, values: dict[str, float]) -> None:
        """Metrics on held-out data."""
        self._last = values
        if self.main and values:
            append_json(self.out / "log.jsonl", {"samples": seen, **{k: round(v, 6) for k, v in values.items()}})
            if self._trackers:
                self._trackers.write(seen, values)
            self._write(f"samples {seen:,} | " + " | ".join(f"{k} {v:.2f}" for k, v in values.items()), stays=True)

    def close(self) -> None:
        if self._trackers:
            self._trackers.close()

    def _say(self, entry: dict[str, Any], eta: float) -> None:
        seen = entry["samples"]
        parts = [f"samples {seen:,}/{self.budget:,} {seen / self.budget:.0%}", f"loss {entry['loss']:.4g}"]
        parts += [f"{name} {value:.1f}" for name, value in self._last.items()]
        parts += [f"{entry['images_per_s']:,.0f} images/s"]
        parts += [f"MFU {entry['mfu']:.0%}"] if "mfu" in entry else []
        parts += [f"data wait {entry['data_wait']:.0%}", f"{entry['memory_gb']:.1f} GB", f"ETA {duration(eta)}"]
        self._write(" | ".join(parts), stays=seen >= self.budget)

    def _write(self, line: str, *, stays: bool) -> None:
        if self._live:
            self.stream.write(f"\r\x1b[K{line}" + ("\n" if stays else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _warn_of_waiting(self, now: float, took: float, speed: float) -> None:
        """Once, when the run is under way: what is slow, in numbers, and what mends it."""
        if self._warned or now - self._begin < 20 or self._waited < WAIT_LIMIT * took or not self._cost.samples:
            return
        self._warned = True
        cost = self._cost
        each, kilobytes = cost.samples / max(cost.seconds, 1e-9), cost.bytes / cost.samples / 1000
        could = speed / max(1 - self._waited / took, 0.05)
        warn(
            f"the model waits for data {self._waited / took:.0%} of the time: a loader worker makes {each:,.0f} "
            f"pictures/s ({kilobytes:,.0f} kB each, {max(self._workers, 1)} workers), the model could take "
            f"{could:,.0f}/s. More `workers` if cores are free; `catlip pack --size 256` if pictures are large; "
            "`catlip bench data` measures it"
        )


def _memory_gb() -> float:
    """Most memory that was taken so far: of the GPU if there is one, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
