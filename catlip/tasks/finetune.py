"""Full fine-tuning of an encoder for classification, with one class a picture or several. The verb `finetune`."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from catlip.data.batches import ClassBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order, samples_at
from catlip.data.steps import CurriculumConfig, Steps
from catlip.data.subsets import fraction_of_each_class, subset, with_classes
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, read_names, rows_of
from catlip.evaluation.classification import evaluate
from catlip.evaluation.features import features
from catlip.evaluation.transfer_init import ALPHA, TransferRows, match_rows, told, transfer_rows
from catlip.models.augment import AugmentConfig, RangeAugment
from catlip.models.encoder import Encoder
from catlip.models.weights import ENCODER_FOLDER, Weights, fingerprint, load, open_weights
from catlip.notices import say
from catlip.objectives.classes import Classes, ClassObjective
from catlip.objectives.synsets import log_odds
from catlip.training.distributed import World, joined
from catlip.training.hardware import default_workers, device_peak, train_flops
from catlip.training.log import append_json, table
from catlip.training.loop import LoopConfig
from catlip.training.optim import OptimConfig
from catlip.training.run import budget_of, carry_out, require
from catlip.training.runfolder import key_of
from catlip.training.task import Task

EPOCHS = 10.0  # where no budget is given
LEVELLED = 256  # pictures over which transferred rows are put on one level
TOLD = {
    "top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "mAP": "mean average precision",
    "mAP_voc07": "by VOC07's eleven points", "mAP_micro": "of all classes as one", "F1_micro": "F1 over all decisions",
    "F1_macro": "F1 a class",
}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Look:
    """What is measured during the run. It decides nothing about the training."""

    watch_limit: int = 2000  # pictures of --test, drawn at random; 0: none
    watch_every: int = 0  # samples between looks; 0: ten looks a run
    track: tuple[str, ...] = ()  # beside TensorBoard: wandb, trackio


Kind = Literal["auto", "single", "multi"]


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of `catlip finetune`. The defaults suit a few thousand pictures; for ImageNet, Places365 and COCO there
    are recipes: --recipe imagenet_224, imagenet_512, places365_224, places365_512, coco_multilabel."""

    run: str  # where the encoder comes from: run folder, model folder, timm:NAME, hf-hub:ORG/NAME
    train: str  # tars (KEY.jpg, KEY.cls), a folder a class, a CSV (image,labels; `;` between labels), a COCO .json
    test: str
    out: str  # run folder; the same command again goes on where it stopped
    untrained: bool = False  # random weights of the same architecture, for a baseline
    classes: str | None = None  # class names, one a line in the order of the labels' numbers; default: those of --train
    labels: Kind = "auto"  # classes of a picture: single, multi; auto: multi if one of --train has two
    image_col: str | None = None  # tables: column with the paths of the pictures
    label_col: str | None = None  # tables: column with the labels
    init: Literal["random", "transfer"] = "random"  # of the classifier; transfer: rows of the run's own classifier
    alpha: float = ALPHA  # of --init transfer: least WordNet path similarity of a synset that stands in
    image_size: int = 0  # pixels; 0: the encoder's own
    fraction: float = 1.0  # share of the training pictures of every class
    fractions: str = ""  # several of them, as 0.01,0.1,1, each with --seeds random parts: a curve, drawn
    seeds: int = 1  # with other seeds as often as this; with --init transfer, random beside it
    samples: int = 0  # budget: pictures seen, repetitions counted; or --epochs
    epochs: float = 0.0  # budget: times the training set is seen; neither: 10
    batch_size: int = 64  # of all processes together
    drop_path: float = 0.0  # share of the residual branches that are skipped at the last layer, less below it
    wise: float = 1.0  # weights used: 0 those of the start, 1 the fine-tuned ones, between them a mixture (2109.01903)
    center: float = 1.0  # crop_pct that the encoder gets: share of the shorter side that testing sees
    seed: int = 0
    workers: int = 0  # decoding processes of each training process; 0: what the cores allow
    device: str = "auto"  # auto, cpu, cuda, mps
    accept_changes: bool = False  # go on with a run although its data or settings changed
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.3, 1.0)))
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    ranges: AugmentConfig = field(default_factory=AugmentConfig)
    objective: Classes = field(default_factory=Classes)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=5e-4, betas=(0.9, 0.999), warmup=0.1, layer_decay=0.75)
    )
    loop: LoopConfig = field(default_factory=LoopConfig)
    watch: Look = field(default_factory=Look)


@dataclass(slots=True)
class Sets:
    """What is learned and what is tested, both in the same classes."""

    train: Dataset
    test: Dataset
    names: list[ClassName]
    notes: list[str]  # what should be said of them

    @property
    def multi(self) -> bool:
        return self.train.multi


def finetune(cfg: FinetuneConfig) -> dict[str, Any] | None:
    """Measures on the test set, in percent, and what led to them: a line of OUT/results.jsonl. None if stopped early.

    OUT/encoder has the classifier. Raises UsageError for a mistake in the configuration, before anything is written.
    """
    with joined(cfg.device) as world:
        return _finetune(cfg, world)


def _finetune(cfg: FinetuneConfig, world: World) -> dict[str, Any] | None:
    began = time.perf_counter()
    require(cfg, "run", "train", "test", "out")
    for option in ("fraction", "wise", "center"):
        if not 0 <= getattr(cfg, option) <= 1 or (option != "wise" and not getattr(cfg, option)):
            raise UsageError(f"`{option}` is a share between 0 and 1, not {getattr(cfg, option)}")
    sets, weights = open_sets(cfg), open_weights(cfg.run, cfg.untrained)
    names = matched(cfg, sets)
    trained = _train(cfg, world, sets, weights)
    if not world.main or trained is None:
        return None
    task = make_task(cfg, sets, weights)
    task.load_state_dict(between(task.state_dict(), trained, cfg.wise))
    result = _finish(cfg, sets, task, world.device, weights)
    result |= {"names": names} if names else {}
    result["seconds"] = round(time.perf_counter() - began, 1)
    append_json(Path(cfg.out) / "results.jsonl", result)
    return result


def open_sets(cfg: FinetuneConfig) -> Sets:
    """Both sets, opened and checked. Raises UsageError."""
    train = _open(cfg, cfg.train, {"auto": None, "single": False, "multi": True}[cfg.labels])
    test = _open(cfg, cfg.test, train.multi)
    if cfg.classes:
        names = read_names(cfg.classes)
        train, test = (
            _named(data, names, cfg.classes, option) for data, option in ((train, "`train`"), (test, "`test`"))
        )
    else:
        test = with_classes(test, train.classes, field="`test`")
        names = [ClassName(name) for name in train.classes]
    if cfg.fraction < 1:
        train = fraction_of_each_class(train, cfg.fraction, cfg.seed)
    learned, tested = train.counts() > 0, test.counts() > 0
    if not train.multi and learned.sum() < 2:
        only = names[int(learned.argmax())].name
        raise UsageError(f"`train` {cfg.train} has a single class, {only!r}; two or more are needed")
    if len(train) < 2 or not tested.any():
        which, what = ("train", "a single picture") if len(train) < 2 else ("test", "not one label")
        raise UsageError(f"`{which}` {getattr(cfg, which)} has {what}; that is too little")
    hopeless = [name.name for name, here, there in zip(names, learned, tested, strict=True) if there and not here]
    if hopeless and not train.multi:
        raise UsageError(
            f"`train` {cfg.train} has no picture of {len(hopeless)} classes that `test` has, e.g. {hopeless[0]!r}"
        )
    notes = [f"`test`: {test.described}"] if test.troubles else []
    for option, some in (("`train`", learned), ("`test`", tested)):
        if missing := [name.name for name, here in zip(names, some, strict=True) if not here]:
            what = "they cannot be learned" if option == "`train`" else "nothing is measured of them"
            many = f"{len(missing)} of {len(names)} classes"
            notes.append(f"{option} has no picture of {many}, e.g. {missing[0]!r}: {what}")
    return Sets(train, test, names, notes)


def _open(cfg: FinetuneConfig, data: str, multi: bool | None) -> Dataset:
    return open_dataset(data, target="classes", image_col=cfg.image_col, label_col=cfg.label_col, multi=multi)


def _named(data: Dataset, names: list[ClassName], file: str, option: str) -> Dataset:
    """Numbered as the list of names is. Raises UsageError for labels that are not in it, or mean the same."""
    rows = rows_of(data.classes, names, file, f"{option} {data.name}")
    met: dict[int, str] = {}
    for label, row in zip(data.classes, rows, strict=True):
        if row in met:
            raise UsageError(f"{option} {data.name}: {met[row]!r} and {label!r} are both {names[row].name!r}")
        met[row] = label
    return with_classes(data, [name.name for name in names], rows)


def make_task(cfg: FinetuneConfig, sets: Sets, weights: Weights) -> Task:
    """Encoder, head and augmentation with their initial weights: a function of settings and data alone."""
    torch.manual_seed(cfg.seed)
    encoder = weights.build(
        image_size=cfg.image_size,
        any_size=bool(cfg.curriculum.scales or cfg.curriculum.low_res),
        drop_patches=cfg.curriculum.patch_keep < 1,
        drop_path=cfg.drop_path,
    )
    encoder.check_sizes(*cfg.curriculum.sizes)
    encoder.backbone.pretrained_cfg["crop_pct"] = cfg.center
    objective = ClassObjective(encoder, make_head(cfg, encoder, sets, weights), cfg.objective, multi=sets.multi)
    if cfg.loop.compile:
        encoder.compile()
    if cfg.loop.checkpointing:
        encoder.backbone.set_grad_checkpointing(True)
    return Task(objective, RangeAugment(cfg.ranges.psnr) if cfg.ranges.range_augment else None)


def make_head(cfg: FinetuneConfig, encoder: Encoder, sets: Sets, weights: Weights) -> nn.Linear:
    """The classifier before training. weights: with the rows of the classifier that the encoder came with."""
    head = nn.Linear(encoder.width, len(sets.names))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    if sets.multi:  # start at each class's frequency, instead of at "every picture shows half of everything"
        head.bias.data = log_odds(sets.train.counts().tolist(), len(sets.train))
    if cfg.init == "transfer":
        rows = transferred(cfg, encoder, sets)
        head.weight.data = rows.weight
        head.bias.data += rows.bias
    return head


def matched(cfg: FinetuneConfig, sets: Sets) -> dict[str, str]:
    """Which rows each class starts from, for people; nothing for a random classifier. Raises UsageError."""
    if cfg.init == "random":
        return {}
    if cfg.untrained:
        raise UsageError("`init` transfer takes rows of a classifier that was trained; `untrained` has none")
    if all(entry.name.isdecimal() for entry in sets.names):
        raise UsageError(
            f"`train` {cfg.train}: its labels are numbers; `init` transfer needs `classes` names.txt, one name or wnid "
            "a line in their order"
        )
    encoder = load(cfg.run)
    names = told(match_rows(encoder, cfg.run, sets.names, cfg.alpha), encoder)
    say(table(names, f"{cfg.run}: class -> rows of its classifier"))
    return names


def transferred(cfg: FinetuneConfig, encoder: Encoder, sets: Sets) -> TransferRows:
    """Rows of the classifier that the encoder came with, levelled over some of the training pictures."""
    count = min(LEVELLED, len(sets.train))
    some = subset(sets.train, np.sort(samples_at(np.arange(count), len(sets.train), cfg.seed)))
    pooled, _ = features(encoder, some, torch.device("cpu"))
    return transfer_rows(load(cfg.run), cfg.run, sets.names, pooled, alpha=cfg.alpha, seed=cfg.seed)


def _train(cfg: FinetuneConfig, world: World, sets: Sets, weights: Weights) -> dict[str, Tensor] | None:
    """The trained weights, on the main process; None if the run was asked to stop."""
    task = make_task(cfg, sets, weights)
    if world.main:
        for note in sets.notes:
            say(note)
        if cfg.untrained:
            say(f"{weights.architecture} with random weights")
    encoder, train = task.encoder, sets.train
    given = cfg if cfg.samples or cfg.epochs else replace(cfg, epochs=EPOCHS)
    budget = budget_of(given, len(train))
    steps = Steps(
        cfg.curriculum, budget=budget, batch_size=cfg.batch_size, image_size=encoder.image_size, seed=cfg.seed
    )
    if min(batch for batch, _ in steps.shapes()) < world.size:
        raise UsageError(f"`batch_size` {cfg.batch_size} gives {world.size} processes less than a picture each")
    order = Order([(len(train), 1.0)], cfg.seed)
    workers = cfg.workers or default_workers(world.local_size, world.device)
    batches = ClassBatches(train, order, steps, crop=cfg.crop, rank=world.rank, world=world.size)
    peak = device_peak(world.device) * world.size
    return carry_out(
        task,
        Loader(batches, workers),
        world,
        cfg,
        budget=budget,
        facts=_facts(cfg, sets, weights, budget),
        begin=lambda out: None,
        watch=make_watch(cfg, sets.test, world.device),
        watch_every=cfg.watch.watch_every,
        track=cfg.watch.track,
        peak=peak,
        flops=train_flops(encoder.architecture, encoder.image_size, len(sets.names)) if peak else 0.0,
        described=f"{train.described} to learn, {len(sets.test):,} to test; {encoder.architecture} at "
        f"{encoder.image_size} px on {world.size} x {world.device.type}, batch {cfg.batch_size:,}, {workers} loader "
        "workers",
    )


def _facts(cfg: FinetuneConfig, sets: Sets, weights: Weights, budget: int) -> dict[str, Any]:
    """What must be the same for a run that goes on."""
    return {
        "init": fingerprint(cfg.run, cfg.untrained),
        "backbone": weights.architecture,
        "data": sets.train.fingerprint(),
        "budget": budget,
        "class_list": hashlib.sha256("\n".join(name.name for name in sets.names).encode()).hexdigest()[:12],
    }


def curve_key(cfg: FinetuneConfig) -> str:
    """Of everything that decides the points of a curve, up to share, seed and classifier. Raises UsageError."""
    one = replace(cfg, fraction=1.0, fractions="", seeds=1, seed=0, init="random")
    sets = open_sets(one)
    facts = _facts(one, sets, open_weights(cfg.run, cfg.untrained), budget=0)
    return key_of(one, {**facts, "test": sets.test.fingerprint(), "wise": cfg.wise, "center": cfg.center})


def make_watch(
    cfg: FinetuneConfig, test: Dataset, device: torch.device
) -> Callable[[nn.Module, int], dict[str, float]] | None:
    """A function of (task, samples seen) that measures on some of the test pictures, the same ones every time."""
    count = min(cfg.watch.watch_limit, len(test))
    if not count:
        return None
    some = subset(test, np.sort(samples_at(np.arange(count), len(test), seed=0)))
    if not len(some.labels):  # multi-label, and by chance not one picture has a label
        some = test

    def watch(task: nn.Module, seen: int) -> dict[str, float]:
        return evaluate(task.get_submodule("objective"), some, device)

    return watch


def between(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """WiSE-FT (arXiv 2109.01903): weights on the way from `start` (0) to `end` (1); whole numbers are the end's."""
    return {
        name: torch.lerp(start[name].float().cpu(), value.float(), share).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in end.items()
    }


def _finish(cfg: FinetuneConfig, sets: Sets, task: Task, device: torch.device, weights: Weights) -> dict[str, Any]:
    """Save the encoder with its classifier, and measure it."""
    objective, out = task.eval().objective, Path(cfg.out)
    names = [name.name for name in sets.names]
    objective.encoder.save(out / ENCODER_FOLDER, objective.head, label_names=names, multi_label=sets.multi)
    unreadable = Unreadable()
    measured = evaluate(task.to(device).objective, sets.test, device, unreadable)
    found = {name: round(value, 2) for name, value in measured.items()}
    tested = len(sets.test) - len(unreadable.reasons)
    result = {
        "task": "finetune",
        **found,
        "classes": len(names),
        "train": len(sets.train),
        "test": tested,
        "fraction": cfg.fraction,
        "head": cfg.init,
        "wise": cfg.wise,
        "image_size": objective.encoder.image_size,
        "data": [cfg.train, cfg.test],
        "encoder": f"{cfg.run}{' untrained' if cfg.untrained else ''}",
        "backbone": weights.architecture,
        **left_out(test=unreadable),
    }
    rows = {
        told: f"{found[name]:.2f} %" + (f" (at most {off:.2f} off)" if (off := found.get(f"{name}_error")) else "")
        for name, told in TOLD.items()
        if name in found
    }
    if not sets.multi:
        often = sets.train.counts().argmax()
        rows["the commonest class of `train`"] = f"{100 * (sets.test.labels == often).mean():.2f} %"
    say(table(rows, f"{out}: {len(names)} classes, {len(sets.train):,} to learn, {tested:,} to test"))
    return result
