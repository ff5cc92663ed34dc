"""Fine-tuning of an encoder for classification, with one class an image or several."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from catlip.config import configure, opened, plain, required
from catlip.data.batches import Batches, ClassBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_dataset
from catlip.data.order import Order, samples_at
from catlip.data.steps import CurriculumConfig, Steps
from catlip.data.subsets import fraction_of_each_class, some_of, subset, with_classes
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, read_names, rows_of
from catlip.evaluation.classification import ClassificationResult, evaluate
from catlip.evaluation.features import features
from catlip.evaluation.transfer_init import ALPHA, TransferRows, match_rows, told, transfer_rows
from catlip.models.augment import AugmentConfig, built_augment
from catlip.models.encoder import Encoder
from catlip.models.model_folders import ENCODER_FOLDER
from catlip.models.weights import Weights, fingerprint, interpolated, load, named, open_weights
from catlip.notices import say
from catlip.objectives.classes import Classes, ClassObjective
from catlip.objectives.synsets import log_odds
from catlip.training import train as trainer
from catlip.training.distributed import World, joined
from catlip.training.log import table
from catlip.training.optim import OptimConfig
from catlip.training.run import Run
from catlip.training.runfolder import key_of
from catlip.training.task import Evaluation, Task
from catlip.training.train import TrainConfig

Kind = Literal["auto", "single", "multi"]

EPOCHS = 10.0  # where no budget is given
LEVELLED = 256  # images over which transferred rows are put on one level


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(TrainConfig):
    """Settings of `catlip finetune`. The defaults suit a few thousand images; for ImageNet, Places365 and COCO there
    are recipes: --recipe imagenet_224, imagenet_512, places365_224, places365_512, coco_multilabel."""

    run: str  # where the encoder comes from: run folder, model folder, timm:NAME, hf-hub:ORG/NAME
    train: str  # tars (KEY.jpg, KEY.cls), a folder a class, a CSV (image,labels; `;` between labels), a COCO .json
    test: str
    out: str  # run folder; the same command again goes on where it stopped
    untrained: bool = False  # random weights of the same architecture, for a baseline
    classes: str | None = None  # class names, one a line in the order of the labels' numbers; default: those of train
    labels: Kind = "auto"  # classes of an image: single, multi; auto: multi if one of the training images has two
    image_col: str | None = None  # tables: column with the paths of the images
    label_col: str | None = None  # tables: column with the labels
    init: Literal["random", "transfer"] = "random"  # of the classifier; transfer: rows of the run's own classifier
    alpha: float = ALPHA  # of init transfer: least WordNet path similarity of a synset that stands in
    image_size: int = 0  # pixels; 0: the encoder's own
    fraction: float = 1.0  # share of the training images of every class
    fractions: str = ""  # several fractions, as 0.01,0.1,1, each on `seeds` random parts: draws a learning curve
    seeds: int = 1  # number of seeds to repeat with; with init transfer, a random start is measured too
    batch_size: int = 64  # of all processes together
    drop_path: float = 0.0  # stochastic depth: rate at the last layer, falling linearly to 0 at the first
    wise: float = 1.0  # WiSE-FT's alpha: weights on the way from the start (0) to the fine-tuned ones (1) (2109.01903)
    center: float = 1.0  # the encoder's crop_pct: the test's center crop, as a share of the shorter side
    watch_limit: int = 2000  # random images of test to evaluate on during the run; 0: none
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.3, 1.0)))
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    augment: Any = field(default_factory=AugmentConfig)  # or a module on the batch, from Python
    objective: Classes = field(default_factory=Classes)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=5e-4, betas=(0.9, 0.999), warmup=0.1, layer_decay=0.75)
    )


def finetune(
    encoder: Any = None, train: Any = None, test: Any = None, *, config: FinetuneConfig | None = None, **settings: Any
) -> Run:
    """Fine-tune an encoder and its new classifier, and measure both on a test set; or go on with the run in `out`.

    encoder: an Encoder, a Run, or its path or name. train, test: labelled images, as `catlip.open` takes them.
    settings: fields of `FinetuneConfig`. The run's `result` is a `ClassificationResult`, on rank 0; OUT/encoder has the
    classifier. Raises UsageError for a mistake, before anything is written.
    """
    cfg = configure(FinetuneConfig, config, run=encoder, train=train, test=test, **settings)
    required(cfg, "run", "train", "test", "out")
    for name in ("fraction", "wise", "center"):
        if not 0 <= getattr(cfg, name) <= 1 or (name != "wise" and not getattr(cfg, name)):
            raise UsageError(f"`{name}` is a share between 0 and 1, not {getattr(cfg, name)}")
    if not (cfg.samples or cfg.epochs or cfg.hours):
        cfg = replace(cfg, epochs=EPOCHS)
    with joined(cfg.device):
        sets, weights = open_sets(cfg), open_weights(cfg.run, cfg.untrained)
        cfg = opened(cfg, train=sets.train, test=sets.test)
        names = matched(cfg, sets)
        task = make_task(cfg, sets, weights, names)
        for note in sets.notes:
            say(note)
        if cfg.untrained:
            say(f"{weights.architecture} with random weights")
        return trainer.train(task, sets.train, cfg, cfg.out)


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


def open_sets(cfg: FinetuneConfig) -> Sets:
    """Both sets, opened and checked. Raises UsageError."""
    train = _open(cfg, cfg.train, {"auto": None, "single": False, "multi": True}[cfg.labels])
    test = _open(cfg, cfg.test, train.multi)
    if cfg.classes:
        names = read_names(cfg.classes)
        train, test = (
            _named(data, names, cfg.classes, field) for data, field in ((train, "`train`"), (test, "`test`"))
        )
    else:
        test = with_classes(test, train.classes, field="`test`")
        names = [ClassName(name) for name in train.classes]
    if cfg.fraction < 1:
        train = fraction_of_each_class(train, cfg.fraction, cfg.seed)
    learned, tested = train.counts() > 0, test.counts() > 0
    if not train.multi and learned.sum() < 2:
        only = names[int(learned.argmax())].name
        raise UsageError(f"`train` {train.name} has a single class, {only!r}; two or more are needed")
    if len(train) < 2 or not tested.any():
        which, what = ("train", "a single image") if len(train) < 2 else ("test", "not one label")
        raise UsageError(f"`{which}` {getattr(cfg, which)} has {what}; that is too little")
    hopeless = [name.name for name, here, there in zip(names, learned, tested, strict=True) if there and not here]
    if hopeless and not train.multi:
        raise UsageError(
            f"`train` {train.name} has no image of {len(hopeless)} classes that `test` has, e.g. {hopeless[0]!r}"
        )
    notes = [f"`test`: {test.described}"] if test.troubles else []
    for option, some in (("train", learned), ("test", tested)):
        if missing := [name.name for name, here in zip(names, some, strict=True) if not here]:
            what = "they cannot be learned" if option == "train" else "nothing is measured of them"
            many = f"{len(missing)} of {len(names)} classes"
            notes.append(f"`{option}` has no image of {many}, e.g. {missing[0]!r}: {what}")
    return Sets(train, test, names, notes)


def _open(cfg: FinetuneConfig, data: Any, multi: bool | None) -> Dataset:
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


def make_task(cfg: FinetuneConfig, sets: Sets, weights: Weights, names: dict[str, str] | None = None) -> "FinetuneTask":
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
    objective = ClassObjective(encoder, make_head(cfg, encoder, sets), cfg.objective, multi=sets.multi)
    return FinetuneTask(cfg, objective, sets, names or {})


def make_head(cfg: FinetuneConfig, encoder: Encoder, sets: Sets) -> nn.Linear:
    """The classifier before training."""
    head = nn.Linear(encoder.width, len(sets.names))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    if sets.multi:  # start at each class's frequency, instead of at "every image shows half of everything"
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
    say(table(names, f"{named(cfg.run)}: class -> rows of its classifier"))
    return names


def transferred(cfg: FinetuneConfig, encoder: Encoder, sets: Sets) -> TransferRows:
    """Rows of the classifier that the encoder came with, levelled over some of the training images."""
    count = min(LEVELLED, len(sets.train))
    some = subset(sets.train, np.sort(samples_at(np.arange(count), len(sets.train), cfg.seed)))
    pooled, _ = features(encoder, some, torch.device("cpu"))
    return transfer_rows(load(cfg.run), cfg.run, sets.names, pooled, alpha=cfg.alpha, seed=cfg.seed)


class FinetuneTask(Task):
    """Random crops of labelled images with their classes."""

    def __init__(self, cfg: FinetuneConfig, objective: ClassObjective, sets: Sets, names: dict[str, str]) -> None:
        """names: which rows each class started from, for the record."""
        super().__init__(objective, built_augment(cfg.augment), curriculum=cfg.curriculum)
        self.cfg, self.sets, self.names, self.began = cfg, sets, names, time.perf_counter()
        self.start = fingerprint(cfg.run, cfg.untrained)

    def batches(self, dataset: Any, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        return ClassBatches(dataset, order, steps, crop=self.cfg.crop, rank=rank, world=world)

    @property
    def described(self) -> str:
        return f"{len(self.sets.test):,} to test; {self.encoder.architecture} at {self.image_size} px"

    @property
    def n_classes(self) -> int:
        return len(self.sets.names)

    def fingerprint(self) -> dict[str, Any]:
        return {"init": self.start, "backbone": self.encoder.architecture, "class_list": class_hash(self.sets)}

    def evaluation(self, out: Path, world: World) -> Evaluation | None:
        """The measures on some of the test images, the same ones every time."""
        test = self.sets.test
        if not (self.cfg.watch_limit and len(test)):
            return None
        some = some_of(test, self.cfg.watch_limit, seed=0)
        if not len(some.labels):  # multi-label, and by chance not one image has a label
            some = test
        return lambda task: evaluate(task.objective, some, world.device)

    def finish(self, out: Path, world: World) -> ClassificationResult | None:
        """Save the encoder with its classifier, and measure it on the whole test set."""
        if world.rank:
            return None
        cfg, sets = self.cfg, self.sets
        if cfg.wise < 1:
            start = make_task(cfg, sets, open_weights(cfg.run, cfg.untrained)).state_dict()
            self.load_state_dict(interpolated(start, self.state_dict(), cfg.wise))
        names = [name.name for name in sets.names]
        self.encoder.save(out / ENCODER_FOLDER, self.objective.head, label_names=names, multi_label=sets.multi)
        unreadable = Unreadable()
        measured = evaluate(self.objective, sets.test, world.device, unreadable)
        often = sets.train.counts().argmax()
        return ClassificationResult(
            **{name: round(value, 2) for name, value in measured.items()},
            classes=len(names),
            train=len(sets.train),
            test=len(sets.test) - len(unreadable.reasons),
            fraction=cfg.fraction,
            head=cfg.init,
            wise=cfg.wise,
            image_size=self.encoder.image_size,
            data=[plain(cfg.train), plain(cfg.test)],
            encoder=named(cfg.run, cfg.untrained),
            backbone=self.encoder.architecture,
            names=self.names,
            baseline=None if sets.multi else 100 * float((sets.test.labels == often).mean()),
            **left_out(test=unreadable),
        ).saved(out, self.began)


def class_hash(sets: Sets) -> str:
    """Of the class names in their order."""
    return hashlib.sha256("\n".join(name.name for name in sets.names).encode()).hexdigest()[:12]


def curve_key(cfg: FinetuneConfig) -> str:
    """Of everything that decides the points of a curve, up to share, seed and classifier. Raises UsageError."""
    one = replace(cfg, fraction=1.0, fractions="", seeds=1, seed=0, init="random")
    sets = open_sets(one)
    facts = {
        "init": fingerprint(cfg.run, cfg.untrained),
        "backbone": open_weights(cfg.run, cfg.untrained).architecture,
        "data": sets.train.fingerprint(),
        "budget": 0,
        "class_list": class_hash(sets),
    }
    return key_of(one, {**facts, "test": sets.test.fingerprint(), "wise": cfg.wise, "center": cfg.center})
