"""Where in a picture an encoder sees something, and whether it is there: relevance maps and the pointing game."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from catlip.data.coco import read_instances
from catlip.data.crops import Box
from catlip.data.dataset import Dataset
from catlip.data.image_lookup import Names
from catlip.data.images import Unreadable, UnreadableImageError, decode_upright, left_out
from catlip.data.open import open_images
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Match, Matcher, run_labeler
from catlip.evaluation.zero_shot import TEMPLATES, Route, embed_names, head_of, matching, open_routes
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual import DualEncoder
from catlip.models.encoder import Encoder
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import append_json, table


@torch.no_grad()
def place_vectors(encoder: Encoder, x: Tensor) -> Tensor:
    """Each place of the last feature map, put through the head as if it were the whole picture: [B, h, w, D].

    x: square pictures in the encoder's input space. Where the pooled vector is the mean of the places, as in ResNets,
    the mean of these is the pooled vector, and their product with a row of a linear classifier is the class
    activation map (Zhou et al. 2016, arXiv 1512.04150). Where a norm follows the mean (ConvNeXt, ViTs with average
    pooling) each place is normed by itself. In ViTs with a class token the classifier has never read a patch: its
    rows are applied to patches after the last norm, which works as far as the two share a space.
    """
    backbone: Any = encoder.backbone
    features = backbone.forward_features(x)
    if features.ndim == 4:
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        features = features if last else features.permute(0, 2, 3, 1)
        batch, height, width, depth = features.shape
        places = features.reshape(-1, 1, 1, depth) if last else features.reshape(-1, depth, 1, 1)
    else:
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        tokens = features[:, prefix:]
        batch, number, depth = tokens.shape
        height = width = round(number**0.5)
        assert height * width == number, "a square picture has a square of patches"
        places = tokens.reshape(-1, 1, depth)
        if prefix and getattr(backbone, "global_pool", "") not in ("token", ""):
            places = torch.cat([features[:, :prefix].repeat_interleave(number, 0), places], dim=1)
    pooled = backbone.forward_head(places, pre_logits=True)
    return pooled.float().reshape(batch, height, width, -1)


def peak(relevance: Tensor) -> tuple[float, float]:
    """(x, y) of the best place of a map [h, w], as shares of the picture: the middle of its cell.

    That is where the map enlarged bilinearly has its maximum. The first of several equal places.
    """
    best = int(relevance.argmax())
    height, width = relevance.shape
    return (best % width + 0.5) / width, (best // width + 0.5) / height


def inside(point: tuple[float, float], boxes: Sequence[Box]) -> bool:
    """Whether a point lies in one of the boxes, edges included."""
    x, y = point
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


@dataclass(frozen=True, slots=True)
class Pointed:
    """One round of the game: a picture and a category that is in it."""

    category: str
    hit: bool
    centre_hit: bool  # whether the picture's centre would have been right
    area: float  # share of the picture that the category's boxes cover
    categories: int  # that the picture shows

    @property
    def hard(self) -> bool:
        """Boxes over less than a quarter of the picture, and another category beside them."""
        return self.area < 0.25 and self.categories > 1


def area(boxes: Sequence[Box]) -> float:
    """Share of the picture that the boxes cover together, overlaps counted once. On a grid of 100 x 100 points."""
    at = (torch.arange(100) + 0.5) / 100
    covered = torch.zeros(100, 100, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        across, down = (left <= at) & (at <= right), (top <= at) & (at <= bottom)
        covered |= down[:, None] & across
    return covered.double().mean().item()


def pointing_game(rounds: Sequence[Pointed]) -> dict[str, float]:
    """In percent (Zhang et al. 2016, arXiv 1608.00507, section 5.1; without their tolerance of 15 pixels).

    {"accuracy": mean over categories, "centre": the same of always pointing at the centre, "anywhere": of a random
    place, "all": over all rounds, "hard" and "hard_centre": mean over categories of the hard rounds}; NaN without
    rounds.
    """
    hard = [entry for entry in rounds if entry.hard]
    return {
        "accuracy": _by_category(rounds, "hit"),
        "centre": _by_category(rounds, "centre_hit"),
        "anywhere": _by_category(rounds, "area"),
        "all": 100 * sum(entry.hit for entry in rounds) / len(rounds) if rounds else float("nan"),
        "hard": _by_category(hard, "hit"),
        "hard_centre": _by_category(hard, "centre_hit"),
    }


def _by_category(rounds: Sequence[Pointed], what: str) -> float:
    hits: dict[str, list[float]] = {}
    for entry in rounds:
        hits.setdefault(entry.category, []).append(getattr(entry, what))
    shares = [sum(found) / len(found) for found in hits.values()]
    return 100 * sum(shares) / len(shares) if shares else float("nan")


# Where in the picture is it? Relevance maps of phrases, and the pointing game on boxes.

SHOWN = 480  # pixels of the longer side on the page
Boxes = dict[str, list[Box]]  # of a picture, by category


@dataclass(kw_only=True, slots=True)
class GroundConfig:
    """Settings of `catlip ground`."""

    run: str  # run folder or model folder
    images: str  # a folder, a picture, tars, or a table of paths
    boxes: str | None = None  # COCO file with boxes: its categories are the phrases, and the pointing game is played
    phrases: tuple[str, ...] = ()  # what to look for; without --boxes
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: head if there is one
    image_size: int | None = None  # pixels of the square that pictures are resized to; default: the encoder's own
    out: str | None = None  # page; default: RUN/grounding.html
    show: int = 24  # maps on the page
    limit: int = 0  # pictures; 0: all
    device: str = "auto"


@dataclass(slots=True)
class Seen:
    """A phrase in a picture."""

    phrase: str
    pixels: np.ndarray  # uint8 [h, w, 3], small
    relevance: Tensor  # [h, w]
    boxes: list[Box]
    point: tuple[float, float]

    @property
    def hit(self) -> bool:
        return inside(self.point, self.boxes)


class Pointer:
    """Phrases -> directions in the space of place vectors; a map is their product with every place."""

    def __init__(self, cfg: GroundConfig, phrases: list[str]) -> None:
        """Raises UsageError if the route is not there or none of the phrases means anything to it."""
        self.encoder, dual, tokenizer = open_routes(cfg.run, cfg.route)
        if cfg.image_size:
            self.encoder.resize(cfg.image_size)
        self.matches: list[Match] = []
        self.dual: DualEncoder | None = None
        if cfg.route != "text" and self.encoder.labels:
            self.matches = Matcher(self.encoder.labels, run_labeler(cfg.run))([ClassName(p) for p in phrases])
            self.known = [match.name for match in self.matches if match.rows]
            weight, _ = head_of(self.encoder)
            # Less the mean row: where this label answers more than labels do on the whole. 3 points better, measured.
            rows = [weight[list(match.rows)].mean(0) - weight.mean(0) for match in self.matches if match.rows]
            if not rows:
                raise UsageError(f"{cfg.run}: no phrase is near a synset that it knows, e.g. {phrases[0]!r}")
            self.directions = torch.stack(rows)
        else:
            self._by_text(dual, tokenizer, phrases)
        self.route = "text" if self.dual is not None else "head"

    def _by_text(self, dual: DualEncoder | None, tokenizer: Tokenizer | None, phrases: list[str]) -> None:
        assert dual is not None
        assert tokenizer is not None
        self.dual, self.known = dual, phrases
        self.directions = embed_names(dual, tokenizer, phrases, TEMPLATES)

    @torch.no_grad()
    def maps(self, x: Tensor) -> Tensor:
        """x: pictures in the encoder's input space -> [B, len(self.known), h, w]."""
        places = place_vectors(self.encoder, x)
        if self.dual is not None:
            places = self.dual.embed_pooled(places)
        return torch.einsum("bhwd,kd->bkhw", places.float(), self.directions.to(places.device)).cpu()


def look(cfg: GroundConfig) -> tuple[dict[str, Any], list[Seen]]:
    """(pointing-game accuracy in percent if there are boxes; some of the maps). One line in the run's results.jsonl.

    Raises UsageError for phrases that are missing or unknown, pictures without boxes, and a size the encoder refuses.
    """
    began = time.perf_counter()
    if bool(cfg.boxes) == bool(cfg.phrases):
        raise UsageError('say what to look for: `boxes` COCO.json, or `phrases` dog "a red car"; one of them')
    boxes, phrases = dict[str, Boxes](), list(cfg.phrases)
    if cfg.boxes:
        instances = read_instances(cfg.boxes)
        instances.check("`boxes`")
        say(f"{cfg.boxes}: {instances.described}")
        boxes = instances.boxes()
        phrases = sorted({name for found in boxes.values() for name in found})
    elif not all(phrase.strip() for phrase in phrases):
        raise UsageError("`phrases`: an empty phrase")
    source = open_images(cfg.images)
    count = min(cfg.limit or len(source), len(source))
    by_key = _by_key(boxes, [source[number].key for number in range(count)], cfg) if cfg.boxes else {}
    pointer = Pointer(cfg, phrases)
    rounds, seen, pictures, met, stride, unreadable = [], [], 0, 0, 1, Unreadable()
    for key, pixels, maps in _maps(pointer, cfg, source, count, unreadable):
        there = by_key.get(key)
        if cfg.boxes and not there:
            continue
        pictures += 1
        for phrase, relevance in zip(pointer.known, maps, strict=True):
            if there is not None and phrase not in there:
                continue
            own = there[phrase] if there else []
            found = Seen(phrase, pixels, relevance, own, peak(relevance))
            if own and there:
                rounds.append(Pointed(phrase, found.hit, inside((0.5, 0.5), own), area(own), len(there)))
            if met % stride == 0:
                seen.append(found)
            met += 1
            if len(seen) > 2 * max(cfg.show, 1):  # maps spread over all pictures, and never more than twice as many
                seen, stride = seen[::2], 2 * stride
    if not seen:
        raise UsageError(f"`images` {cfg.images}: none of its pictures is in `boxes` {cfg.boxes} with a known category")
    result = _result(cfg, pointer, rounds, pictures, time.perf_counter() - began) | left_out(images=unreadable)
    _say(result, rounds, pointer)
    if Path(cfg.run).is_dir():
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result, seen


def _by_key(boxes: dict[str, Boxes], keys: list[str], cfg: GroundConfig) -> dict[str, Boxes]:
    """Boxes of the pictures with these keys. Raises UsageError where it is not clear which picture is meant."""
    names = list(boxes)
    found = zip(keys, Names(names, f"`boxes` {cfg.boxes}").find_all(keys), strict=True)
    return {key: boxes[names[number]] for key, number in found if number is not None}


def _maps(
    pointer: Pointer, cfg: GroundConfig, source: Dataset, count: int, unreadable: Unreadable
) -> Iterator[tuple[str, np.ndarray, Tensor]]:
    """(key, pixels for the page, maps [phrases, h, w]) of each picture."""
    encoder, device = pointer.encoder.eval(), one_device(cfg.device)
    encoder.to(device)
    size = encoder.image_size
    for record in map(source.__getitem__, range(count)):
        try:
            pixels, _, _ = decode_upright(record.image)
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            continue
        # The whole picture, squeezed into a square: a centre crop would cut what the boxes show.
        square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].to(device)
        maps = pointer.maps(encoder.normalize(x))[0]
        small = Image.fromarray(pixels)
        small.thumbnail((SHOWN, SHOWN))
        yield record.key, np.array(small), maps
    unreadable.check(count)


def _result(
    cfg: GroundConfig, pointer: Pointer, rounds: list[Pointed], pictures: int, seconds: float
) -> dict[str, Any]:
    result: dict[str, Any] = {"task": "ground", "route": pointer.route, "pictures": pictures}
    if rounds:
        scores = {name: round(value, 2) if value == value else None for name, value in pointing_game(rounds).items()}
        result |= {"pointing": scores, "rounds": len(rounds), "hard_rounds": sum(r.hard for r in rounds)}
        result["categories"] = len({entry.category for entry in rounds})
    if pointer.matches:
        result |= matching(pointer.matches, pointer.encoder)
    return result | {
        "images": cfg.images,
        "boxes": cfg.boxes,
        "image_size": pointer.encoder.image_size,
        "encoder": cfg.run,
        "seconds": round(seconds, 1),
    }


def _say(result: dict[str, Any], rounds: list[Pointed], pointer: Pointer) -> None:
    if lost := [match.name for match in pointer.matches if not match.rows]:
        say(f"left out, no synset near them in the vocabulary: {', '.join(lost)}")
    if not rounds:
        say(f"{result['encoder']}, {result['route']} route: {result['pictures']:,} pictures")
        return
    p = result["pointing"]
    rows = {
        "pointing game": f"{p['accuracy']:.2f} %   over all rounds {p['all']:.2f} %",
        "the centre": f"{p['centre']:.2f} %",
        "any place": f"{p['anywhere']:.2f} %",
    }
    if result["hard_rounds"]:
        rows |= {"hard rounds": f"{p['hard']:.2f} %", "the centre, hard": f"{p['hard_centre']:.2f} %"}
    say(
        table(
            rows,
            f"{result['encoder']}, {result['route']} route: {result['rounds']:,} rounds in "
            f"{result['pictures']:,} pictures, {result['categories']} categories",
        )
    )
