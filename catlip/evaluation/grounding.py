"""Where in the image is it? Relevance maps of phrases, and the pointing game on boxes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from catlip import page
from catlip.config import configure
from catlip.data.coco import ShareBox, read_instances
from catlip.data.dataset import Dataset
from catlip.data.image_lookup import Names
from catlip.data.images import Unreadable, UnreadableImageError, decode_upright, left_out
from catlip.data.open import open_dataset, open_images
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Match, Matcher, run_labeler
from catlip.evaluation.features import data_name
from catlip.evaluation.relevance import Pointed, area, inside, peak, pointing_game, position_vectors
from catlip.evaluation.result import NOT_SAVED, Result, Table, listed, percent
from catlip.evaluation.transfer_init import head_of
from catlip.evaluation.zero_shot import TEMPLATES, Route, embed_names, matching, open_routes
from catlip.models.weights import named
from catlip.notices import say
from catlip.training.distributed import one_device

SIDE = 480  # pixels of the longer side on the page
HEAT = np.array([[20, 30, 110], [40, 120, 200], [240, 230, 90], [230, 60, 30]], np.float32)  # from little to much
Boxes = dict[str, list[ShareBox]]  # of an image, by category


@dataclass(kw_only=True, slots=True)
class GroundConfig:
    """Settings of `catlip ground`."""

    run: str  # run folder or model folder; from Python also an Encoder or a Run
    images: str  # a folder, a picture, tars, or a table of paths; from Python also a Dataset
    boxes: str | None = None  # COCO file with boxes: its categories are the phrases, and the pointing game is played
    phrases: tuple[str, ...] = ()  # what to look for; without --boxes
    route: Route = "auto"  # head: rows of the classifier; text: the text tower; auto: head if there is one
    image_size: int | None = None  # pixels of the square that pictures are resized to; default: the encoder's own
    out: str | None = None  # page; default: RUN/grounding.html
    show: int = 24  # maps on the page
    limit: int = 0  # pictures; 0: all
    device: str = "auto"


@dataclass(slots=True)
class RelevanceMap:
    """Where a phrase is in an image."""

    phrase: str
    pixels: np.ndarray  # uint8 [h, w, 3], small
    relevance: Tensor  # [h, w] of the feature map
    boxes: list[ShareBox]  # of the phrase, where they are known
    point: tuple[float, float]  # of the highest relevance, as shares of width and height

    @property
    def hit(self) -> bool:
        return inside(self.point, self.boxes)

    def drawn(self) -> Image.Image:
        """The image under its map, boxes and the best point."""
        height, width = self.pixels.shape[:2]
        low, high = self.relevance.min(), self.relevance.max()
        level = ((self.relevance - low) / (high - low).clamp_min(1e-12))[None, None]
        smooth = F.interpolate(level, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
        place = smooth * (len(HEAT) - 1)
        first = np.minimum(place.astype(int), len(HEAT) - 2)
        heat = HEAT[first] + (HEAT[first + 1] - HEAT[first]) * (place - first)[..., None]
        image = Image.fromarray((0.5 * self.pixels + 0.5 * heat).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for left, top, right, bottom in self.boxes:
            corners = (left * width, top * height, right * width - 1, bottom * height - 1)
            if corners[0] < corners[2] and corners[1] < corners[3]:
                draw.rectangle(corners, outline="white", width=2)
        x, y = self.point[0] * width, self.point[1] * height
        for colour, thick in (("black", 5), ("white", 2)):
            draw.line((x - 9, y, x + 9, y), fill=colour, width=thick)
            draw.line((x, y - 9, x, y + 9), fill=colour, width=thick)
        return image


@dataclass(kw_only=True)
class GroundResult(Result):
    """The pointing game where boxes are known, and some of the maps."""

    task: ClassVar[str] = "ground"
    heading: ClassVar[str] = "Where is it?"
    page_name: ClassVar[str] = "grounding.html"

    route: str
    pictures: int
    pointing: dict[str, float | None] = field(default_factory=dict)  # see `pointing_game`
    rounds: int | None = None  # an image and a category that is in it
    hard_rounds: int | None = None
    categories: int | None = None
    matched: dict[str, int] = field(default_factory=dict)  # "exact", "below", "above", "missing" -> phrases
    names: dict[str, str] = field(default_factory=dict)  # phrase -> the rows of the classifier that stand for it
    alike: list[list[str]] = field(default_factory=list)  # phrases with the same rows
    images: str
    boxes: str | None
    image_size: int
    maps: list[RelevanceMap] = field(default_factory=list, metadata=NOT_SAVED)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | ({"alike": self.alike} if self.names else {})

    def tables(self) -> list[Table]:
        lost = [name for name, told in self.names.items() if told.startswith("missing")]
        note = f"Left out, no synset near them in the vocabulary: {listed(lost)}" if lost else ""
        if not self.pointing:
            title = f"{self.encoder}, {self.route} route: {self.pictures:,} pictures at {self.image_size} px"
            return [Table(title, [], note=note)]
        show = {name: percent(value) for name, value in self.pointing.items()}
        rows = [
            ["pointing game", show["accuracy"], show["hard"]],
            ["the centre", show["centre"], show["hard_centre"]],
            ["any point", show["anywhere"]],
            ["pointing game, over rounds", show["all"]],
            ["rounds", f"{self.rounds:,}", f"{self.hard_rounds:,}"],
        ]
        title = (
            f"{self.encoder}, {self.route} route: {self.rounds:,} rounds in {self.pictures:,} pictures, "
            f"{self.categories} categories, mean over categories"
        )
        hard = (
            "A round is won if the point that answers most lies in a box of the category. Hard: the boxes cover less "
            "than a quarter of the picture, and it shows another category"
        )
        return [Table(title, rows, ["", "all rounds", "hard rounds"], ". ".join(filter(None, [hard, note])))]

    def drawings(self) -> list[page.Html]:
        cards = [
            page.card(
                page.drawing(one.drawn(), one.phrase),
                one.phrase,
                [("", page.tags(["hit" if one.hit else "miss"], {"hit"}))] if one.boxes else [],
            )
            for one in self.maps
        ]
        boxes = "; boxes in white." if self.pointing else "."
        note = f"Blue answers little, red most; the cross is the best point{boxes}"
        return [page.heading("Maps"), page.paragraph(note), page.grid(cards, 300)]


class Pointer:
    """Phrases -> directions in the space of the feature map's vectors; a map is their product at every position."""

    def __init__(self, run: Any, route: Route, image_size: int | None, phrases: list[str]) -> None:
        """Raises UsageError if the route is not there or none of the phrases means anything to it."""
        routes = open_routes(run, route, image_size)
        self.encoder, self.dual, self.known = routes.encoder, None, phrases
        self.matches: list[Match] = []
        if route != "text" and self.encoder.labels:
            self.matches = Matcher(self.encoder.labels, run_labeler(run))([ClassName(p) for p in phrases])
            self.known = [match.name for match in self.matches if match.rows]
            weight, _ = head_of(self.encoder)
            # Less the mean row: where this label answers more than labels do on the whole. 3 points better, measured.
            rows = [weight[list(match.rows)].mean(0) - weight.mean(0) for match in self.matches if match.rows]
            if not rows:
                raise UsageError(f"{named(run)}: no phrase is near a synset that it knows, e.g. {phrases[0]!r}")
            self.directions = torch.stack(rows)
        else:
            assert routes.dual is not None
            self.dual = routes.dual
            self.directions = embed_names(routes.dual, phrases, TEMPLATES)

    def to(self, device: Any) -> "Pointer":
        """The same, which computes there."""
        (self.dual or self.encoder).to(device)
        return self

    @torch.no_grad()
    def maps(self, x: Tensor) -> Tensor:
        """x: images in the encoder's input space -> [B, len(self.known), h, w]."""
        vectors = position_vectors(self.encoder, x)
        if self.dual is not None:
            vectors = self.dual.embed_pooled(vectors)
        return torch.einsum("bhwd,kd->bkhw", vectors.float(), self.directions.to(vectors.device)).cpu()


@dataclass(slots=True)
class EvenSample:
    """So many of the maps that come by, evenly spread over all of them; at most twice as many are in memory."""

    size: int
    kept: list[RelevanceMap] = field(default_factory=list)
    met: int = 0
    stride: int = 1  # one of so many is kept

    def add(self, found: RelevanceMap) -> None:
        if self.met % self.stride == 0:
            self.kept.append(found)
        self.met += 1
        if len(self.kept) > 2 * self.size:
            self.kept, self.stride = self.kept[::2], 2 * self.stride

    def chosen(self) -> list[RelevanceMap]:
        step = max(1, len(self.kept) / self.size)
        return [self.kept[int(i * step)] for i in range(min(self.size, len(self.kept)))]


def ground(
    encoder: Any = None, images: Any = None, *, config: GroundConfig | None = None, **settings: Any
) -> GroundResult:
    """Pointing-game accuracy in percent where there are boxes, and some of the maps.

    encoder: an Encoder, a Run, or what `catlip.load` takes. images: where they lie, or a Dataset. settings: fields of
    `GroundConfig`: `boxes`, or `phrases`. Where the encoder has a folder, a line is added to its results.jsonl. Raises
    UsageError for phrases that are missing or unknown, images without boxes, and a size that the encoder refuses.

        catlip.ground("runs/a", "photos", phrases=["dog", "a red car"]).maps[0].drawn()
    """
    began = time.perf_counter()
    cfg = configure(GroundConfig, config, run=encoder, images=images, **settings)
    if min(cfg.limit, cfg.show) < 0:
        raise UsageError(f"`limit` {cfg.limit} and `show` {cfg.show}: numbers of pictures, 0 or more")
    phrases, boxes = _phrases(cfg)
    dataset = open_images(cfg.images) if isinstance(cfg.images, str) else open_dataset(cfg.images)
    count = min(cfg.limit or len(dataset), len(dataset))
    by_key = _by_key(boxes, list(islice(dataset.keys(), count)), cfg) if cfg.boxes else {}
    pointer = Pointer(cfg.run, cfg.route, cfg.image_size, phrases)
    rounds, some, pictures, unreadable = list[Pointed](), EvenSample(max(cfg.show, 1)), 0, Unreadable()
    for key, pixels, maps in _maps(pointer, cfg, dataset, count, unreadable):
        there = by_key.get(key, {})
        if cfg.boxes and not there:
            continue
        pictures += 1
        for phrase, relevance in zip(pointer.known, maps, strict=True):
            if cfg.boxes and phrase not in there:
                continue
            own = there.get(phrase, [])
            found = RelevanceMap(phrase, pixels, relevance, own, peak(relevance))
            some.add(found)
            if own:
                rounds.append(Pointed(phrase, found.hit, inside((0.5, 0.5), own), area(own), len(there)))
    name = data_name(cfg.images, dataset)
    if not some.kept:
        raise UsageError(f"`images` {name}: none of its pictures is in `boxes` {cfg.boxes} with a known category")
    return GroundResult(
        route="text" if pointer.dual is not None else "head",
        pictures=pictures,
        **_scores(rounds),
        **(matching(pointer.matches, pointer.encoder) if pointer.matches else {}),
        images=name,
        boxes=cfg.boxes,
        image_size=pointer.encoder.image_size,
        encoder=named(cfg.run),
        maps=some.chosen()[: cfg.show],
        **left_out(images=unreadable),
    ).saved(cfg.run, began)


def _phrases(cfg: GroundConfig) -> tuple[list[str], dict[str, Boxes]]:
    """(what to look for, boxes by image). Raises UsageError."""
    if bool(cfg.boxes) == bool(cfg.phrases):
        raise UsageError('say what to look for: `boxes` COCO.json, or `phrases` dog "a red car"; one of them')
    if cfg.boxes:
        instances = read_instances(cfg.boxes)
        instances.check("`boxes`")
        say(f"{cfg.boxes}: {instances.described}")
        boxes = instances.boxes()
        return sorted({name for found in boxes.values() for name in found}), boxes
    if not all(phrase.strip() for phrase in cfg.phrases):
        raise UsageError("`phrases`: an empty phrase")
    return list(cfg.phrases), {}


def _by_key(boxes: dict[str, Boxes], keys: list[str], cfg: GroundConfig) -> dict[str, Boxes]:
    """Boxes of the images with these keys. Raises UsageError where it is not clear which image is meant."""
    names = list(boxes)
    found = zip(keys, Names(names, f"`boxes` {cfg.boxes}").find_all(keys), strict=True)
    return {key: boxes[names[number]] for key, number in found if number is not None}


def _maps(
    pointer: Pointer, cfg: GroundConfig, dataset: Dataset, count: int, unreadable: Unreadable
) -> Iterator[tuple[str, np.ndarray, Tensor]]:
    """(key, pixels for the page, maps [phrases, h, w]) of each image."""
    device = one_device(cfg.device)
    encoder = pointer.to(device).encoder.eval()
    size = encoder.image_size
    for sample in map(dataset.__getitem__, range(count)):
        try:
            pixels, _, _ = decode_upright(sample.image)
        except UnreadableImageError as error:
            unreadable.add(sample.key, str(error))
            continue
        # The whole image, squeezed into a square: a center crop would cut what the boxes show.
        square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].to(device)
        maps = pointer.maps(encoder.normalize(x))[0]
        small = Image.fromarray(pixels)
        small.thumbnail((SIDE, SIDE))
        yield sample.key, np.array(small), maps
    unreadable.check(count)


def _scores(rounds: list[Pointed]) -> dict[str, Any]:
    if not rounds:
        return {}
    scores = {name: round(value, 2) if value == value else None for name, value in pointing_game(rounds).items()}
    counts = {"rounds": len(rounds), "hard_rounds": sum(entry.hard for entry in rounds)}
    return {"pointing": scores, **counts, "categories": len({entry.category for entry in rounds})}
