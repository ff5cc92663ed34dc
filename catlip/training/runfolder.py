"""The run folder: whose it is, what was asked for, what comes out of it."""

import contextlib
import hashlib
import json
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

import catlip
from catlip.atomic import write_text
from catlip.config import plain
from catlip.errors import UsageError
from catlip.notices import say
from catlip.training import checkpoint

CONFIG, UNREADABLE = "config.json", "unreadable.json"
HEAD = "head"  # the first stage of an adaptation, a run in a folder of its own
# What may change between a run and its resumption: where things lie, how the machine is used, what follows the
# training; not what is computed.
MACHINE = {
    "out", "data", "vocab", "start", "run", "train", "test", "classes", "wise", "center", "images",
    "boxes", "test_images", "test_boxes", "save_masks", "show", "workers", "device", "cache_gb", "accept_changes",
    "watch", "watch_every", "watch_limit", "track", "evaluate", "held_out", "held_out_limit", "probe",
    "keep", "keep_loss", "keep_limit", "force",
    "loop.save_every", "loop.micro_batch", "loop.checkpointing", "loop.compile", "loop.shard",
}  # fmt: skip


def acquire(out: Path, cfg: Any, facts: dict[str, Any], *, accept: bool) -> bool:
    """Whether `out` holds the beginning of this very run.

    Raises UsageError, with what differs, if it holds anything else; unless `accept`, for all but another backbone.
    """
    if not out.exists() or all(path.name == HEAD for path in out.iterdir()):
        return False
    card = read_card(out)
    now = {"config": _computed(plain(cfg)), **facts}
    then = {"config": _computed({**_defaults(cfg), **card.get("config", {})}), **card.get("facts", {})}
    different = _differences(json.loads(json.dumps(then)), json.loads(json.dumps(now)))
    if different and not (accept and checkpoint.exists(out)):
        flag = "`accept_changes` goes on with them; " if checkpoint.exists(out) else ""
        some = "; ".join(different[:4]) + ("; ..." if len(different) > 4 else "")
        raise UsageError(f"`out` {out} already holds another run ({some}); {flag}another `out` begins anew")
    fatal = [
        d for d in different if d.startswith(("backbone:", "image_size:", "objective", "vocabulary:", "class_list:"))
    ]
    if fatal:
        raise UsageError(
            f"`out` {out}: this run cannot go on with {fatal[0]}; begin another one with `start` {out}; it keeps what "
            "fits (the encoder, and the classifier's rows of labels that both vocabularies have)"
        )
    if different:
        say(f"{out}: going on with changes: {'; '.join(different)}")
        history = [*card.get("history", []), {"changed": different}]
        write_card(out, cfg, facts, history=history, machine=card.get("machine"))
    return checkpoint.exists(out)


def read_card(out: Path) -> dict[str, Any]:
    """What was asked for when a run began. Raises UsageError for a folder that is no run."""
    try:
        return json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"`out` {out} is not empty and holds no run; choose another folder") from None


def key_of(cfg: Any, facts: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a run's settings and data, wherever it runs, with whichever version."""
    what = json.dumps({"config": _computed(plain(cfg)), **facts}, sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:8]


def _computed(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The part of a configuration that decides what is computed."""
    return {
        name: _computed(value, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in config.items()
        if prefix + name not in MACHINE
    }


def _defaults(cfg: Any) -> dict[str, Any]:
    """What a setting was before there was a setting, for runs that an earlier version began."""
    return {field.name: plain(field.default) for field in fields(cfg) if field.default is not MISSING}


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        names = sorted({*then, *now})
        return [d for n in names for d in _differences(then.get(n), now.get(n), f"{path}.{n}".removeprefix(".config."))]
    return [] if then == now else [f"{path.strip('.')}: {_short(then)} there, {_short(now)} here"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_card(
    out: Path, cfg: Any, facts: dict[str, Any], history: list[Any] | None = None, machine: dict[str, str] | None = None
) -> None:
    """config.json: for people and for the record; never read back as configuration."""
    assert is_dataclass(cfg)
    out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    versions = {
        "catlip": catlip.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    card = {"config": plain(cfg), "facts": facts, "versions": versions, "history": history or []}  # type: ignore[call-overload]
    card |= {"machine": machine} if machine else {}
    write_text(out / CONFIG, json.dumps(card, indent=2) + "\n")


def set_machine(out: Path, machine: dict[str, str]) -> None:
    """Record in config.json where a run goes on from here, and how it computes there; a change is said."""
    card = read_card(out)
    if (before := card.get("machine")) == machine:
        return
    if before:
        then, now = ({name: of[name] for name in ("machine", "precision")} for of in (before, machine))
        changed = _differences(then, now)
        say(f"{out}: going on on another machine: {'; '.join(changed)}")
        card["history"] = [*card.get("history", []), {"changed": changed}]
    write_text(out / CONFIG, json.dumps({**card, "machine": machine}, indent=2) + "\n")


def add_unreadable(out: Path, reasons: dict[str, str]) -> dict[str, str]:
    """Name what was skipped in unreadable.json, beside what earlier sessions found; all of it. Raises OSError."""
    path, before = out / UNREADABLE, {}
    with contextlib.suppress(OSError, ValueError):  # none yet, or cut by an earlier program
        before = json.loads(path.read_text(encoding="utf-8"))
    found = {**before, **reasons}
    if found != before:
        write_text(path, json.dumps(found, indent=2) + "\n")
    return found
