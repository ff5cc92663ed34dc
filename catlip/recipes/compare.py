"""Every objective on the same encoder, data, augmentation and budget. The verb `compare`.

Each objective is trained with the same recipe, several times with other seeds; then all of them are probed alike. A
learning rate may be searched for each, among the same candidates with the same short runs. What a sample costs is
measured in turns (A B C, A B C, ...), so that a machine whose speed drifts is unfair to nobody.

Every run is a run folder of its own below --out. What is finished there is not done again, so a comparison may be
stopped, and may grow: the page is made of all runs that are found. The end of a folder's name is the key of what all
runs of a comparison have in common, recipe, pictures and vocabulary: results of another one are left and not counted.
"""

import json
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from catlip.atomic import write_text
from catlip.config import plain
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.features import class_indices, features, open_labelled
from catlip.evaluation.linear_probe import linear_probe
from catlip.evaluation.probe import ProbeResult, probe
from catlip.evaluation.retrieval import retrieve
from catlip.labels.vocabulary import Vocabulary
from catlip.models.weights import fingerprint, load
from catlip.notices import say
from catlip.recipes import load_recipe
from catlip.recipes.objectives import OBJECTIVES, label_of, objective_named
from catlip.report import comparison
from catlip.report.comparison import ComparedRun
from catlip.tasks.pretrain import PretrainConfig, pretrain, speed_of
from catlip.training.distributed import pick_device
from catlip.training.log import table
from catlip.training.runfolder import key_of

SECONDS = 8.0  # of measuring the speed of an objective, a turn
RESULT = "compared.json"  # in a run folder: what the run was, what it cost, what it can do


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """Settings of `catlip compare`."""

    out: str  # folder of the comparison; the same command again goes on where it stopped
    objectives: tuple[str, ...] = ("synsets", "subwords", "clip", "siglip", "clip_lite", "clip+subwords")
    data: str  # captioned pictures, as `catlip pretrain` takes them
    vocab: str = ""  # for objectives that name synsets
    train: str  # labelled pictures that the linear probe learns from
    test: str  # and those that it is tested on
    retrieve: str = ""  # captioned pictures for retrieval, both ways
    recipe: str = "flickr8k_cpu"  # all settings but the objective's own
    samples: int = 0  # budget of every run; 0: the recipe's
    equal_time: bool = False  # also: as many samples as the first objective's time allows
    seeds: int = 3
    lr: tuple[float, ...] = ()  # peak learning rates that are tried for every objective; empty: the recipe's for all
    search: int = 12_000  # samples of a run that tries a learning rate
    batch_sizes: tuple[int, ...] = ()  # also, with the first seed: runs of `search` samples with these batch sizes
    device: str = "auto"


def compare(config: CompareConfig) -> Path:
    """Train and probe all that is asked for and not there yet; the page's path.

    Raises UsageError for a mistake in the settings, before anything is trained.
    """
    _check(config)
    out, key = Path(config.out), _key(config)
    speeds = measure_speeds(config, key)
    first = speeds[label_of(config.objectives[0])]
    bases = {name: _settings(config, name, search_lr(config, name, key)) for name in config.objectives}
    for seed in range(config.seeds):  # so that a comparison that is stopped has every objective equally often
        for name, base in bases.items():
            budgets = {"runs": base.samples}
            if config.equal_time and name != config.objectives[0]:
                budgets["equal_time"] = _whole(base.samples * speeds[label_of(name)] / first, base.batch_size)
            for kind, samples in budgets.items():
                run(config, name, replace(base, seed=seed, samples=samples), out / kind, key)
    for name, base in bases.items():
        for size in config.batch_sizes:
            # Adam's rule of thumb: the rate goes with the root of the batch (Malladi et al., arXiv 2205.10287).
            rate = base.optim.lr * math.sqrt(size / base.batch_size)
            some = replace(base, optim=replace(base.optim, lr=float(f"{rate:.3g}")), batch_size=size)
            run(config, name, replace(some, samples=_whole(config.search, size)), out / "batch_sizes", key)
    return finish(config, speeds, key)


def _check(cfg: CompareConfig) -> None:
    if len(set(cfg.objectives)) != len(cfg.objectives) or not cfg.objectives:
        raise UsageError(f"`objectives` {' '.join(cfg.objectives)}: name each objective once")
    if cfg.seeds < 1 or min((*cfg.lr, 1.0)) <= 0 or min((*cfg.batch_sizes, 2)) < 2 or cfg.search < 1:
        raise UsageError("`seeds` and `search` are 1 or more, `lr` greater than 0, `batch_sizes` 2 or more")
    recipe = load_recipe(cfg.recipe)
    if not (cfg.samples or recipe.samples):
        raise UsageError(f"recipe {cfg.recipe} has a budget in epochs or hours; give `samples`")
    for name in cfg.objectives:
        objective_named(name)
    for labelled in (cfg.train, cfg.test):
        open_labelled(labelled)


def _settings(cfg: CompareConfig, name: str, lr: float | None = None) -> PretrainConfig:
    """What a run of an objective is, up to seed and folder."""
    recipe: PretrainConfig = load_recipe(cfg.recipe)
    samples = _whole(cfg.samples or recipe.samples, recipe.batch_size)
    optim = recipe.optim if lr is None else replace(recipe.optim, lr=lr)
    return replace(
        recipe,
        data=cfg.data,
        vocab=cfg.vocab,
        objective=objective_named(name),
        samples=samples,
        epochs=0.0,
        hours=0.0,
        optim=optim,
        device=cfg.device,
    )


def _key(cfg: CompareConfig) -> str:
    """Of all that decides a number of the comparison but what the name of the run's folder says."""
    recipe = _settings(cfg, cfg.objectives[0])
    common = replace(
        recipe,
        objective=objective_named("synsets"),
        samples=0,
        batch_size=0,
        seed=0,
        optim=replace(recipe.optim, lr=0.0),
    )
    return key_of(
        common,
        {
            "data": open_dataset(
                cfg.data, image_col=recipe.image_col, text_col=recipe.text_col, cache_gb=recipe.cache_gb
            ).fingerprint(),
            "vocabulary": Vocabulary.load(cfg.vocab).hash if cfg.vocab else "",
            "init": fingerprint(recipe.start) if recipe.start else "",
            "objectives": {name: plain(objective_named(name)) for name in OBJECTIVES},
            "probe": [open_labelled(labelled).fingerprint() for labelled in (cfg.train, cfg.test)],
            "retrieve": open_dataset(cfg.retrieve).fingerprint() if cfg.retrieve else "",
        },
    )


def _folder(parent: Path, name: str, settings: PretrainConfig, key: str) -> Path:
    optim, seed = settings.optim, settings.seed
    return parent / f"{label_of(name)}-lr{optim.lr:g}-batch{settings.batch_size}-{settings.samples}-seed{seed}-{key}"


def _whole(samples: float, batch: int) -> int:
    return max(1, round(samples / batch)) * batch


def run(cfg: CompareConfig, name: str, settings: PretrainConfig, parent: Path, key: str) -> dict[str, Any]:
    """Train and test, unless that was done; the record that the page is made of."""
    out = _folder(parent, name, settings, key)
    if (out / RESULT).is_file():
        return json.loads((out / RESULT).read_text(encoding="utf-8"))
    say(f"\n{out}")
    pretrain(config=replace(settings, out=str(out)))
    if not (out / "encoder").is_dir():
        raise UsageError(f"{out}: stopped; the same command goes on from there")
    probed = probe(str(out), cfg.train, cfg.test, device=cfg.device)
    assert isinstance(probed, ProbeResult)  # `_check` opened the sets: one label an image
    found = {
        "objective": label_of(name),
        "lr": settings.optim.lr,
        "batch_size": settings.batch_size,
        "samples": settings.samples,
        "seed": settings.seed,
        "linear_probe": probed.linear_probe,
        "knn": probed.knn,
    }
    if cfg.retrieve and ((out / "text").is_dir() or load(out).labels):
        told = retrieve(str(out), cfg.retrieve, device=cfg.device).to_json()
        found["retrieve"] = {route: told[route] for route in ("text", "head") if route in told}
    write_text(out / RESULT, json.dumps(found, indent=2) + "\n")
    return found


def search_lr(cfg: CompareConfig, name: str, key: str) -> float | None:
    """The learning rate whose short run is best on a fifth of the probe's training pictures; the test set is not
    looked at."""
    if len(cfg.lr) < 2:
        return cfg.lr[0] if cfg.lr else None
    found = {}
    for lr in cfg.lr:
        settings = replace(_settings(cfg, name, lr), seed=0)
        settings.samples = _whole(cfg.search, settings.batch_size)
        out = _folder(Path(cfg.out) / "search", name, settings, key)
        if not (out / RESULT).is_file():
            say(f"\n{out}")
            pretrain(config=replace(settings, out=str(out)))
            found_now = {"objective": name, "lr": lr, "accuracy": held_out_probe(out, cfg)}
            write_text(out / RESULT, json.dumps(found_now) + "\n")
        found[lr] = json.loads((out / RESULT).read_text(encoding="utf-8"))["accuracy"]
    best = max(found, key=lambda lr: found[lr])
    say(f"{name}: learning rate {best:g} of " + ", ".join(f"{lr:g} ({value:.2f} %)" for lr, value in found.items()))
    return best


def held_out_probe(out: Path, cfg: CompareConfig) -> float:
    """Accuracy in percent of a linear probe on a fifth of --train that it did not learn from."""
    train = open_labelled(cfg.train)
    _, y, _ = class_indices(train, train)
    x, kept = features(load(out), train, pick_device(cfg.device))
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(1))
    held, used = order[: len(order) // 5], order[len(order) // 5 :]
    y = y[kept]
    return round(linear_probe(x[used], y[used], x[held], y[held])[0], 2)


def measure_speeds(cfg: CompareConfig, key: str, rounds: int = 3) -> dict[str, float]:
    """Images a second of each objective: the median of several measurements, taken in turns."""
    path = Path(cfg.out) / f"speeds-{key}.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    labels = {label_of(name): name for name in cfg.objectives}
    if all(label in known for label in labels):
        return known
    found: dict[str, list[float]] = {label: [] for label in labels}
    for turn in range(rounds):
        for label, name in labels.items():
            found[label].append(speed_of(_settings(cfg, name), SECONDS))
        say(f"speed, turn {turn + 1} of {rounds}: " + ", ".join(f"{n} {s[-1]:,.0f}" for n, s in found.items()))
    # Objectives that are measured later are put on the scale of the first measurement, by the one they share.
    medians = {name: statistics.median(some) for name, some in found.items()}
    shared = next((label for label in labels if label in known), None)
    scale = known[shared] / medians[shared] if shared else 1.0
    known = {**{name: round(speed * scale, 1) for name, speed in medians.items()}, **known}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=2) + "\n")
    return known


def finish(cfg: CompareConfig, speeds: dict[str, float], key: str) -> Path:
    """The table and the page of all runs of this comparison that are there."""
    out = Path(cfg.out)
    found = [path for path in sorted(out.glob(f"*/*/{RESULT}")) if path.parent.parent.name != "search"]
    ours = [path for path in found if path.parent.name.endswith(f"-{key}")]
    runs = [ComparedRun(kind=path.parent.parent.name, **json.loads(path.read_text(encoding="utf-8"))) for path in ours]
    if others := len(found) - len(ours):
        say(f"{out}: {others} results with other data, vocabulary or recipe are left there and not counted")
    told = comparison.summarise(runs, speeds)
    rows = {f"{s.objective}, rate {s.lr:g}": f"{s.probed}   {s.seconds:,.0f} s" for s in told if s.kind == "runs"}
    say(table(rows, "linear probe, mean and deviation over seeds; time of a run"))
    summaries = [s.card() for s in told]
    write_text(out / "compare.json", json.dumps({"speeds": speeds, "summaries": summaries}, indent=2) + "\n")
    recipe = load_recipe(cfg.recipe)
    page = comparison.write_report(out, runs, told, f"{recipe.backbone} at {recipe.image_size} px on {cfg.data}")
    say(f"{page}: the comparison")
    return page
