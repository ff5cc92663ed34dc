"""A concept's direction among image vectors, what leans along it, and what is left when it is projected out.

The measure is WEAT's (Caliskan et al. 2017, arXiv 1608.07187) with images as one side, as CLIP-Lite (arXiv 2112.07133)
uses it, whose published script prints the two groups under each other's names; the direction and its removal are
Bolukbasi et al.'s (2016, arXiv 1607.06520, section 5). Here with intervals, and with what the measure cannot see:
whether a classifier still tells the groups apart (Gonen and Goldberg 2019, arXiv 1903.03862). docs/language.md says
what these numbers are not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.config import configure
from catlip.data.dataset import lines
from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Matcher, run_labeler, text_of
from catlip.evaluation.features import caption_features, data_name
from catlip.evaluation.linear_probe import fit_logistic
from catlip.evaluation.result import Result, Table, percent
from catlip.evaluation.transfer_init import head_of
from catlip.evaluation.zero_shot import TEMPLATES, Route, Routes, embed_names, open_routes
from catlip.labels.labeler import Labeler
from catlip.models.encoder import Encoder
from catlip.models.weights import named
from catlip.training.distributed import one_device

BOOTSTRAPS = 1000
PERMUTATIONS = 2000
# Words that define the concept; a side's words also say whose picture it is.
PAIRS = (("man", "woman"), ("boy", "girl"), ("father", "mother"), ("son", "daughter"), ("gentleman", "lady"))
TARGETS = (
    "kitchen", "baby", "dress", "hair", "dancer", "shopping", "guitar", "football", "bicycle", "motorcycle",
    "skateboard", "computer", "tool", "beer", "suit", "dog",
)  # fmt: skip
FEWEST = 10  # pictures of a group


@dataclass(kw_only=True, slots=True)
class BiasConfig:
    """Settings of `catlip bias`."""

    run: str  # run folder or model folder; from Python also an Encoder or a Run
    data: str  # captioned pictures; captions say which group a picture belongs to; from Python also a Dataset or a list
    pairs: str | None = None  # TSV, a pair of words a line; default: man, woman and four more
    targets: str | None = None  # what is tested, one word a line; default: 16 things
    image_col: str | None = None
    text_col: str | None = None
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: head if there is one
    seed: int = 0  # of bootstraps, permutations and the probe's halves
    device: str = "auto"


@dataclass(kw_only=True)
class BiasResult(Result):
    """Effect sizes of each target before and after the direction is projected out: [effect, low, high, p]."""

    task: ClassVar[str] = "bias"
    heading: ClassVar[str] = "What leans along a concept"

    route: str
    pairs: list[tuple[str, str]]  # that define the direction, of those given
    left_out: list[str]  # words without rows of their own
    groups: list[int]  # images of either side
    direction_share: float  # of the pairs' variance that lies along the direction
    effects: dict[str, dict[str, list[float]]]  # target -> "before", "after" -> effect, its 95 % interval, p
    mean_size: list[float]  # of the effects, before and after
    separable: list[float]  # balanced accuracy of telling the groups apart, before and after; chance is 50
    data: str

    def tables(self) -> list[Table]:
        def told(found: list[float]) -> str:
            effect, low, high, p = found
            return f"{effect:+.2f} [{low:+.2f}, {high:+.2f}]{'*' if p < 0.05 else ' '}"

        ordered = sorted(self.effects.items(), key=lambda item: -item[1]["before"][0])
        rows = [[target, told(found["before"]), told(found["after"])] for target, found in ordered]
        rows.append(["mean size", *(f"{size:.2f}" for size in self.mean_size)])
        rows.append(["groups told apart (chance 50)", *(percent(value, 1) for value in self.separable)])
        first, second = self.pairs[0]
        title = (
            f"{self.encoder}, {self.route} route: {self.groups[0]:,} pictures of {first!r} and the like, "
            f"{self.groups[1]:,} of {second!r}"
        )
        note = f"Effect size, + leans to {first!r}; 95 % interval; * p < 0.05, {len(self.effects)} tests"
        if self.left_out:
            note += f". Left out, no rows of their own: {', '.join(self.left_out)}"
        return [Table(title, rows, ["", "before", "after"], note)]


def bias(encoder: Any = None, data: Any = None, *, config: BiasConfig | None = None, **settings: Any) -> BiasResult:
    """Effect sizes with 95 % intervals, before and after a concept's direction is projected out.

    encoder: an Encoder, a Run, or what `catlip.load` takes. data: captioned images, for `catlip.open`. settings: fields
    of `BiasConfig`; `pairs` and `targets` may be lists. Where the encoder has a folder, a line is added to its
    results.jsonl. Raises UsageError for words that the route does not know, and for groups of fewer than 10 images.
    """
    began = time.perf_counter()
    cfg = configure(BiasConfig, config, run=encoder, data=data, **settings)
    pairs, targets = read_pairs(cfg.pairs), _words(cfg.targets, "`targets`") if cfg.targets else list(TARGETS)
    routes = open_routes(cfg.run, cfg.route)
    labeler = run_labeler(cfg.run)
    dataset = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    found = caption_features(routes.encoder, dataset, one_device(cfg.device))
    sides = groups(found.captions, pairs, labeler)
    if min(map(len, sides)) < FEWEST:
        raise UsageError(
            f"`data` {dataset.name}: {len(sides[0])} pictures whose captions name {pairs[0][0]!r} and the like alone, "
            f"{len(sides[1])} for {pairs[0][1]!r}; {FEWEST} of each are the least"
        )
    words = [*(word for pair in pairs for word in pair), *targets]
    by_head = cfg.route != "text" and bool(routes.encoder.labels)
    images, vectors = (
        _by_head(routes, found.pooled, words, labeler) if by_head else _by_text(routes, found.pooled, words)
    )
    used = [pair for pair in pairs if pair[0] in vectors and pair[1] in vectors]
    known = [target for target in targets if target in vectors]
    name = named(cfg.run)
    if not used or not known:
        raise UsageError(f"{name} knows {len(used)} of the pairs and {len(known)} of the targets; name others")
    direction, share = concept_direction(torch.stack([torch.stack([vectors[a], vectors[b]]) for a, b in used]))
    before = images[sides[0]], images[sides[1]]
    after = project_out(before[0], direction), project_out(before[1], direction)
    effects = [
        [association(a @ vectors[target], b @ vectors[target], cfg.seed) for a, b in (before, after)]
        for target in known
    ]
    return BiasResult(
        route="head" if by_head else "text",
        pairs=used,
        left_out=[word for word in words if word not in vectors],
        groups=[len(side) for side in sides],
        direction_share=round(share, 3),
        effects={
            target: {"before": some[0].rounded(), "after": some[1].rounded()}
            for target, some in zip(known, effects, strict=True)
        },
        mean_size=[round(sum(abs(some[i].effect) for some in effects) / len(effects), 3) for i in (0, 1)],
        separable=[round(separable(a, b, cfg.seed), 2) for a, b in (before, after)],
        data=data_name(cfg.data, dataset),
        encoder=name,
        **left_out(data=found.unreadable),
    ).saved(cfg.run, began)


def _by_head(routes: Routes, pooled: Tensor, words: list[str], labeler: Labeler) -> tuple[Tensor, dict[str, Tensor]]:
    """(unit vectors of the images [N, D], of the words), in the space of pooled features."""
    return F.normalize(pooled - pooled.mean(0), dim=1), _row_vectors(routes.encoder, words, labeler)


@torch.no_grad()
def _by_text(routes: Routes, pooled: Tensor, words: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The same, in the space of images and captions."""
    assert routes.dual is not None
    dual = routes.dual.cpu()
    vectors = embed_names(dual, words, TEMPLATES)
    return dual.embed_pooled(pooled), dict(zip(words, vectors, strict=True))


@dataclass(frozen=True, slots=True)
class Association:
    """Of one target: mean similarity of group A less that of group B, in units of the deviation over both."""

    effect: float
    low: float  # 95 % interval, bootstrap over images
    high: float
    p: float  # permutation test of no difference, two-sided

    def rounded(self) -> list[float]:
        return [round(self.effect, 3), round(self.low, 3), round(self.high, 3), round(self.p, 4)]


def concept_direction(pairs: Tensor) -> tuple[Tensor, float]:
    """(unit vector [D] from side B to side A, share of the pairs' variance along it). pairs [K, 2, D]: A, B.

    The first principal component of the vectors about their pair's middle. Its sign: A is positive on average.
    """
    differences = (pairs[:, 0] - pairs[:, 1]).double()
    _, values, axes = torch.linalg.svd(differences, full_matrices=False)
    axis = axes[0]
    axis = axis if (differences @ axis).sum() >= 0 else -axis
    share = (values[0] ** 2 / values.square().sum().clamp_min(1e-24)).item()
    return axis.float(), share


def project_out(vectors: Tensor, direction: Tensor) -> Tensor:
    """Vectors [N, D] less their part along a unit vector [D], of unit length again."""
    return F.normalize(vectors - (vectors @ direction)[:, None] * direction, dim=1)


def association(group_a: Tensor, group_b: Tensor, seed: int = 0) -> Association:
    """group_a [A], group_b [B]: similarities of two groups of images with one target.

    All differences of a target are in units of the deviation over both groups (population, as in WEAT), which is
    drawn anew with every bootstrap. Zero throughout if no image differs from another.
    """
    a, b = group_a.double(), group_b.double()
    generator = torch.Generator().manual_seed(seed)
    observed = _effect(a[None], b[None]).item()
    drawn_a = a[torch.randint(len(a), (BOOTSTRAPS, len(a)), generator=generator)]
    drawn_b = b[torch.randint(len(b), (BOOTSTRAPS, len(b)), generator=generator)]
    spread = _effect(drawn_a, drawn_b)
    both = torch.cat([a, b])
    order = torch.rand(PERMUTATIONS, len(both), generator=generator).argsort(1)
    shuffled = both[order]
    chance = _effect(shuffled[:, : len(a)], shuffled[:, len(a) :])
    extreme = chance.abs().ge(abs(observed) - 1e-12).sum().item()
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Association(observed, low, high, (extreme + 1) / (PERMUTATIONS + 1))


def _effect(a: Tensor, b: Tensor) -> Tensor:
    """[R, A], [R, B] -> [R]."""
    deviation = torch.cat([a, b], dim=1).std(1, correction=0)
    difference = a.mean(1) - b.mean(1)
    return torch.where(deviation > 1e-6, difference / deviation.clamp_min(1e-6), torch.zeros_like(difference))


def groups(captions: Sequence[list[str]], pairs: Sequence[tuple[str, str]], labeler: Labeler) -> tuple[Tensor, Tensor]:
    """(images of side A, of side B): int64. An image is of a side if its captions name that side's words, or what
    is below them in WordNet, and nothing of the other's."""
    reader = Matcher(["n00001740"], labeler)  # entity: only its reading of names is used
    sides = [{s for pair in pairs for s in reader.synsets_of(pair[side])} for side in (0, 1)]
    flat = [caption for some in captions for caption in some]
    labels = iter(labeler(flat))
    found: tuple[list[int], list[int]] = ([], [])
    for number, some in enumerate(captions):
        named = {label for _ in some for label in next(labels)}
        above = named.union(*(labeler.wordnet.ancestors(s, 20) for s in named if labeler.wordnet.has_synset(s)))
        of = [bool(above & side) for side in sides]
        if of[0] != of[1]:
            found[of.index(True)].append(number)
    return torch.tensor(found[0], dtype=torch.int64), torch.tensor(found[1], dtype=torch.int64)


def separable(a: Tensor, b: Tensor, seed: int) -> float:
    """Balanced accuracy in percent (chance: 50) of a linear classifier of the group, on the half of the images that
    it was not fitted to; the mean over both halves."""
    x, y = torch.cat([a, b]), torch.cat([torch.zeros(len(a)), torch.ones(len(b))]).long()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    halves, shares = (order[: len(x) // 2], order[len(x) // 2 :]), []
    for fitted, asked in (halves, halves[::-1]):
        weights = fit_logistic(x[fitted], y[fitted], 0.1)
        right = (x[asked] @ weights[:-1] + weights[-1]).argmax(1).eq(y[asked]).double()
        shares += [right[y[asked] == side].mean().item() for side in (0, 1)]
    return 100 * sum(shares) / len(shares)


def _row_vectors(encoder: Encoder, words: list[str], labeler: Labeler) -> dict[str, Tensor]:
    """Unit vectors of the words that have rows of their own, or rows below them; no backing off: "lady" is not
    "person" here."""
    weight, _ = head_of(encoder)
    weight = weight - weight.mean(0)
    matches = Matcher(encoder.labels, labeler)([ClassName(word) for word in dict.fromkeys(words)])
    return {m.name: F.normalize(weight[list(m.rows)].mean(0), dim=0) for m in matches if m.how in ("exact", "below")}


def read_pairs(given: Any) -> list[tuple[str, str]]:
    """Pairs of a file, or as they are given. Raises UsageError for a line that is no pair."""
    if given is None:
        return list(PAIRS)
    if not isinstance(given, str | Path):
        return [(a, b) for a, b in given]
    found = []
    for line in _words(given, "`pairs`"):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise UsageError(f"`pairs` {given}: a line is a word, a tab and its counterpart; found {line[:60]!r}")
        found.append((parts[0], parts[1]))
    return found


def _words(given: Any, field: str) -> list[str]:
    """The lines of a file, or the words as they are given."""
    return lines(text_of(given, field)) if isinstance(given, str | Path) else list(given)
