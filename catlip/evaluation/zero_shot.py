"""Classification by class names alone: through the classifier's synsets, through the text tower, or both.

Head route: a name means synsets, synsets are rows of the classifier (evaluation/class_names.py). Text route: the mean
of the name's prompts in the space of pictures and captions (CLIP, arXiv 2103.00020, section 3.1.4).
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.class_labels import say_troubles
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable, left_out
from catlip.errors import UsageError
from catlip.evaluation.class_names import WNID, ClassName, Match, Matcher, alike, read_names, rows_of, run_labeler
from catlip.evaluation.classification import accuracies, combine, ranks, standard
from catlip.evaluation.features import features, open_labelled
from catlip.evaluation.transfer_init import head_of as head_of
from catlip.labels.tokenizer import Tokenizer
from catlip.labels.wordnet import open_lexicon
from catlip.models.dual import DualEncoder, load_dual, text_folder
from catlip.models.encoder import Encoder
from catlip.models.weights import load
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import append_json, table

Route = Literal["auto", "head", "text"]
# The wording of captions, not of CLIP's 80 templates for ImageNet: a tower knows the phrases of its own corpus.
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a close up of a {}", "there is a {}")

TOLD = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


@dataclass(kw_only=True, slots=True)
class ZeroShotConfig:
    """Settings of `catlip zeroshot`."""

    run: str  # run folder or model folder
    data: str  # tars (KEY.jpg and KEY.cls) or a folder with one folder per class
    classes: str | None = None  # class names, one a line in the order of the labels' numbers; or the labels are names
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: all the run has
    templates: str | None = None  # prompts, one a line, with {} for the name
    calibrate: Literal["pictures", "bias", "none"] = "pictures"  # standardise over the pictures; or drop the bias
    image_size: int | None = None  # pixels; default: the encoder's own
    device: str = "auto"


def zero_shot(cfg: ZeroShotConfig) -> dict[str, Any]:
    """Accuracies in percent of each route; one line is added to the run's results.jsonl.

    Raises UsageError for names that fit neither data nor vocabulary, and for a route that the run does not have.
    """
    began = time.perf_counter()
    templates = read_templates(cfg.templates)
    data = open_labelled(cfg.data)
    say_troubles(data)
    names = read_names(cfg.classes) if cfg.classes else own_names(data)
    rows = rows_of(data.classes, names, cfg.classes, data.name)
    wanted = torch.tensor(rows)[torch.from_numpy(data.labels)]
    encoder, dual, tokenizer = open_routes(cfg.run, cfg.route)
    if cfg.image_size:
        encoder.resize(cfg.image_size)
    matches: list[Match] = []
    if cfg.route != "text" and encoder.labels:
        try:
            matches = _matches(cfg.run, encoder, names)
        except UsageError:
            if cfg.route == "head" or dual is None:
                raise
    unreadable = Unreadable()
    pooled, kept = features(encoder, data, one_device(cfg.device), unreadable)
    wanted = wanted[kept]
    scores: dict[str, Tensor] = {}
    if matches:
        scores["head"] = head_scores(encoder, pooled, matches, cfg.calibrate)
    if dual is not None and tokenizer is not None:
        found = text_scores(dual.cpu(), tokenizer, pooled, [spoken(n) for n in names], templates)
        scores["text"] = standard(found) if cfg.calibrate == "pictures" else found
    accuracy = {route: _rounded(accuracies(ranks(s, wanted), wanted)) for route, s in scores.items()}
    result = {
        "task": "zeroshot",
        **accuracy,
        "classes": len(names),
        "pictures": len(wanted),
        "data": cfg.data,
        "image_size": encoder.image_size,
        "encoder": cfg.run,
        "seconds": round(time.perf_counter() - began, 1),
    }
    result["calibrate"] = cfg.calibrate
    if matches:
        result |= matching(matches, encoder)
    result |= left_out(data=unreadable)
    _say(result, accuracy, matches, encoder)
    if Path(cfg.run).is_dir():
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result


def open_routes(run: str, route: Route) -> tuple[Encoder, DualEncoder | None, Tokenizer | None]:
    """The encoder, and the text tower if the route may use it and the run has one.

    Raises UsageError for a route, or for "auto" every route, that the run does not have.
    """
    has_text = text_folder(run) is not None
    if route == "text" or (route == "auto" and has_text):
        dual, tokenizer = load_dual(run)
        return dual.encoder, dual, tokenizer
    encoder = load(run)
    if not encoder.labels:
        raise UsageError(
            f"{run} has neither a classifier of synsets nor a text tower: `catlip align {run} --data CAPTIONED "
            "`out` NEW` trains one onto it"
        )
    return encoder, None, None


def _matches(run: str, encoder: Encoder, names: list[ClassName]) -> list[Match]:
    """Raises UsageError if not one class has a row."""
    matches = Matcher(encoder.labels, run_labeler(run))(names)
    if not any(match.rows for match in matches):
        some = ", ".join(repr(match.name) for match in matches[:3])
        raise UsageError(
            f"no class name is near a synset of the {len(encoder.labels):,} that {run} knows: {some}. Write other "
            "names, or the wnid behind the name and a tab"
        )
    return matches


def own_names(data: Dataset) -> list[ClassName]:
    """The labels themselves, where they are names. Raises UsageError for numbers."""
    if all(label.isdecimal() for label in data.classes):
        raise UsageError(f"`data` {data.name}: its labels are numbers; `classes` names.txt says what they mean")
    return [ClassName(label) for label in data.classes]


def read_templates(path: str | None) -> tuple[str, ...]:
    """Raises UsageError for a file that is missing or empty, and for a line without {}."""
    if path is None:
        return TEMPLATES
    if not Path(path).is_file():
        raise UsageError(f"`templates`: no such file: {path}")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    bare = [line for line in lines if "{}" not in line]
    if not lines or bare:
        raise UsageError(f"`templates` {path}: one prompt a line, with {{}} for the name; found {(bare or [''])[0]!r}")
    return tuple(lines)


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
def text_scores(
    dual: DualEncoder, tokenizer: Tokenizer, pooled: Tensor, names: list[str], templates: tuple[str, ...]
) -> Tensor:
    """[N, classes]: cosine of pictures with the mean of each name's prompts."""
    return dual.embed_pooled(pooled) @ embed_names(dual, tokenizer, names, templates).T


@torch.no_grad()
def embed_names(dual: DualEncoder, tokenizer: Tokenizer, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """Unit vectors [len(names), D]: the mean of the prompts' unit vectors."""
    return torch.stack(
        [
            F.normalize(embed_texts(dual, tokenizer, [t.replace("{}", name) for t in templates]).mean(0), dim=0)
            for name in names
        ]
    )


@torch.no_grad()
def embed_texts(dual: DualEncoder, tokenizer: Tokenizer, texts: list[str], batch: int = 512) -> Tensor:
    """Unit vectors [len(texts), D] on the CPU, a batch at a time."""
    device = dual.logit_scale.device
    parts = (texts[start : start + batch] for start in range(0, len(texts), batch))
    return torch.cat([dual.embed_captions(torch.from_numpy(tokenizer(part)).to(device)).cpu() for part in parts])


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


def _say(result: dict[str, Any], found: dict[str, dict[str, float]], matches: list[Match], encoder: Encoder) -> None:
    if matches:
        say(table(result["names"], f"{result['encoder']}: class names -> rows of its {len(encoder.labels):,} synsets"))
        for group in result["alike"]:
            say(f"  cannot be told apart, they share their rows: {', '.join(group)}")
    rows = {
        f"{route} route": "   ".join(f"{name} {a[key]:.2f} %" for key, name in TOLD.items())
        for route, a in found.items()
    }
    rows["chance"] = f"top-1 {100 / result['classes']:.2f} %"
    say(table(rows, f"{result['encoder']}: {result['classes']} classes, {result['pictures']:,} pictures"))
