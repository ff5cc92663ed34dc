"""How much nearer one group of pictures is to a concept than another, with intervals, and what removing a direction
changes.

The measure is WEAT's (Caliskan et al. 2017, arXiv 1608.07187) with pictures as one side, as CLIP-Lite (arXiv
2112.07133) uses it; the direction and its removal are Bolukbasi et al.'s (2016, arXiv 1607.06520, section 5).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Matcher, run_labeler
from catlip.evaluation.features import embed_source
from catlip.evaluation.probe import fit_logistic
from catlip.evaluation.zero_shot import TEMPLATES, Route, embed_names, head_of, open_routes
from catlip.labels.labeler import Labeler
from catlip.models.encoder import Encoder
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import append_json, table

BOOTSTRAPS = 1000
PERMUTATIONS = 2000


@dataclass(frozen=True, slots=True)
class Association:
    """Of one target: mean similarity of group A less that of group B, in units of the deviation over both."""

    effect: float
    low: float  # 95 % interval, bootstrap over pictures
    high: float
    p: float  # permutation test of no difference, two-sided


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


def without(vectors: Tensor, direction: Tensor) -> Tensor:
    """Vectors [N, D] less their part along a unit vector [D], of unit length again."""
    return F.normalize(vectors - (vectors @ direction)[:, None] * direction, dim=1)


def association(group_a: Tensor, group_b: Tensor, seed: int = 0) -> Association:
    """group_a [A], group_b [B]: similarities of two groups of pictures with one target.

    All differences of a target are in units of the deviation over both groups (population, as in WEAT), which is
    drawn anew with every bootstrap. Zero throughout if no picture differs from another.
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


# A concept's direction in the space of pictures, what leans along it, and what is left when it is removed.

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

    run: str  # run folder or model folder
    data: str  # captioned pictures; captions say which group a picture belongs to
    pairs: str | None = None  # TSV, a pair of words a line; default: man, woman and four more
    targets: str | None = None  # what is tested, one word a line; default: 16 things
    image_col: str | None = None
    text_col: str | None = None
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: head if there is one
    seed: int = 0  # of bootstraps, permutations and the probe's halves
    device: str = "auto"


def bias(cfg: BiasConfig) -> dict[str, Any]:
    """Effect sizes with 95 % intervals before and after; one line is added to the run's results.jsonl.

    Raises UsageError for words that the route does not know, and for groups of fewer than 10 pictures.
    """
    began = time.perf_counter()
    pairs = read_pairs(cfg.pairs)
    targets = _lines(cfg.targets, "`targets`") if cfg.targets else list(TARGETS)
    encoder, dual, tokenizer = open_routes(cfg.run, cfg.route)
    labeler = run_labeler(cfg.run)
    source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    data = embed_source(encoder, source, one_device(cfg.device))
    group_a, group_b = groups(data.captions, pairs, labeler)
    if min(len(group_a), len(group_b)) < FEWEST:
        raise UsageError(
            f"`data` {cfg.data}: {len(group_a)} pictures whose captions name {pairs[0][0]!r} and the like alone, "
            f"{len(group_b)} for {pairs[0][1]!r}; {FEWEST} of each are the least"
        )
    words = [word for pair in pairs for word in pair]
    if cfg.route != "text" and encoder.labels:
        route = "head"
        pictures = F.normalize(data.pooled - data.pooled.mean(0), dim=1)
        vectors = _row_vectors(encoder, [*words, *targets], labeler)
    else:
        assert dual is not None
        assert tokenizer is not None
        route, dual = "text", dual.cpu()
        with torch.no_grad():
            pictures = dual.embed_pooled(data.pooled)
        found = embed_names(dual, tokenizer, [*words, *targets], TEMPLATES)
        vectors = dict(zip([*words, *targets], found, strict=True))
    used = [pair for pair in pairs if pair[0] in vectors and pair[1] in vectors]
    known = [target for target in targets if target in vectors]
    if not used or not known:
        raise UsageError(f"{cfg.run} knows {len(used)} of the pairs and {len(known)} of the targets; name others")
    direction, share = concept_direction(torch.stack([torch.stack([vectors[a], vectors[b]]) for a, b in used]))
    a, b = pictures[group_a], pictures[group_b]
    effects = {
        target: (
            _of(a, b, vectors[target], cfg.seed),
            _of(without(a, direction), without(b, direction), vectors[target], cfg.seed),
        )
        for target in known
    }
    told = [separable(x, y, cfg.seed) for x, y in ((a, b), (without(a, direction), without(b, direction)))]
    result = {
        "task": "bias",
        "route": route,
        "pairs": used,
        "left_out": [t for t in [*words, *targets] if t not in vectors],
        "groups": [len(a), len(b)],
        "direction_share": round(share, 3),
        "effects": {t: {"before": _row(before), "after": _row(after)} for t, (before, after) in effects.items()},
        "mean_size": [round(sum(abs(pair[i].effect) for pair in effects.values()) / len(effects), 3) for i in (0, 1)],
        "separable": [round(value, 2) for value in told],
        "data": cfg.data,
        "encoder": cfg.run,
        "seconds": round(time.perf_counter() - began, 1),
        **left_out(data=data.unreadable),
    }
    _say(result, effects)
    if Path(cfg.run).is_dir():
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result


def groups(captions: Sequence[list[str]], pairs: Sequence[tuple[str, str]], labeler: Labeler) -> tuple[Tensor, Tensor]:
    """(pictures of side A, of side B): int64. A picture is of a side if its captions name that side's words, or what
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
    """Balanced accuracy in percent (chance: 50) of a linear classifier of the group, on the half of the pictures that
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


def read_pairs(path: str | None) -> list[tuple[str, str]]:
    """Raises UsageError for a line that is no pair."""
    if path is None:
        return list(PAIRS)
    found = []
    for line in _lines(path, "`pairs`"):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise UsageError(f"`pairs` {path}: a line is a word, a tab and its counterpart; found {line[:60]!r}")
        found.append((parts[0], parts[1]))
    return found


def _lines(path: str, option: str) -> list[str]:
    if not Path(path).is_file():
        raise UsageError(f"{option}: no such file: {path}")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{option} {path} is empty")
    return lines


def _of(a: Tensor, b: Tensor, target: Tensor, seed: int) -> Association:
    return association(a @ target, b @ target, seed)


def _row(found: Association) -> list[float]:
    return [round(found.effect, 3), round(found.low, 3), round(found.high, 3), round(found.p, 4)]


def _say(result: dict[str, Any], effects: dict[str, tuple[Association, Association]]) -> None:
    def told(x: Association) -> str:
        return f"{x.effect:+.2f} [{x.low:+.2f}, {x.high:+.2f}]{'*' if x.p < 0.05 else ' '}"

    first = result["pairs"][0]
    ordered = sorted(effects.items(), key=lambda item: -item[1][0].effect)
    rows = {"": f"{'before':<23} after"} | {t: f"{told(before):<23} {told(after)}" for t, (before, after) in ordered}
    rows["mean size"] = f"{result['mean_size'][0]:<23.2f} {result['mean_size'][1]:.2f}"
    apart = [f"{value:.1f} %" for value in result["separable"]]
    rows["groups told apart"] = f"{apart[0]:<23} {apart[1]} (chance 50)"
    n = result["groups"]
    say(
        table(
            rows,
            f"{result['encoder']}, {result['route']} route: {n[0]:,} pictures of {first[0]!r} and the like, "
            f"{n[1]:,} of {first[1]!r};\n  effect size, + leans to {first[0]!r}; 95 % interval; * p < 0.05, "
            f"{len(effects)} tests",
        )
    )
    if result["left_out"]:
        say(f"  left out, no rows of their own: {', '.join(result['left_out'])}")
