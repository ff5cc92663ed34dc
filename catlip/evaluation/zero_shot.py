"""Classification by class names alone: through the classifier's synsets, through the text tower, or both.

Head route: a name means synsets, synsets are rows of the classifier (class_names.py). Text route: the mean of the
name's prompts in the space of images and captions (CLIP, arXiv 2103.00020, section 3.1.4).
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.config import configure
from catlip.data.class_labels import say_troubles
from catlip.data.dataset import Dataset, lines
from catlip.data.images import Unreadable, left_out
from catlip.errors import UsageError
from catlip.evaluation.class_names import (
    WNID,
    ClassName,
    Match,
    Matcher,
    alike,
    read_names,
    rows_of,
    run_labeler,
    text_of,
)
from catlip.evaluation.classification import MEASURES, accuracies, combine, per_class, ranks, standard
from catlip.evaluation.features import data_name, features, open_encoder, open_labelled
from catlip.evaluation.result import NOT_SAVED, Result, Table, listed, percent
from catlip.evaluation.transfer_init import head_of
from catlip.labels.wordnet import open_lexicon
from catlip.models.dual_encoder import DualEncoder, load_dual, text_folder
from catlip.models.encoder import Encoder
from catlip.models.weights import named
from catlip.training.distributed import one_device

Route = Literal["auto", "head", "text"]
# The wording of captions, not of CLIP's 80 templates for ImageNet: a tower knows the phrases of its own corpus.
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a close up of a {}", "there is a {}")


@dataclass(kw_only=True, slots=True)
class ZeroShotConfig:
    """Settings of `catlip zeroshot`."""

    run: str  # run folder or model folder; from Python also an Encoder or a Run
    data: str  # tars (KEY.jpg and KEY.cls), a folder with a folder a class, a CSV; from Python also a Dataset or a list
    image_col: str | None = None  # tables: column with the paths of the images
    label_col: str | None = None  # tables: column with the labels
    classes: str | None = None  # class names, one a line in the order of the labels' numbers; or the labels are names
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: all the run has
    templates: str | None = None  # prompts, one a line, with {} for the name
    calibrate: Literal["pictures", "bias", "none"] = "pictures"  # pictures: standardise over them; bias: drop the bias
    image_size: int | None = None  # pixels; default: the encoder's own
    sentence_encoder: str | None = None  # of a run with frozen sentences, where it is now if not where it was
    device: str = "auto"


@dataclass(kw_only=True)
class ZeroShotResult(Result):
    """Accuracies of each route, and how the class names were understood."""

    task: ClassVar[str] = "zeroshot"
    heading: ClassVar[str] = "Zero-shot classification"

    head: dict[str, float] = field(default_factory=dict)  # "top1", "top5", "mean_per_class"; empty: route not taken
    text: dict[str, float] = field(default_factory=dict)  # the same, by the text tower
    classes: int
    pictures: int
    data: str
    image_size: int
    calibrate: str
    matched: dict[str, int] = field(default_factory=dict)  # "exact", "below", "above", "missing" -> classes
    names: dict[str, str] = field(default_factory=dict)  # class -> the rows of the classifier that stand for it
    alike: list[list[str]] = field(default_factory=list)  # classes with the same rows, which no score tells apart
    per_class: dict[str, dict[str, float]] = field(default_factory=dict, metadata=NOT_SAVED)  # route -> class -> top-1

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | ({"alike": self.alike} if self.names else {})

    def to_clip_benchmark(self) -> dict[str, Any]:
        """Of the text tower, as CLIP_benchmark measures, if there is one; else of the classifier's rows."""
        found: dict[str, float | None] = {**(self.text or self.head)}
        names = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
        metrics = {name: found[ours] for name, ours in names.items()}
        if self.classes < 5:
            metrics["acc5"] = None
        return self.as_clip_benchmark("zeroshot_classification", self.data, metrics, "text" if self.text else "head")

    def tables(self) -> list[Table]:
        title = f"{self.encoder}: {self.classes} classes, {self.pictures:,} pictures"
        routes = {route: found for route in ("head", "text") if (found := getattr(self, route))}
        rows = [[f"{route} route", *map(percent, found.values())] for route, found in routes.items()]
        header = ["", *(MEASURES[name] for name in next(iter(routes.values())))]
        found = [Table(title, [*rows, ["chance", percent(100 / self.classes)]], header)]
        if self.names:
            same = listed(map(listed, self.alike), "; ")
            note = f"cannot be told apart, they share their rows: {same}" if same else ""
            own = [[percent(of.get(name), 1) for of in self.per_class.values()] for name in self.names]
            rows = [[f"{name}: {told}", *cells] for (name, told), cells in zip(self.names.items(), own, strict=True)]
            header = ["class: rows of the classifier", *(f"{route}, top-1" for route in self.per_class)]
            found.append(Table("What stands for each class", rows, header, note))
        return found


def zero_shot(
    encoder: Any = None, data: Any = None, *, config: ZeroShotConfig | None = None, **settings: Any
) -> ZeroShotResult:
    """Accuracy in percent of naming images by class names alone, of each route that the encoder has.

    encoder: an Encoder, a Run, or what `catlip.load` takes. data: labelled images, for `catlip.open`. settings: fields
    of `ZeroShotConfig`; `classes` is a file of names or a list of them. Where the encoder has a folder, a line
    is added to its results.jsonl. Raises UsageError for names that fit neither data nor vocabulary, and for a route
    that the run does not have.

        catlip.zero_shot("runs/a", "photos/test", classes=["cat", "fire hydrant"])
    """
    began = time.perf_counter()
    cfg = configure(ZeroShotConfig, config, run=encoder, data=data, **settings)
    templates = read_templates(cfg.templates)
    dataset = open_labelled(cfg.data, image_col=cfg.image_col, label_col=cfg.label_col)
    say_troubles(dataset)
    names, file = given_names(dataset, cfg.classes)
    places = rows_of(dataset.classes, names, file, dataset.name)
    wanted = torch.tensor(places)[torch.from_numpy(dataset.labels)]
    routes = open_routes(cfg.run, cfg.route, cfg.image_size, cfg.sentence_encoder)
    matches = _matches(cfg, routes, names)
    unreadable = Unreadable()
    pooled, kept = features(routes.encoder, dataset, one_device(cfg.device), unreadable)
    wanted = wanted[kept]
    scores: dict[str, Tensor] = {}
    if matches:
        scores["head"] = head_scores(routes.encoder, pooled, matches, cfg.calibrate)
    if routes.dual is not None:
        found = text_scores(routes.dual.cpu(), pooled, [spoken(n) for n in names], templates)
        scores["text"] = standard(found) if cfg.calibrate == "pictures" else found
    ranked = {route: ranks(found, wanted) for route, found in scores.items()}
    called = [name.name for name in names]
    return ZeroShotResult(
        **{route: _rounded(accuracies(rank, wanted)) for route, rank in ranked.items()},
        per_class={route: per_class(rank, wanted, called) for route, rank in ranked.items()},
        classes=len(names),
        pictures=len(wanted),
        data=data_name(cfg.data, dataset),
        image_size=routes.encoder.image_size,
        encoder=named(cfg.run),
        calibrate=cfg.calibrate,
        **(matching(matches, routes.encoder) if matches else {}),
        **left_out(data=unreadable),
    ).saved(cfg.run, began)


@dataclass(slots=True)
class Routes:
    """What can be asked by words: the encoder's classifier of synsets, and its text tower if there is one."""

    encoder: Encoder
    dual: DualEncoder | None = None


def open_routes(run: Any, route: Route, image_size: int | None = None, sentence_encoder: Any = None) -> Routes:
    """The encoder, and the text tower if the route may use it and the run has one.

    Raises UsageError for a route, or for "auto" every route, that the run does not have.
    """
    name, encoder = named(run), open_encoder(run, image_size)
    if route == "text" or (route == "auto" and text_folder(run) is not None):
        dual = load_dual(encoder, sentence_encoder)
        return Routes(dual.encoder, dual)
    if not encoder.labels:
        raise UsageError(
            f"{name} has neither a classifier of synsets nor a text tower: `catlip align {name} --data CAPTIONED "
            "--out NEW` trains one onto it"
        )
    return Routes(encoder)


def _matches(cfg: ZeroShotConfig, routes: Routes, names: list[ClassName]) -> list[Match]:
    """The classes' rows; none where the text route alone is taken. Raises UsageError if not one class has a row."""
    if cfg.route == "text" or not routes.encoder.labels:
        return []
    try:
        matches = Matcher(routes.encoder.labels, run_labeler(cfg.run))(names)
        if any(match.rows for match in matches):
            return matches
        some = ", ".join(repr(match.name) for match in matches[:3])
        raise UsageError(
            f"no class name is near a synset of the {len(routes.encoder.labels):,} that {named(cfg.run)} knows: "
            f"{some}. Write other names, or the wnid behind the name and a tab"
        )
    except UsageError:
        if cfg.route == "head" or routes.dual is None:
            raise
        return []


def given_names(dataset: Dataset, classes: Any) -> tuple[list[ClassName], str | None]:
    """(what the classes are called, the file that says so): by a file, a list, or the labels themselves. Raises
    UsageError for labels that are numbers, without names."""
    if isinstance(classes, str | Path):
        return read_names(classes), str(classes)
    if classes:
        return [name if isinstance(name, ClassName) else ClassName(name) for name in classes], "given"
    if all(label.isdecimal() for label in dataset.classes):
        raise UsageError(f"`data` {dataset.name}: its labels are numbers; `classes` names.txt says what they mean")
    return [ClassName(label) for label in dataset.classes], None


def read_templates(path: str | None) -> tuple[str, ...]:
    """Raises UsageError for a line without {}, and as `text_of` does."""
    if path is None:
        return TEMPLATES
    found = lines(text_of(path, "`templates`"))
    if bare := [line for line in found if "{}" not in line]:
        raise UsageError(f"`templates` {path}: one prompt a line, with {{}} for the name; found {bare[0]!r}")
    return tuple(found)


def spoken(entry: ClassName) -> str:
    """The words for a prompt: the name, or the first lemma of a wnid."""
    name, lexicon = entry.name, open_lexicon()
    if WNID.fullmatch(name) and lexicon.has_synset(name):
        name = lexicon.synset(name).name
    return name.replace("_", " ")


@torch.no_grad()
def head_scores(encoder: Encoder, pooled: Tensor, matches: list[Match], calibrate: str = "pictures") -> Tensor:
    """[N, classes] from pooled features [N, D] on the CPU."""
    weight, bias = head_of(encoder)
    rows = sorted({row for match in matches for row in match.rows})
    place = {row: i for i, row in enumerate(rows)}
    logits = pooled @ weight[rows].T + (bias[rows] if calibrate == "none" else 0)
    return combine(logits, [[place[row] for row in match.rows] for match in matches], calibrate == "pictures")


@torch.no_grad()
def text_scores(dual: DualEncoder, pooled: Tensor, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """[N, classes]: cosine of images with the mean of each name's prompts."""
    return dual.embed_pooled(pooled) @ embed_names(dual, names, templates).T


def embed_names(dual: DualEncoder, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """Unit vectors [len(names), D]: the mean of the prompts' unit vectors."""
    prompts = ([template.replace("{}", name) for template in templates] for name in names)
    return torch.stack([F.normalize(dual.embed_texts(some).mean(0), dim=0) for some in prompts])


def matching(matches: list[Match], encoder: Encoder) -> dict[str, Any]:
    """What the report says of the names: {"matched": {how: classes}, "names": {name: told}, "alike": groups}."""
    name_of = dict(zip(encoder.labels, encoder.names, strict=True))
    return {
        "matched": dict(Counter(match.how for match in matches)),
        "names": {match.name: match.told(name_of) for match in matches},
        "alike": alike(matches),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
