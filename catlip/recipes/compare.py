"""Every objective on the same encoder, data, augmentation and budget. The verb `compare`.

Each objective is trained with the same recipe, several times with other seeds; then all encoders go before the same
judges (judges.py), and so does the one that the runs began with. A learning rate may be searched for each, among the
same candidates with the same short runs, by parts of what the judges learn from. What a sample costs is measured in
turns (A B C, A B C, ...), so that a machine whose speed drifts is unfair to nobody.

Every run is a run folder of its own below --out. What is finished there is not done again, so a comparison may be
stopped, and may grow: the page is made of all runs that are found. The end of a folder's name is the key of what all
runs of a comparison have in common, recipe, pictures and vocabulary, and of the objective's own settings (with the
sentences, if it reads them): results of another one are left and not counted.
"""

import contextlib
import itertools
import json
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from catlip.atomic import write_text
from catlip.config import plain
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.retrieval import retrieve
from catlip.evaluation.zero_shot import zero_shot
from catlip.labels.vocabulary import Vocabulary
from catlip.models.model_folders import ENCODER_FOLDER
from catlip.models.weights import fingerprint, load
from catlip.notices import say
from catlip.objectives.base import needs_of
from catlip.recipes import load_recipe
from catlip.recipes.judges import FEW, Judge, open_judges
from catlip.recipes.objectives import label_of, objective_named
from catlip.report import comparison
from catlip.report.comparison import ComparedRun
from catlip.tasks.pretrain import PretrainConfig, prepare, pretrain, speed_of
from catlip.training.distributed import joined, pick_device
from catlip.training.log import table
from catlip.training.runfolder import key_of, read_card

SECONDS = 8.0  # of measuring the speed of an objective, a turn
START = "start"  # in place of an objective: the encoder as it is before the first step
RESULT = "compared.json"  # in a run folder: what the run was, what it cost, what it can do


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """Settings of `catlip compare`."""

    out: str  # folder of the comparison; the same command again goes on where it stopped
    objectives: tuple[str, ...] = ("synsets", "subwords", "clip", "siglip", "clip_lite", "clip+subwords")
    data: str  # captioned pictures, as `catlip pretrain` takes them
    vocab: str = ""  # for objectives that name synsets
    train: tuple[str, ...]  # judges: labelled pictures to learn from, with one label or several; one set a judge
    test: tuple[str, ...]  # and those that test it, in the same order
    nouns: tuple[str, ...] = ()  # one more judge, the nouns in captions: captioned pictures to learn from, and a test
    retrieve: str = ""  # captioned pictures for retrieval, both ways
    classes: str = ""  # names of the first judge's classes, one a line: zero-shot classification of its test
    sentence_encoder: str = ""  # for objectives that read frozen sentences, as `catlip pretrain` takes it
    recipe: str = "flickr8k_cpu"  # all settings but the objective's own
    samples: int = 0  # budget of every run; 0: the recipe's
    equal_time: bool = False  # also: as many samples as the first objective's time allows
    seeds: int = 3
    lr: tuple[float, ...] = ()  # peak learning rates that are tried for every objective; empty: the recipe's for all
    search: int = 12_000  # samples of a run that tries a learning rate
    batch_sizes: tuple[int, ...] = ()  # also: runs of `search` samples with these batch sizes
    workers: int = 0  # decoding processes of a run; 0: the recipe's
    device: str = "auto"


def compare(config: CompareConfig) -> Path:
    """Train and judge all that is asked for and not there yet; the page's path.

    Raises UsageError for a mistake in the settings, before anything is trained.
    """
    # One judge by itself: a path is not a list of letters, nor a dataset a list of samples.
    one = {name: (given,) for name in ("train", "test") if not isinstance(given := getattr(config, name), list | tuple)}
    config = replace(config, **one)
    _check(config)
    key = key_of_comparison(config)
    speeds = measure_speeds(config, key)
    for kind, name, settings in planned(config, speeds, key):
        run(config, name, settings, Path(config.out) / kind, key)
    return finish(config, speeds, key)


def planned(cfg: CompareConfig, speeds: dict[str, float], key: str) -> list[tuple[str, str, PretrainConfig]]:
    """(kind, objective, settings) of every run, in an order such that a comparison that is stopped has each objective
    equally often. Learning rates that are not searched yet are."""
    first = speeds[label_of(cfg.objectives[0])]
    bases = {name: settings_of(cfg, name, search_lr(cfg, name, key)) for name in cfg.objectives}
    start = replace(bases[cfg.objectives[0]], samples=0, batch_size=0)
    start.optim = replace(start.optim, lr=0.0)
    found: list[tuple[str, str, PretrainConfig]] = []
    for seed in range(cfg.seeds):
        if not (seed and start.start):  # given weights are the same for every seed
            found.append(("runs", START, replace(start, seed=seed)))
        for name, base in bases.items():
            found.append(("runs", name, replace(base, seed=seed)))
            if cfg.equal_time and name != cfg.objectives[0]:
                samples = _whole(base.samples * speeds[label_of(name)] / first, base.batch_size)
                found.append(("equal_time", name, replace(base, seed=seed, samples=samples)))
    for seed, size, (name, base) in itertools.product(range(cfg.seeds), cfg.batch_sizes, bases.items()):
        # Adam's rule of thumb: the rate goes with the root of the batch (Malladi et al., arXiv 2205.10287).
        rate = base.optim.lr * math.sqrt(size / base.batch_size)
        some = replace(base, optim=replace(base.optim, lr=float(f"{rate:.3g}")), batch_size=size, seed=seed)
        found.append(("batch_sizes", name, replace(some, samples=_whole(cfg.search, size))))
    return found


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
    judges_of(cfg)


def judges_of(cfg: CompareConfig) -> list[Judge]:
    """Raises UsageError."""
    return open_judges(cfg.train, cfg.test, cfg.nouns, Vocabulary.load(cfg.vocab) if cfg.vocab else None)


def settings_of(cfg: CompareConfig, name: str, lr: float | None = None) -> PretrainConfig:
    """What a run of an objective is, up to seed and folder."""
    recipe: PretrainConfig = load_recipe(cfg.recipe)
    samples = _whole(cfg.samples or recipe.samples, recipe.batch_size)
    optim = recipe.optim if lr is None else replace(recipe.optim, lr=lr)
    objective, sentences = objective_named(name), recipe.sentences
    if "sentences" in needs_of(objective) and cfg.sentence_encoder:
        sentences = replace(sentences, sentence_encoder=cfg.sentence_encoder)
    return replace(
        recipe,
        data=cfg.data,
        vocab=cfg.vocab,
        objective=objective,
        samples=samples,
        epochs=0.0,
        hours=0.0,
        optim=optim,
        sentences=sentences,
        workers=cfg.workers or recipe.workers,
        device=cfg.device,
    )


def key_of_comparison(cfg: CompareConfig) -> str:
    """Of all that decides a number of the comparison but the objective and what the name of the run's folder says."""
    recipe = settings_of(cfg, "synsets")
    common = replace(recipe, objective=None, samples=0, batch_size=0, seed=0, optim=replace(recipe.optim, lr=0.0))
    return key_of(
        common,
        {
            "data": open_dataset(
                cfg.data, image_col=recipe.image_col, text_col=recipe.text_col, cache_gb=recipe.cache_gb
            ).fingerprint(),
            "vocabulary": Vocabulary.load(cfg.vocab).hash if cfg.vocab else "",
            "init": fingerprint(recipe.start) if recipe.start else "",
            "judges": [judge.fingerprint() for judge in judges_of(cfg)],
            "retrieve": open_dataset(cfg.retrieve).fingerprint() if cfg.retrieve else "",
        },
    )


def _folder(parent: Path, name: str, settings: PretrainConfig, key: str) -> Path:
    optim, seed = settings.optim, settings.seed
    key = key if name == START else _key_of_run(settings, key)
    return parent / f"{label_of(name)}-lr{optim.lr:g}-batch{settings.batch_size}-{settings.samples}-seed{seed}-{key}"


def _key_of_run(settings: PretrainConfig, key: str) -> str:
    """So that a comparison may grow, and a setting that another objective is given later trains nothing anew."""
    reads = "sentences" in needs_of(settings.objective)
    sentences = plain(settings.sentences) if reads else None
    return key_of({}, {"comparison": key, "objective": plain(settings.objective), "sentences": sentences})


def _whole(samples: float, batch: int) -> int:
    return max(1, round(samples / batch)) * batch


def run(cfg: CompareConfig, name: str, settings: PretrainConfig, parent: Path, key: str) -> dict[str, Any]:
    """Train and test, unless that was done; the record that the page is made of."""
    out = _folder(parent, name, settings, key)
    if (out / RESULT).is_file():
        return json.loads((out / RESULT).read_text(encoding="utf-8"))
    say(f"\n{out}")
    seconds = 0.0
    if name == START:
        with joined(settings.device) as world:
            prepare(settings, world)[0].encoder.save(out / ENCODER_FOLDER)
    else:
        seconds = pretrain(config=replace(settings, out=str(out))).seconds
    if not (out / ENCODER_FOLDER).is_dir():
        raise UsageError(f"{out}: stopped; the same command goes on from there")
    card = {} if name == START else read_card(out)
    found = {
        "objective": label_of(name),
        "lr": settings.optim.lr,
        "batch_size": settings.batch_size,
        "samples": settings.samples,
        "seed": settings.seed,
        "judges": judged(out, judges_of(cfg), cfg.device),
        "seconds": round(seconds, 1),
        "commit": card.get("versions", {}).get("commit", ""),
        "machine": card.get("machine", {}).get("machine", ""),
    }
    if (out / "text").is_dir() or load(out).labels:
        if cfg.retrieve:
            told = retrieve(str(out), cfg.retrieve, device=cfg.device).to_json()
            found["retrieve"] = {route: told[route] for route in ("text", "head") if route in told}
        if cfg.classes:
            told = zero_shot(str(out), cfg.test[0], classes=cfg.classes, device=cfg.device).to_json()
            found["zero_shot"] = {route: told[route]["top1"] for route in ("text", "head") if route in told}
    write_text(out / RESULT, json.dumps(found) + "\n")
    return found


def judged(out: Path, judges: list[Judge], device: str) -> dict[str, dict[str, Any]]:
    """What each judge says of a run's encoder, as JSON has it."""
    encoder = load(out)
    return {judge.name: asdict(judge(encoder, pick_device(device))) for judge in judges}


def search_lr(cfg: CompareConfig, name: str, key: str) -> float | None:
    """The learning rate whose short run is best by fifths of what the judges learn from; no test set is looked at."""
    if len(cfg.lr) < 2:
        return cfg.lr[0] if cfg.lr else None
    found = {lr: search_run(cfg, name, lr, key) for lr in cfg.lr}
    best = max(found, key=lambda lr: found[lr])
    say(f"{name}: learning rate {best:g} of " + ", ".join(f"{lr:g} ({value:.2f} %)" for lr, value in found.items()))
    return best


def search_run(cfg: CompareConfig, name: str, lr: float, key: str) -> float:
    """How good an encoder is after a short run with this learning rate, in percent; from its folder, if it is there."""
    settings = replace(settings_of(cfg, name, lr), seed=0)
    settings.samples = _whole(cfg.search, settings.batch_size)
    out = _folder(Path(cfg.out) / "search", name, settings, key)
    if not (out / RESULT).is_file():
        say(f"\n{out}")
        pretrain(config=replace(settings, out=str(out)))
        judges = [judge.held_out() for judge in judges_of(cfg) if len(judge.train) >= FEW] or judges_of(cfg)
        values = [judge["value"] for judge in judged(out, judges, cfg.device).values()]
        write_text(out / RESULT, json.dumps({"objective": name, "lr": lr, "score": statistics.mean(values)}) + "\n")
    return json.loads((out / RESULT).read_text(encoding="utf-8"))["score"]


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
            found[label].append(speed_of(settings_of(cfg, name), SECONDS))
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
    runs = [ComparedRun(kind=path.parent.parent.name, **json.loads(path.read_text(encoding="utf-8"))) for path in found]
    keys, named = {START: key}, {label_of(name): name for name in cfg.objectives}
    for label in {run.objective for run in runs} - {START}:
        with contextlib.suppress(UsageError):  # an objective of one's own that is not in this command
            keys[label] = _key_of_run(settings_of(cfg, named.get(label, label)), key)
    ours = [
        path.parent.name.rpartition("-")[2] == keys.get(run.objective) for path, run in zip(found, runs, strict=True)
    ]
    runs = list(itertools.compress(runs, ours))
    if others := ours.count(False):
        say(f"{out}: {others} results with other data, vocabulary or recipe are left there and not counted")
    first = label_of(cfg.objectives[0])
    told = comparison.summarise(runs, speeds, first)
    rows = {f"{s.objective}, rate {s.lr:g}": f"{s.told} %   {s.seconds:,.0f} s" for s in told if s.kind == "runs"}
    say(table(rows, "mean over the judges, and deviation over seeds; time of a run"))
    summaries = [s.card() for s in told]
    write_text(out / "compare.json", json.dumps({"speeds": speeds, "summaries": summaries}, indent=2) + "\n")
    recipe = load_recipe(cfg.recipe)
    page = comparison.write_report(out, runs, told, f"{recipe.backbone} at {recipe.image_size} px on {cfg.data}", first)
    say(f"{page}: the comparison")
    return page
