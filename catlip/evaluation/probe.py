"""How good are frozen features? A linear probe and kNN evaluation, with all labels or with few of them.

Where an image has several labels, VOC07's protocol: a linear SVM a class.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from statistics import mean, stdev
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from catlip import page
from catlip.config import configure
from catlip.data.class_labels import say_troubles
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_dataset
from catlip.data.subsets import share_of_each, shots_of_each
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, rows_of
from catlip.evaluation.features import cached_features, class_indices, data_name, open_encoder
from catlip.evaluation.knn import knn
from catlip.evaluation.learning_curve import drawn_curves
from catlip.evaluation.linear_probe import linear_probe
from catlip.evaluation.result import NOT_SAVED, Result, Table, percent
from catlip.evaluation.svm_probe import MultiLabelProbeResult, svm_probe
from catlip.evaluation.transfer_init import ALPHA, TransferRows, head_of, match_rows, scale_rows, told
from catlip.evaluation.zero_shot import given_names
from catlip.models.encoder import Encoder
from catlip.models.weights import named, open_weights
from catlip.training.distributed import one_device

FEW = 1000  # images; below, a fifth of them is too few to choose the penalty by
FOLDS = 5


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """Settings of `catlip probe`."""

    run: str  # run or model folder, timm:NAME, hf-hub:ORG/NAME, or NAME=FILE; from Python also an Encoder or a Run
    untrained: bool = False  # the same architecture with random weights, for a baseline
    image_size: int | None = None  # pixels; default: the encoder's own
    train: str  # tars (KEY.jpg and KEY.cls), a folder with a folder a class, a CSV (image,labels), a COCO .json
    test: str  # the same; where pictures have several labels, each class has a linear SVM, by VOC07's protocol
    image_col: str | None = None  # tables: column with the paths of the images
    label_col: str | None = None  # tables: column with the labels
    init: Literal["random", "transfer"] = "random"  # transfer: Transfer Init, compared with a random start
    classes: str | None = None  # names for --init transfer, one a line in the order of the labels' numbers
    alpha: float = ALPHA  # of --init transfer: least WordNet path similarity of a synset that stands in
    fraction: float = 1.0  # share of each class' training pictures to learn from, at least one of each
    fractions: str = ""  # several fractions, as 0.01,0.1,1: draws a learning curve
    shots: str = ""  # instead of fractions: numbers of training pictures per class, as 1,2,4,8,16
    seeds: int = 5  # number of random parts to measure for each fraction or number of shots
    out: str | None = None  # the curve's page; default: RUN/efficiency.html
    neighbours: int = 20  # k of kNN evaluation
    seed: int = 0  # of parts, of the held-out split that chooses the penalty, and of untrained weights
    cache: bool = True  # whether features are cached and reused
    device: str = "auto"


@dataclass(kw_only=True)
class CurvePoint:
    """Accuracies in percent after learning from some of the training set: one a random part of it."""

    told: str  # "1 %", "4 a class"
    share: float  # of the training set
    pictures: int
    probes: dict[str, list[float]] = field(default_factory=dict)  # how the classifier began -> of the linear probe
    knn: list[float] = field(default_factory=list)
    penalties: dict[str, list[float]] = field(default_factory=dict)  # chosen for each

    @property
    def gain(self) -> list[float]:
        """Of Transfer Init over a random start, part by part."""
        pairs = zip(self.probes.get("transfer", []), self.probes["random"], strict=False)
        return [transfer - random for transfer, random in pairs]

    def to_json(self) -> dict[str, Any]:
        each = (*self.probes.items(), ("knn", self.knn))
        lists = {name: [round(value, 2) for value in found] for name, found in each}
        return {"told": self.told, "share": self.share, "pictures": self.pictures, **lists}


@dataclass(kw_only=True)
class ProbeResult(Result):
    """Accuracy in percent of a linear probe and of kNN evaluation, of the largest part that was learned from."""

    task: ClassVar[str] = "probe"
    heading: ClassVar[str] = "How good are the features?"

    linear_probe: float
    knn: float
    penalty: float  # of the probe, chosen on the training set
    classes: int
    train: int  # images
    test: int
    image_size: int
    data: list[str]  # training set, test set
    curve: list[CurvePoint] = field(default_factory=list)  # where only parts of the training set were learned from
    init: str = "random"  # or transfer: the penalty pulls towards rows of the encoder's own classifier
    alpha: float | None = None  # of Transfer Init
    names: dict[str, str] = field(default_factory=dict)  # class -> its rows, of Transfer Init
    neighbours: int = field(default=20, metadata=NOT_SAVED)

    @property
    def page_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "efficiency.html" if len(self.curve) > 1 else ""

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | ({"curve": [point.to_json() for point in self.curve]} if self.curve else {})

    def to_clip_benchmark(self) -> dict[str, Any]:
        """The linear probe's accuracy; kNN has no name there, and neither have parts of the training set."""
        return self.as_clip_benchmark("linear_probe", self.data[1], {"acc1": self.linear_probe})

    def tables(self) -> list[Table]:
        chance = ["chance", percent(100 / self.classes)]
        nearest = f"{self.neighbours} nearest"
        title = f"{self.encoder}: {self.classes} classes, {{}} to train on, {self.test:,} to test"
        if not self.curve:
            rows = [["linear probe", percent(self.linear_probe), f"(penalty {self.penalty:g})"]]
            return [Table(title.format(f"{self.train:,}"), [*rows, [nearest, percent(self.knn)], chance])]
        rows, several = [], max(len(point.knn) for point in self.curve)
        for point in self.curve:
            cells = [spread(point.probes["random"])]
            if "transfer" in point.probes:
                cells += [spread(point.probes["transfer"]), spread(point.gain, sign=True)]
            rows.append([f"{point.told}, {point.pictures:,}", *cells, spread(point.knn)])
        transfer = ["Transfer Init", "gain"] if self.init == "transfer" else []
        header = ["labels", "linear probe", *transfer, nearest]
        times = f"{several} random parts" if several > 1 else "all"
        found = [Table(title.format(times), [*rows, chance], header)]
        if self.names:
            found.append(
                Table("Classes, and the rows of the classifier that they start from", list(self.names.items()))
            )
        return found

    def drawings(self) -> list[page.Html]:
        return drawn_curves([self.to_json()]) if len(self.curve) > 1 else []


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and, of several, their deviation."""
    found = f"{mean(values):{'+' if sign else ''}.2f}"
    return found + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") + ("" if sign else " %")


def probe(
    encoder: Any = None, train: Any = None, test: Any = None, *, config: ProbeConfig | None = None, **settings: Any
) -> ProbeResult | MultiLabelProbeResult:
    """Accuracy in percent of a linear probe and of kNN evaluation on frozen features.

    encoder: an Encoder, a Run, or what `catlip.load` takes. train, test: labelled images, as `catlip.open` takes them.
    settings: fields of `ProbeConfig`. Where the encoder has a folder, a line is added to its results.jsonl. Raises
    UsageError for a mistake in the settings, before images are embedded wherever it can be told by then.

        catlip.probe("runs/a", "photos/train", "photos/test").linear_probe
    """
    began = time.perf_counter()
    cfg = configure(ProbeConfig, config, run=encoder, train=train, test=test, **settings)
    shares, shots = wanted_amounts(cfg)
    learned = _opened(cfg, cfg.train)
    if learned.multi:
        return _probe_multilabel(cfg, learned, began)
    tested = _opened(cfg, cfg.test, multi=False)
    say_troubles(learned, tested)
    classes, y_train, y_test = class_indices(learned, tested)
    for number in shots:
        shots_of_each(learned.labels, number, cfg.seed, classes)
    model = _encoder(cfg)
    matches, rows = [], None
    if cfg.init == "transfer":
        matches = match_rows(model, cfg.run, transfer_names(learned, classes, cfg.classes), cfg.alpha)
        rows = partial(scale_rows, matches, head_of(model)[0])

    def starts(pooled: Tensor, seed: int) -> dict[str, TransferRows | None]:
        return {"random": None} if rows is None else {"random": None, "transfer": rows(pooled, seed=seed)}

    device, bad_train, bad_test = one_device(cfg.device), Unreadable(), Unreadable()
    x_train, kept = cached_features(model, learned, device, bad_train, cache=cfg.cache)
    x_test, kept_test = cached_features(model, tested, device, bad_test, cache=cfg.cache)
    data = (x_train, y_train[kept], x_test, y_test[kept_test])
    labels = learned.labels
    parts = [
        Part(f"{100 * share:g} %", kept, partial(share_of_each, labels, share) if share < 1 else None)
        for share in shares
    ]
    parts += [Part(f"{n} a class", kept, partial(shots_of_each, labels, n, classes=classes)) for n in shots]
    curve = [measure(cfg, data, part, starts) for part in parts]
    last = curve[-1]
    transferred = {"init": cfg.init, "alpha": cfg.alpha, "names": told(matches, model)} if matches else {}
    return ProbeResult(
        linear_probe=round(mean(last.probes[cfg.init]), 2),
        knn=round(mean(last.knn), 2),
        penalty=last.penalties[cfg.init][0],
        classes=len(classes),
        train=last.pictures,
        test=len(kept_test),
        image_size=model.image_size,
        data=[data_name(cfg.train, learned), data_name(cfg.test, tested)],
        encoder=named(cfg.run, cfg.untrained),
        curve=curve if len(curve) > 1 or matches or len(last.knn) > 1 else [],
        neighbours=cfg.neighbours,
        **transferred,
        **left_out(train=bad_train, test=bad_test),
    ).saved("" if cfg.untrained else cfg.run, began)  # what is not the run's is not its result


@dataclass(frozen=True, slots=True)
class Part:
    """A random part of the training set, another one for each seed, or all of it."""

    told: str  # "1 %", "4 a class"
    kept: Tensor  # int64 [N]: the image of each row of the features
    choose: Callable[[int], np.ndarray] | None = None  # seed -> images; None: all

    def rows(self, seed: int) -> Tensor:
        """Rows of the features of the part's images."""
        if self.choose is None:
            return torch.arange(len(self.kept))
        return torch.isin(self.kept, torch.from_numpy(self.choose(seed))).nonzero().flatten()


def measure(
    cfg: ProbeConfig,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    part: Part,
    starts: Callable[[Tensor, int], dict[str, TransferRows | None]],
) -> CurvePoint:
    """Linear probe and kNN on as many random parts of the training set as there are seeds, or once on the whole.

    data: x and y to train on, x and y to test. starts(x, seed): how the classifier may begin; None: at zero.
    """
    x, y, *test = data
    point = CurvePoint(told=part.told, share=1.0, pictures=len(y))
    for seed in range(cfg.seed, cfg.seed + (cfg.seeds if part.choose else 1)):
        some = part.rows(seed)
        mine = x[some], y[some]
        folds = FOLDS if len(some) < FEW and part.choose else 1
        for init, start in starts(mine[0], seed).items():
            prior = (start.weight, start.bias) if start is not None else None
            right, penalty = linear_probe(*mine, *test, seed=seed, prior=prior, folds=folds)
            point.probes.setdefault(init, []).append(100 * right.float().mean().item())
            point.penalties.setdefault(init, []).append(penalty)
        point.knn.append(knn(*mine, *test, k=cfg.neighbours))
        point.share, point.pictures = len(some) / len(y), len(some)
    return point


def _opened(cfg: ProbeConfig, data: Any, multi: bool | None = None) -> Dataset:
    return open_dataset(data, target="classes", image_col=cfg.image_col, label_col=cfg.label_col, multi=multi)


def _probe_multilabel(cfg: ProbeConfig, train: Dataset, began: float) -> MultiLabelProbeResult:
    """Several labels an image: another protocol, on the whole training set. Raises UsageError."""
    defaults = {one.name: one.default for one in fields(ProbeConfig)}
    for name in ("fractions", "shots", "fraction", "init"):
        if getattr(cfg, name) != defaults[name]:
            where = f"`train` {train.name}"
            raise UsageError(f"`{name}` is for sets with one label a picture; pictures of {where} have several")
    test = _opened(cfg, cfg.test, multi=True)
    say_troubles(train, test)
    result = svm_probe(_encoder(cfg), train, test, one_device(cfg.device), seed=cfg.seed, cache=cfg.cache)
    result.encoder = named(cfg.run, cfg.untrained)
    result.data = [data_name(cfg.train, train), data_name(cfg.test, test)]
    return result.saved("" if cfg.untrained else cfg.run, began)  # what is not the run's is not its result


def wanted_amounts(cfg: ProbeConfig) -> tuple[list[float], list[int]]:
    """(shares of the training set, images of each class), one of them empty. Raises UsageError."""
    ways = {"`fraction`": cfg.fraction != 1, "`fractions`": cfg.fractions, "`shots`": cfg.shots}
    if len(taken := [way for way, given in ways.items() if given]) > 1:
        raise UsageError(f"`fraction`, `fractions` and `shots` are three ways; found {', '.join(taken)}")
    shares = numbers_in(cfg.fractions, "`fractions`", float) if cfg.fractions else [cfg.fraction]
    shots = numbers_in(cfg.shots, "`shots`", int) if cfg.shots else []
    for share in [] if shots else shares:
        if not 0 < share <= 1:
            raise UsageError(f"`fraction` {share:g}: a share of the training set is above 0 and at most 1")
    if min(shots, default=1) < 1:
        raise UsageError(f"`shots` {cfg.shots}: a class needs a picture")
    if cfg.seeds < 1:
        raise UsageError(f"`seeds` {cfg.seeds}: at least one random part has to be measured")
    if cfg.neighbours < 1:
        raise UsageError(f"`neighbours` {cfg.neighbours}: 1 or more")
    return ([], shots) if shots else (shares, [])


def numbers_in(text: Any, option: str, kind: type) -> list[Any]:
    """1,2,4 -> [1, 2, 4], ascending; also of a list, or of one number. Raises UsageError."""
    parts = text.replace(" ", ",").split(",") if isinstance(text, str) else text
    try:
        found = {kind(part) for part in (parts if isinstance(parts, list | tuple) else [parts]) if part != ""}
    except (TypeError, ValueError):
        found = set()
    if not found:
        raise UsageError(f"{option} {text!r}: expected numbers with commas between them")
    return sorted(found)


def transfer_names(train: Dataset, classes: Sequence[str], given: Any) -> list[ClassName]:
    """What each class is called: by a file, a list, or its label. Raises UsageError for numbers without names, and for
    names that do not fit the labels."""
    if not given and all(label.isdecimal() for label in classes):
        raise UsageError(
            f"`train` {train.name}: its labels are numbers; `init` transfer needs `classes` names.txt, one name or "
            "wnid a line in their order"
        )
    names, file = given_names(train, given)
    places = rows_of(classes, names, file, f"`train` {train.name}")
    by_number = all(label.isdecimal() and place == int(label) for label, place in zip(classes, places, strict=True))
    if by_number and len(names) != (highest := max(map(int, classes))) + 1:
        raise UsageError(f"`classes` {file} has {len(names)} names for labels from 0 to {highest}")
    return [names[place] for place in places]


def _encoder(cfg: ProbeConfig) -> Encoder:
    if not cfg.untrained:
        return open_encoder(cfg.run, cfg.image_size)
    torch.manual_seed(cfg.seed)
    return open_weights(cfg.run, untrained=True).build(image_size=cfg.image_size or 0)
