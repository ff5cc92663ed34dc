"""The verb that wires data, encoder, objective and loop; the only place that sees the whole configuration."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import catlip
from catlip.captions.vocabulary import Vocabulary
from catlip.data.batches import Batches, Resolution
from catlip.data.images import Crop
from catlip.data.sources import open_source
from catlip.errors import UsageError
from catlip.models.encoder import ENCODER_FOLDER, Encoder
from catlip.objectives.synsets import SynsetObjective, Synsets
from catlip.training import checkpoint
from catlip.training.log import duration
from catlip.training.loop import Loop, fit
from catlip.training.optim import Optim

CONFIG = "config.json"
# What may change between a run and its resumption: where things lie and how the machine is used, not what is computed.
MACHINE = {"out", "data", "vocab", "workers", "device", "threads"}


@dataclass(kw_only=True, slots=True)
class Pretrain:
    """A whole run. Recipes (catlip/recipes) return one of these."""

    data: str  # tar shards (braces and globs), or a CSV or TSV file with the paths of pictures
    vocab: str  # vocab.tsv, made by `catlip vocab`
    out: str  # run folder; the same command again goes on where it stopped
    backbone: str = "vit_small_patch16_224"  # any timm model
    image_size: int = 224  # pixels
    samples: int = 0  # budget: pictures seen, repetitions counted; or give --epochs
    epochs: float = 0.0  # budget: times the data is seen
    batch_size: int = 256  # of all processes together
    seed: int = 0
    workers: int = 0  # decoding threads; 0: one a core
    device: str = "auto"  # auto, cpu, cuda, mps
    image_col: str | None = None  # CSV and TSV: column with the paths of pictures
    text_col: str | None = None  # CSV and TSV: column with the captions
    crop: Crop = field(default_factory=Crop)
    resolution: Resolution = field(default_factory=Resolution)
    objective: Synsets = field(default_factory=Synsets)
    optim: Optim = field(default_factory=Optim)
    loop: Loop = field(default_factory=Loop)


def pretrain(cfg: Pretrain) -> Path:
    """Train an encoder on captioned pictures; the run folder.

    Raises UsageError for a mistake in the configuration, before anything is written.
    """
    began = time.perf_counter()
    for option in ("data", "vocab", "out"):
        if not getattr(cfg, option):
            raise UsageError(f"--{option} is missing")
    out = Path(cfg.out)
    vocabulary = Vocabulary.load(cfg.vocab)
    labeler = vocabulary.labeler()
    source = open_source(cfg.data, cfg.image_col, cfg.text_col)
    budget = _budget(cfg, len(source))
    device = pick_device(cfg.device)
    facts = {"vocabulary": vocabulary.hash, "data": source.fingerprint(), "budget": budget}
    resuming = _claim(out, cfg, facts)
    torch.manual_seed(cfg.seed)
    encoder = Encoder.create(cfg.backbone, image_size=cfg.image_size)
    task = SynsetObjective(encoder, vocabulary.counts, vocabulary.samples, cfg.objective)
    batches = Batches(
        source, vocabulary, labeler, batch_size=cfg.batch_size, image_size=cfg.image_size, crop=cfg.crop,
        seed=cfg.seed, workers=cfg.workers or os.cpu_count() or 1, resolution=cfg.resolution, budget=budget,
    )  # fmt: skip
    if not resuming:
        _write_card(out, cfg, facts)
        vocabulary.save(out / "vocab.tsv")
    print(f"{source.described}; {len(vocabulary):,} classes; {cfg.backbone} at {cfg.image_size} px on {device.type}")
    state = fit(task, batches, budget=budget, optim=cfg.optim, loop=cfg.loop, seed=cfg.seed, out=out, device=device)
    task.load_state_dict(state)
    save_run(out, task.eval(), vocabulary)
    _say_unreadable(batches, out)
    print(
        f"{out}: encoder ready after {duration(time.perf_counter() - began)}. "
        f"Next: catlip probe {out} --train ... --test ..."
    )
    return out


def save_run(out: Path, task: SynsetObjective, vocabulary: Vocabulary) -> None:
    """Write what is to be used: the encoder with its classifier, and the objective's own weights."""
    lemmas = {synset: name.replace("_", " ") for synset, name in zip(vocabulary.synsets, vocabulary.names, strict=True)}
    task.encoder.save(out / ENCODER_FOLDER, task.head, label_names=vocabulary.synsets, label_descriptions=lemmas)
    head = {f"head.{name}": value.detach().cpu().contiguous() for name, value in task.head.state_dict().items()}
    save_file(head, out / "objective.safetensors")


def pick_device(name: str) -> torch.device:
    """ "auto": the accelerator if there is one. Raises UsageError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def _budget(cfg: Pretrain, n: int) -> int:
    """Samples to see: a whole number of batches."""
    if bool(cfg.samples) == bool(cfg.epochs):
        raise UsageError(
            "give the budget as --samples or as --epochs, one of them (--samples 0 where a recipe sets it)"
        )
    if cfg.batch_size < 1 or cfg.samples < 0 or cfg.epochs < 0:
        raise UsageError("--batch-size, --samples and --epochs are positive numbers")
    wanted = cfg.samples or cfg.epochs * n
    return max(1, round(wanted / cfg.batch_size)) * cfg.batch_size


def _claim(out: Path, cfg: Pretrain, facts: dict[str, Any]) -> bool:
    """Whether `out` holds the beginning of this very run. Raises UsageError if it holds anything else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        card = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"--out {out} is not empty and holds no run; choose another folder") from None
    now = {"config": _computed(asdict(cfg)), **facts}
    then = {"config": _computed(card.get("config", {})), **card.get("facts", {})}
    different = _differences(json.loads(json.dumps(then)), json.loads(json.dumps(now)))
    if different:
        raise UsageError(f"--out {out} already holds another run ({'; '.join(different[:4])}); choose another folder")
    return (out / checkpoint.RESUME).is_file()


def _computed(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is computed."""
    kept = {name: value for name, value in config.items() if name not in MACHINE}
    if "loop" in kept:
        kept["loop"] = {k: v for k, v in kept["loop"].items() if k != "save_every"}
    return kept


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        names = sorted({*then, *now})
        return [d for n in names for d in _differences(then.get(n), now.get(n), f"{path}.{n}".removeprefix(".config."))]
    return [] if then == now else [f"{path.strip('.')}: {_short(then)} there, {_short(now)} here"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _write_card(out: Path, cfg: Pretrain, facts: dict[str, Any]) -> None:
    """config.json: for people and for the record; never read back as configuration."""
    out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    versions = {
        "catlip": catlip.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    card = {"config": asdict(cfg), "facts": facts, "versions": versions}
    (out / CONFIG).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _say_unreadable(batches: Batches, out: Path) -> None:
    reasons = batches.unreadable.reasons
    if reasons:
        path = out / "unreadable.json"
        path.write_text(json.dumps(reasons, indent=2) + "\n", encoding="utf-8")
        first = next(iter(reasons.items()))
        print(f"{len(reasons)} pictures could not be read and were skipped, e.g. {first[0]}: {first[1]}; all in {path}")
