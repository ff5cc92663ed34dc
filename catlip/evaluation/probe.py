"""How good are frozen features? A linear probe and a nearest-neighbour vote, with all labels or with few of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from catlip.data.class_labels import say_troubles
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_dataset
from catlip.data.subsets import share_of_each, shots_of_each, with_classes
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, read_names, rows_of
from catlip.evaluation.features import class_indices, kept_features, positives
from catlip.evaluation.knn import knn
from catlip.evaluation.linear_probe import fit_logistic as fit_logistic
from catlip.evaluation.linear_probe import linear_probe as linear_probe
from catlip.evaluation.linear_probe import voc07_svm
from catlip.evaluation.multilabel import exact_metrics
from catlip.evaluation.transfer_init import ALPHA, TransferRows, head_of, match_rows, scale_rows, told
from catlip.evaluation.zero_shot import own_names
from catlip.models.encoder import Encoder
from catlip.models.weights import load
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import append_json, table

FEW = 1000  # pictures; below, a fifth of them is too few to choose the penalty by
FOLDS = 5


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """Settings of `catlip probe`."""

    run: str | None = None  # run folder
    encoder: str | None = None  # instead of a run: a model folder, or timm:NAME
    untrained: bool = False  # with --encoder timm:NAME: random weights, for a baseline
    image_size: int | None = None  # pixels; default: the encoder's own
    train: str  # tars (KEY.jpg and KEY.cls), a folder with a folder a class, a CSV (image,labels), a COCO .json
    test: str  # the same; where pictures have several labels, each class has a linear SVM, by VOC07's protocol
    init: Literal["random", "transfer"] = "random"  # transfer: pull towards rows of the classifier; beside it, random
    classes: str | None = None  # names for --init transfer, one a line in the order of the labels' numbers
    alpha: float = ALPHA  # of --init transfer: least WordNet path similarity of a synset that stands in
    fraction: float = 1.0  # share of each class' training pictures to learn from, at least one of each
    fractions: str = ""  # several of them, as 0.01,0.1,1: a curve, drawn
    shots: str = ""  # instead: so many training pictures of each class, as 1,2,4,8,16
    seeds: int = 5  # random parts of the training set to measure, where a part is taken
    out: str | None = None  # the curve's page; default: RUN/efficiency.html
    neighbours: int = 20  # of the nearest-neighbour vote
    seed: int = 0  # of parts, of the held-out split that chooses the penalty, and of untrained weights
    cache: bool = True  # keep features for the next time, and take those that were kept
    device: str = "auto"


@dataclass(kw_only=True, slots=True)
class Amount:
    """Accuracies, in percent, with some of the training set; a number per random part of it."""

    told: str  # "1 %", "4 a class"
    share: float  # of the training set
    pictures: int
    probes: dict[str, list[float]] = field(default_factory=dict)  # init -> accuracies of the linear probe
    knn: list[float] = field(default_factory=list)
    penalties: dict[str, list[float]] = field(default_factory=dict)

    @property
    def gain(self) -> list[float]:
        """Of Transfer Init over a random start, part by part."""
        pairs = zip(self.probes.get("transfer", []), self.probes["random"], strict=False)
        return [transfer - random for transfer, random in pairs]


def probe(cfg: ProbeConfig) -> dict[str, Any]:
    """Accuracy of a linear probe and of a kNN vote, in percent; one line is added to the run's results.jsonl.

    Raises UsageError for a mistake in the settings, before pictures are embedded wherever it can be told by then.
    """
    began = time.perf_counter()
    shares, shots = wanted_amounts(cfg)
    train = open_dataset(cfg.train, target="classes")
    if train.multi:
        return _of_several(cfg, train)
    test = open_dataset(cfg.test, target="classes", multi=False)
    say_troubles(train, test)
    classes, y_train, y_test = class_indices(train, test)
    for number in shots:
        shots_of_each(train.labels, number, cfg.seed, classes)
    encoder = open_encoder(cfg)
    rows, matches = None, []
    if cfg.init == "transfer":
        names = names_of(train, classes, cfg.classes)
        matches = match_rows(encoder, cfg.run or cfg.encoder or "", names, cfg.alpha)
        rows = partial(scale_rows, matches, head_of(encoder)[0])
    device, bad_train, bad_test = one_device(cfg.device), Unreadable(), Unreadable()
    x_train, kept = kept_features(encoder, train, device, bad_train, keep=cfg.cache)
    x_test, tested = kept_features(encoder, test, device, bad_test, keep=cfg.cache)
    data = (x_train, y_train[kept], x_test, y_test[tested])
    parts = [(f"{100 * share:g} %", partial(share_of_each, train.labels, share), share == 1) for share in shares]
    parts += [(f"{n} a class", partial(shots_of_each, train.labels, n, classes=classes), False) for n in shots]
    amounts = [measure(cfg, data, told, partial(_rows, kept, part), rows, whole) for told, part, whole in parts]
    result = _result(cfg, amounts, len(classes), data, encoder) | left_out(train=bad_train, test=bad_test)
    if rows is not None:
        result |= {"init": "transfer", "alpha": cfg.alpha, "names": told(matches, encoder)}
    result["seconds"] = round(time.perf_counter() - began, 1)
    _say(cfg, result, amounts)
    if cfg.run:
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result


def _of_several(cfg: ProbeConfig, train: Dataset) -> dict[str, Any]:
    """Several labels a picture: another protocol, on the whole training set."""
    for option in ("fractions", "shots", "fraction", "init"):
        if getattr(cfg, option) != ProbeConfig.__dataclass_fields__[option].default:
            raise UsageError(
                f"`{option}` is for sets with one label a picture; pictures of `train` {cfg.train} have several"
            )
    test = open_dataset(cfg.test, target="classes", multi=True)
    say_troubles(train, test)
    found = probe_labels(
        open_encoder(cfg), train, test, one_device(cfg.device), name=encoder_name(cfg), seed=cfg.seed, keep=cfg.cache
    )
    found["data"] = [cfg.train, cfg.test]
    if cfg.run:
        append_json(Path(cfg.run) / "results.jsonl", found)
    return found


def wanted_amounts(cfg: ProbeConfig) -> tuple[list[float], list[int]]:
    """(shares of the training set, pictures of each class), one of them empty. Raises UsageError."""
    named = [f"`{way}`" for way in ("fractions", "shots") if getattr(cfg, way)]
    if (named and cfg.fraction != 1) or len(named) > 1:
        raise UsageError(f"`fraction`, `fractions` and `shots` are three ways; found {', '.join(named)}")
    shares = numbers_in(cfg.fractions, "`fractions`", float) if cfg.fractions else [cfg.fraction]
    shots = numbers_in(cfg.shots, "`shots`", int) if cfg.shots else []
    for share in [] if shots else shares:
        if not 0 < share <= 1:
            raise UsageError(f"`fraction` {share:g}: a share of the training set is above 0 and at most 1")
    if min(shots, default=1) < 1:
        raise UsageError(f"`shots` {cfg.shots}: a class needs a picture")
    if cfg.seeds < 1:
        raise UsageError(f"`seeds` {cfg.seeds}: at least one random part has to be measured")
    return ([], shots) if shots else (shares, [])


def numbers_in(text: str, option: str, kind: type) -> list[Any]:
    """1,2,4 -> [1, 2, 4], ascending. Raises UsageError."""
    try:
        return sorted({kind(part) for part in text.replace(" ", ",").split(",") if part})
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected numbers with commas between them") from None


def names_of(train: Dataset, classes: Sequence[str], file: str | None) -> list[ClassName]:
    """What each class is called: by a file, or by its label. Raises UsageError for numbers without a file, and for a
    file that does not fit the labels."""
    if not file and all(label.isdigit() for label in classes):
        raise UsageError(
            f"`train` {train.name}: its labels are numbers; `init` transfer needs `classes` names.txt, one name or "
            "wnid a line in their order"
        )
    names = read_names(file) if file else own_names(train)
    places = rows_of(classes, names, file, f"`train` {train.name}")
    by_number = all(label.isdigit() and place == int(label) for label, place in zip(classes, places, strict=True))
    if by_number and len(names) != (highest := max(map(int, classes))) + 1:
        raise UsageError(f"`classes` {file} has {len(names)} names for labels from 0 to {highest}")
    return [names[place] for place in places]


def _rows(kept: Tensor, part: Callable[..., np.ndarray], seed: int) -> Tensor:
    """Rows of the features of a part's pictures. kept int64 [N]: which picture each row is of; part(seed=): numbers."""
    return torch.isin(kept, torch.from_numpy(part(seed=seed))).nonzero().flatten()


def measure(
    cfg: ProbeConfig, data: tuple[Tensor, Tensor, Tensor, Tensor], told: str, part: Any, rows: Any, whole: bool = False
) -> Amount:
    """Probe and vote on random parts of the training set, or once on the whole.

    data: x and y to train on, x and y to test. part(seed=...): rows of x in a part. rows(pooled): the
    transferred classifier, if that is to be measured beside the random one.
    """
    x, y, *test = data
    amount = Amount(told=told, share=1.0, pictures=len(y))
    for seed in range(cfg.seed, cfg.seed + (1 if whole else cfg.seeds)):
        some = torch.arange(len(y)) if whole else part(seed=seed)
        mine = x[some], y[some]
        folds = FOLDS if len(some) < FEW and not whole else 1
        priors: dict[str, Any] = {"random": None}
        if rows is not None:
            found: TransferRows = rows(mine[0], seed=seed)
            priors["transfer"] = (found.weight, found.bias)
        for init, prior in priors.items():
            accuracy, penalty = linear_probe(*mine, *test, seed=seed, prior=prior, folds=folds)
            amount.probes.setdefault(init, []).append(accuracy)
            amount.penalties.setdefault(init, []).append(penalty)
        amount.knn.append(knn(*mine, *test, k=cfg.neighbours))
        amount.share, amount.pictures = len(some) / len(y), len(some)
    return amount


def _result(cfg: ProbeConfig, amounts: list[Amount], classes: int, data: Any, encoder: Encoder) -> dict[str, Any]:
    """What is written down: the figures of the largest part, and of all if there are several."""
    last = amounts[-1]
    init = "transfer" if "transfer" in last.probes else "random"
    result: dict[str, Any] = {
        "task": "probe",
        "linear_probe": round(mean(last.probes[init]), 2),
        "knn": round(mean(last.knn), 2),
        "penalty": last.penalties[init][0],
        "classes": classes,
        "train": last.pictures,
        "test": len(data[3]),
        "image_size": encoder.image_size,
        "data": [cfg.train, cfg.test],
        "encoder": encoder_name(cfg),
    }
    if len(amounts) > 1 or init == "transfer" or len(last.knn) > 1:
        result["curve"] = [
            {
                "told": a.told,
                "share": a.share,
                "pictures": a.pictures,
                **{name: [round(value, 2) for value in found] for name, found in (*a.probes.items(), ("knn", a.knn))},
            }
            for a in amounts
        ]
    return result


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, their deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") + " %"


def _say(cfg: ProbeConfig, result: dict[str, Any], amounts: list[Amount]) -> None:
    last, chance = amounts[-1], f"{100 / result['classes']:.2f} %"
    title = f"{result['encoder']}: {result['classes']} classes, {{}} to train on, {result['test']:,} to test"
    if "names" in result:
        say(table(result["names"], f"{result['encoder']}: class -> rows of its classifier"))
    if "curve" not in result:
        rows = {
            "linear probe": f"{spread(last.probes['random'])}   (penalty {result['penalty']:g})",
            f"{cfg.neighbours} nearest": spread(last.knn),
            "chance": chance,
        }
        say(table(rows, title.format(f"{last.pictures:,}")))
        return
    lines = {}
    for a in amounts:
        told = [f"linear probe {spread(a.probes['random'])}"]
        if "transfer" in a.probes:
            gain = spread(a.gain).replace(" %", "")
            told += [f"Transfer Init {spread(a.probes['transfer'])} ({'' if gain[0] == '-' else '+'}{gain})"]
        lines[f"{a.told}, {a.pictures:,}"] = "   ".join([*told, f"{cfg.neighbours} nearest {spread(a.knn)}"])
    times = f"{cfg.seeds} random parts" if max(len(a.knn) for a in amounts) > 1 else "all"
    say(table({**lines, "chance": chance}, title.format(times)))


def encoder_name(cfg: ProbeConfig) -> str:
    return cfg.run or f"{cfg.encoder}{' untrained' if cfg.untrained else ''}"


def open_encoder(cfg: ProbeConfig) -> Encoder:
    if bool(cfg.run) == bool(cfg.encoder):
        raise UsageError("name one encoder: a run folder, or `encoder` timm:NAME or a model folder")
    if not cfg.untrained:
        encoder = load(cfg.run or cfg.encoder or "")
        if cfg.image_size:
            encoder.resize(cfg.image_size)
        return encoder
    if not (cfg.encoder or "").startswith("timm:"):
        raise UsageError("`untrained` goes with `encoder` timm:NAME")
    torch.manual_seed(cfg.seed)
    return Encoder.create((cfg.encoder or "").removeprefix("timm:"), image_size=cfg.image_size or 224)


# How good are frozen features where a picture has several labels? VOC07's protocol, for `catlip probe`.


def probe_labels(
    encoder: Encoder, train: Dataset, test: Dataset, device: torch.device, *, name: str, seed: int, keep: bool
) -> dict[str, Any]:
    """A linear SVM a class on pooled features; mAP and F1 in percent, and the costs that were chosen.

    Classes that no training picture has, or all of them, cannot be learned: they are left out, and counted. name: what
    the encoder is called; keep: use the cache of features. Raises UsageError if nothing can be learned, or tested.
    """
    began = time.perf_counter()
    test = with_classes(test, train.classes, field="`test`")
    counts = torch.from_numpy(train.counts())
    learned = (counts > 0) & (counts < len(train))
    if not learned.any() or not test.counts()[learned.numpy()].any():
        which = "test" if learned.any() else "train"
        raise UsageError(f"`{which}` {(test if learned.any() else train).name} has no class that can be told apart")
    bad_train, bad_test = Unreadable(), Unreadable()
    x_train, kept = kept_features(encoder, train, device, bad_train, keep=keep)
    positive = positives(train, kept.tolist())
    x_test, tested = kept_features(encoder, test, device, bad_test, keep=keep)
    learned = positive.any(0) & ~positive.all(0)  # what can be read decides
    found = voc07_svm(x_train, positive[:, learned], x_test, seed=seed)
    truth = positives(test, tested.tolist())[:, learned]
    metrics = {name: round(value, 2) for name, value in exact_metrics(found.scores, truth).items()}
    say(
        table(
            {
                "mean average precision, VOC07's eleven points": f"{metrics['mAP_voc07']:.2f} %",
                "mean average precision": f"{metrics['mAP']:.2f} %",
                "F1 over all decisions": f"{metrics['F1_micro']:.2f} %",
                "a picture's labels, as often as they occur": f"{100 * truth.float().mean():.2f} %",
            },
            f"{name}: {int(learned.sum())} of {len(learned)} classes, {len(kept):,} to train on, "
            f"{len(tested):,} to test",
        )
    )
    return left_out(train=bad_train, test=bad_test) | {
        "task": "probe_labels",
        **metrics,
        "classes": int(learned.sum()),
        "left_out": int((~learned).sum()),
        "costs": found.costs.tolist(),
        "train": len(kept),
        "test": len(tested),
        "encoder": name,
        "image_size": encoder.image_size,
        "seconds": round(time.perf_counter() - began, 1),
    }
