"""Pages of results, where each verb has its own."""

from pathlib import Path
from typing import Any

from catlip import page
from catlip.evaluation.features import folder_of
from catlip.evaluation.result import Result
from catlip.report.run_report import write_report as write_run_report


def write_report(result: Result, out: str | Path) -> Path:
    """A result's page, written whole; the file."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.write(out, result.to_html())
    return out


def beside_encoder(result: Any, settings: Any) -> Path | None:
    """Of a verb that measures: `out`, else in the encoder's folder. None for a result that has nothing to draw."""
    if not result.page_name:
        return None
    folder = folder_of(settings.run) if settings.run else None
    return write_report(result, settings.out or (folder or Path()) / result.page_name)


def in_run_folder(result: Any, settings: Any) -> Path | None:
    """Of a verb that trains, in `out`. None for a run that was stopped, or has nothing to draw."""
    result = getattr(result, "result", result)
    page_name = getattr(result, "page_name", "")
    return write_report(result, Path(settings.out) / page_name) if page_name else None


def of_run(run: Any, settings: Any) -> Path:
    """Of pre-training: curves, labels, images."""
    return write_run_report(run.out)
