"""The report on a run: curves, speed, what each label has learned, and pictures with predictions. One HTML file."""

import base64
import json
from pathlib import Path
from typing import Any

from catlip.atomic import read_jsonl
from catlip.errors import UsageError
from catlip.report import page
from catlip.report.chart import Series, chart

FILE = "report.html"
WORST = 20  # labels in the table of the least learned


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "log.jsonl").is_file()


def write_report(run: Path) -> Path:
    """Read a run folder and write report.html into it. Raises UsageError for a folder that is no run."""
    try:
        card = json.loads((run / "config.json").read_text(encoding="utf-8"))
        lines = read_jsonl(run / "log.jsonl")
    except (OSError, ValueError) as error:
        raise UsageError(f"{run} is no run folder: {error}") from None
    entries = _latest(lines)
    parts = [
        _numbers(card, entries),
        *_curves(entries),
        *_labels(run),
        page.heading("Settings"),
        page.folded("config.json", page.code(json.dumps(card, indent=2))),
    ]
    page.write(run / FILE, page.page(f"Run {run.name}", *parts))
    return run / FILE


def _latest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries in the order of samples; what was repeated after a kill counts once, the later one."""
    kept: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in lines:
        kept[line["samples"], "loss" in line] = line
    return [kept[key] for key in sorted(kept)]


def _column(entries: list[dict[str, Any]], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(e["samples"], scale * e[name]) for e in entries if isinstance(e.get(name), int | float)]


def _numbers(card: dict[str, Any], entries: list[dict[str, Any]]) -> page.Html:
    config, last = card["config"], next((e for e in reversed(entries) if "loss" in e), {})
    speeds = sorted(speed for _, speed in _column(entries, "images_per_s"))
    rows = [
        ["encoder", f"{config['backbone']} at {config['image_size']} px"],
        ["data", str(config["data"])],
        ["samples", f"{last.get('samples', 0):,} of {card['facts']['budget']:,}"],
        ["batch", f"{config['batch_size']:,}"],
        ["loss", f"{last.get('loss', float('nan')):.4g}"],
        ["images/s, median", f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-"],
        ["versions", ", ".join(f"{k} {v}" for k, v in card.get("versions", {}).items() if v)],
    ]
    rows += [["changed on the way", "; ".join(step.get("changed", []))] for step in card.get("history", [])]
    return page.table(["", ""], rows)


def _curves(entries: list[dict[str, Any]]) -> list[page.Html]:
    looked = [name for name in ("mAP", "top-1", "kNN") if _column(entries, name)]
    parts = [
        page.heading("Loss"),
        chart([Series("loss", _column(entries, "loss"))], "samples", "loss"),
        page.heading("Learning rate and gradient norm"),
        chart([Series("learning rate", _column(entries, "lr"))], "samples", "learning rate", zero=True),
        chart([Series("gradient norm", _column(entries, "grad_norm"))], "samples", "norm", zero=True),
        page.heading("Speed, and how much of the time went into waiting for data"),
        chart([Series("images/s", _column(entries, "images_per_s"))], "samples", "images/s", zero=True),
        chart([Series("data wait", _column(entries, "data_wait", 100))], "samples", "data wait, %", zero=True),
    ]
    if looked:
        parts[2:2] = [
            page.heading("On pictures that were not trained on"),
            chart([Series(name, _column(entries, name)) for name in looked], "samples", "%", zero=True),
        ]
    return parts


def _labels(run: Path) -> list[page.Html]:
    """Average precision against frequency, the least learned labels, pictures with predictions."""
    path = run / "held_out.json"
    if not path.is_file():
        return [
            page.paragraph("No held-out captions were given (--held-out DATA), so labels are not scored.", soft=True)
        ]
    found = json.loads(path.read_text(encoding="utf-8"))
    labels = [label for label in found["labels"] if label["positives"] >= 3]
    titles = tuple(f"{x['name']}: AP {x['ap']:.2f}, {x['count']:,} in training, {x['positives']} here" for x in labels)
    dots = Series("labels", [(max(x["count"], 1), 100 * x["ap"]) for x in labels], dots=True, titles=titles)
    chance = sorted((max(x["count"], 1), 100 * x["positives"] / found["pictures"]) for x in labels)
    frequent = sorted(labels, key=lambda x: -x["count"])[: 10 * WORST]
    worst = sorted(frequent, key=lambda x: x["ap"] * found["pictures"] / x["positives"])[:WORST]
    cards = [
        page.card(
            page.image(base64.b64decode(card["jpeg"]), card["key"]), " / ".join(card["captions"]),
            [("labels", page.tags(card["labels"])), ("predicted", page.tags(card["predicted"], set(card["labels"])))],
        )
        for card in found["sheet"]
    ]  # fmt: skip
    return [
        page.heading("What each label has learned"),
        page.paragraph(
            f"{found['pictures']:,} held-out pictures: mean average precision {100 * found['map']:.1f} % over "
            f"{len(found['labels']):,} labels that occur, best-scored label right for {100 * found['top1']:.1f} %. "
            "Below: labels with three pictures or more."
        ),
        chart([Series("chance", chance, soft=True), dots], "pictures with the label in training", "AP, %", log_x=True),
        page.heading("Least learned of the frequent labels"),
        page.table(
            ["label", "in training", "held out", "AP", "chance"],
            [
                [x["name"], f"{x['count']:,}", str(x["positives"]), f"{100 * x['ap']:.1f} %",
                 f"{100 * x['positives'] / found['pictures']:.1f} %"] for x in worst
            ],
        ),
        page.heading("Held-out pictures: caption, its labels, the best predictions (green: named by the caption)"),
        page.grid(cards),
    ]  # fmt: skip
