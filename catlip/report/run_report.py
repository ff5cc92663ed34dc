"""The report on a run of any verb that trains: curves and speed; of pre-training also what each label has learned, and
images with predictions."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catlip import page
from catlip.atomic import read_jsonl
from catlip.errors import UsageError
from catlip.page import Series, chart

FILE, HELD_OUT = "report.html", "held_out.json"
WORST = 20  # labels in the table of the least learned
# Settings that say what a run was made of, whichever verb it is of.
MADE_OF = ("run", "start", "data", "train", "images", "boxes", "test", "test_images", "test_boxes", "batch_size")
# What every run logs, and has charts and figures of its own.
USUAL = "samples loss lr grad_norm images_per_s data_wait memory_gb seconds mfu not_finite_at_step".split()


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "log.jsonl").is_file()


def write_report(run: Path) -> Path:
    """Read a run folder and write report.html into it. Raises UsageError for a folder that is no run."""
    try:
        card = json.loads((run / "config.json").read_text(encoding="utf-8"))
        lines = read_jsonl(run / "log.jsonl")
    except (OSError, ValueError) as error:
        raise UsageError(f"{run} is no run folder: {error}") from None
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise UsageError(f"{run} is no run folder: its config.json holds no settings")
    entries = _latest(lines)
    parts = [
        _numbers(run, card, entries),
        *_curves(entries),
        *(_labels(run) if "vocab" in card["config"] or (run / HELD_OUT).is_file() else []),
        page.heading("Settings"),
        page.folded("config.json", page.code(json.dumps(card, indent=2))),
    ]
    return page.write(run / FILE, page.page(f"Run {run.name}", *parts))


def of_run(run: Any, settings: Any) -> Path:
    """The same, of what the verb pretrain returns."""
    return write_report(run.out)


def _latest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries in the order of samples; what was repeated after a kill counts once, the later one."""
    kept: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in lines:
        kept[line["samples"], "loss" in line] = line
    return [kept[key] for key in sorted(kept)]


def _column(entries: list[dict[str, Any]], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(e["samples"], scale * e[name]) for e in entries if isinstance(e.get(name), int | float)]


def _numbers(run: Path, card: dict[str, Any], entries: list[dict[str, Any]]) -> page.Html:
    config, facts = card["config"], card.get("facts") or {}
    last = next((e for e in reversed(entries) if "loss" in e), {})
    speeds = sorted(speed for _, speed in _column(entries, "images_per_s"))
    backbone, size = config.get("backbone") or facts.get("backbone"), config.get("image_size")
    found = {
        "encoder": f"{backbone}" + (f" at {size} px" if size else "") if backbone else "",
        **{name.replace("_", " "): f"{config[name]}" for name in MADE_OF if config.get(name)},
        "samples": f"{last.get('samples', 0):,}" + (f" of {facts['budget']:,}" if "budget" in facts else ""),
        "loss": f"{last.get('loss', float('nan')):.4g}",
        "precision": "{precision} ({why}) on {machine}".format(**card["machine"]) if card.get("machine") else "",
        "images/s, median": f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
        "versions": ", ".join(f"{k} {v}" for k, v in (card.get("versions") or {}).items() if v),
        "other pages": ", ".join(sorted(file.name for file in run.glob("*.html") if file.name != FILE)),
    }
    rows = [[name, told] for name, told in found.items() if told]
    rows += [["changed on the way", "; ".join(step.get("changed", []))] for step in card.get("history") or []]
    return page.table("The run", ["", ""], rows, text=True)


def _curves(entries: list[dict[str, Any]]) -> list[page.Html]:
    """A section for what there is; what a verb measures of its own gets curves under the names it has in the log."""
    looked = _names(entry for entry in entries if "loss" not in entry)
    own = [name for name in _names(entry for entry in entries if "loss" in entry) if name not in looked]

    def alone(name: str, y_label: str, told: str = "", scale: float = 1.0) -> page.Html:
        series = [Series(told or name, _column(entries, name, scale))]
        return chart(series, "samples", y_label, zero=name != "loss", height=2.3)

    watched = chart([Series(name, _column(entries, name)) for name in looked], "samples", "%", zero=True)
    sections = {
        "Loss": [alone("loss", "loss")],
        "On pictures that were not trained on": [watched],
        "What else was measured on the way": [alone(name, name) for name in own],
        "Learning rate and gradient norm": [alone("lr", "learning rate"), alone("grad_norm", "norm", "gradient norm")],
        "Speed, and how much of the time went into waiting for data": [
            alone("images_per_s", "images/s"),
            alone("data_wait", "data wait, %", "data wait", 100),
        ],
    }
    return [
        part
        for title, charts in sections.items()
        if any(c.text for c in charts)
        for part in (page.heading(title), *charts)
    ]


def _names(entries: Iterable[dict[str, Any]]) -> list[str]:
    """What is measured in some of the entries, beside the usual."""
    found = (name for entry in entries for name, value in entry.items() if isinstance(value, int | float))
    return [name for name in dict.fromkeys(found) if name not in USUAL]


def _labels(run: Path) -> list[page.Html]:
    """Average precision against frequency, the least learned labels, pictures with predictions."""
    path = run / HELD_OUT
    if not path.is_file():
        return [
            page.paragraph("No held-out captions were given (`held_out` DATA), so labels are not scored.", soft=True)
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
            page.image(base64.b64decode(card["jpeg"]), card["key"]),
            " / ".join(card["captions"]),
            [("labels", page.tags(card["labels"])), ("predicted", page.tags(card["predicted"], set(card["labels"])))],
        )
        for card in found["sheet"]
    ]
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
            "Least learned of the frequent labels",
            ["label", "in training", "held out", "AP", "chance"],
            [
                [
                    x["name"],
                    f"{x['count']:,}",
                    str(x["positives"]),
                    f"{100 * x['ap']:.1f} %",
                    f"{100 * x['positives'] / found['pictures']:.1f} %",
                ]
                for x in worst
            ],
        ),
        page.heading("Held-out pictures: caption, its labels, the best predictions (green: named by the caption)"),
        page.grid(cards),
    ]
