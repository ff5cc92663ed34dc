"""What `train` returns: a run folder, and what it holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catlip.atomic import read_jsonl
from catlip.models.encoder import Encoder
from catlip.models.weights import load


@dataclass(slots=True)
class Run:
    """A run that has ended, or was stopped. The same call that made it goes on with it, and returns the same."""

    out: Path
    samples: int  # seen in all
    seconds: float = field(default=0.0, compare=False)  # of this call
    stopped: str = ""  # why it ended before its budget, or ""
    result: Any = None  # what was measured at the end, for tasks that have a test set

    @property
    def name(self) -> str:
        return str(self.out)

    @property
    def encoder(self) -> Encoder:
        """The trained encoder, ready for use. Raises UsageError for a run that was stopped before it had one."""
        return load(self.out)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl: samples, loss, speed and what was measured on the way."""
        return read_jsonl(self.out / "log.jsonl")

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines of results.jsonl: what was measured with this encoder."""
        path = self.out / "results.jsonl"
        return read_jsonl(path) if path.is_file() else []

    def _repr_html_(self) -> str:
        """For a notebook: what was measured, and the loss."""
        from catlip import page  # matplotlib only where something is drawn

        losses = {line["samples"]: line["loss"] for line in self.log if "loss" in line}
        parts = [page.paragraph(str(self) if self.result is None else str(self.out))]
        if self.result is not None and hasattr(self.result, "_repr_html_"):
            parts.append(page.Html(self.result._repr_html_()))
        if len(losses) > 1:
            parts.append(page.chart([page.Series("loss", sorted(losses.items()))], "samples", "loss", height=2.3))
        return page.join(parts).text

    def __str__(self) -> str:
        if self.stopped:
            return f"{self.out}: {self.stopped}"
        if self.result is not None:
            return str(self.result)
        minutes, seconds = divmod(round(self.seconds), 60)
        after = f"; encoder ready after {minutes}:{seconds:02d}" if self.seconds else ""
        return f"{self.out}: {self.samples:,} samples{after}"
