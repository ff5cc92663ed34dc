"""Captions find their images, and images their captions.

Protocol of Hodosh et al. (2013), as CLIP and its successors report it: an image has found its text if any of its
captions is among the first K; each caption is a query for its image.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.config import configure
from catlip.data.dataset import lines
from catlip.data.image_lookup import Names
from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.class_names import run_labeler, text_of
from catlip.evaluation.classification import NEVER
from catlip.evaluation.features import CaptionFeatures, caption_features, data_name
from catlip.evaluation.result import Result, Table
from catlip.evaluation.transfer_init import head_of
from catlip.evaluation.zero_shot import Route, open_routes
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import classes_in
from catlip.models.encoder import Encoder
from catlip.models.weights import named
from catlip.training.distributed import one_device

ROUNDING = 1e-6  # of the vectors' lengths: scores nearer than that are equal, however a matrix product rounded them
BLOCK = 2**24  # scores at a time, 64 MiB
WAYS = ("image_to_text", "text_to_image")


@dataclass(kw_only=True, slots=True)
class RetrieveConfig:
    """Settings of `catlip retrieve`."""

    run: str  # run folder or model folder; from Python also an Encoder or a Run
    data: str  # captioned pictures, as `catlip pretrain` takes them; from Python also a Dataset or a list
    captions: str | None = None  # instead of the data's own: a text file, one a line, or JSON {key: [captions]}
    image_col: str | None = None
    text_col: str | None = None
    route: Route = "auto"  # head: the classifier's rows of a caption's labels; text: the text tower; auto: all there is
    image_size: int | None = None  # pixels; default: the encoder's own
    sentence_encoder: str | None = None  # of a run with frozen sentences, where it is now if not where it was
    device: str = "auto"


@dataclass(kw_only=True)
class RetrievalResult(Result):
    """Of each route, both ways: {"image_to_text": {"r@1", "r@5", "r@10", "median_rank"}, "text_to_image": ...}."""

    task: ClassVar[str] = "retrieve"
    heading: ClassVar[str] = "Cross-modal retrieval"

    head: dict[str, Any] = field(default_factory=dict)  # with "captions_without_label"; empty: route not taken
    text: dict[str, Any] = field(default_factory=dict)
    pictures: int
    captions: int
    data: str
    image_size: int

    def to_clip_benchmark(self) -> dict[str, Any]:
        """Of the text tower if there is one; `image_retrieval` is what texts find."""
        found = self.text or self.head
        ways = {"image": "text_to_image", "text": "image_to_text"}
        metrics = {f"{way}_retrieval_recall@{k}": found[ways[way]][f"r@{k}"] for k in (1, 5, 10) for way in ways}
        return self.as_clip_benchmark("zeroshot_retrieval", self.data, metrics, "text" if self.text else "head")

    def tables(self) -> list[Table]:
        rows = []
        for route in ("head", "text"):
            for way in WAYS if (found := getattr(self, route)) else ():
                cells = (
                    f"{value:g}" if name == "median_rank" else f"{value:.2f}" for name, value in found[way].items()
                )
                rows.append([f"{route} route, {way.replace('_', ' ')}", *cells])
        rows.append(["chance, text to image", *(f"{min(100 * k / self.pictures, 100):.2f}" for k in (1, 5, 10))])
        title = f"{self.encoder}: {self.pictures:,} pictures, {self.captions:,} captions; recall in percent"
        return [Table(title, rows, ["", "R@1", "R@5", "R@10", "median rank"])]


def retrieve(
    encoder: Any = None, data: Any = None, *, config: RetrieveConfig | None = None, **settings: Any
) -> RetrievalResult:
    """R@1, 5 and 10 in percent, both ways, of each route that the encoder has.

    encoder: an Encoder, a Run, or what `catlip.load` takes. data: captioned images, for `catlip.open`. settings: fields
    of `RetrieveConfig`. Where the encoder has a folder, a line is added to its results.jsonl. Raises UsageError
    for captions that do not fit the images, and for a route that the run does not have.
    """
    began = time.perf_counter()
    cfg = configure(RetrieveConfig, config, run=encoder, data=data, **settings)
    routes = open_routes(cfg.run, cfg.route, cfg.image_size, cfg.sentence_encoder)
    dataset = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    other = read_captions(cfg.captions, list(dataset.keys())) if cfg.captions else None
    found = caption_features(routes.encoder, dataset, one_device(cfg.device), other)
    texts = [caption for captions in found.captions for caption in captions]
    name = named(cfg.run)
    if not texts:
        raise UsageError(f"`data` {dataset.name}: not one picture has a caption; `captions` names a file that has them")
    scores: dict[str, dict[str, Any]] = {}
    labeler = run_labeler(cfg.run)
    if cfg.route != "text" and any(map(labeler.wordnet.has_synset, routes.encoder.labels)):
        images, captions = by_labels(routes.encoder, found.pooled, texts, labeler)
        scores["head"] = both_ways(images, captions, found)
        scores["head"]["captions_without_label"] = int(captions.eq(0).all(1).sum())
    elif cfg.route == "head":
        raise UsageError(f"{name}: its labels are no synsets, so a caption has no rows among them; `route` text")
    if routes.dual is not None:
        dual = routes.dual.cpu()
        with torch.no_grad():
            scores["text"] = both_ways(dual.embed_pooled(found.pooled), dual.embed_texts(texts), found)
    if not scores:
        raise UsageError(
            f"{name} has no text tower and its labels are no synsets: `catlip align {name} --data CAPTIONED --out NEW` "
            "trains a tower"
        )
    return RetrievalResult(
        **scores,
        pictures=len(found),
        captions=len(texts),
        data=data_name(cfg.data, dataset),
        image_size=routes.encoder.image_size,
        encoder=name,
        **left_out(data=found.unreadable),
    ).saved(cfg.run, began)


def both_ways(images: Tensor, captions: Tensor, data: CaptionFeatures) -> dict[str, Any]:
    """Recalls in percent: {"image_to_text": {"r@1", ...}, "text_to_image": ...}. images [N, D], captions [M, D].

    Images without a caption are candidates, but no queries.
    """
    owners, numbers = data.owners(), torch.arange(len(images))
    asking = numbers[torch.tensor([bool(captions) for captions in data.captions])]
    to_text = recalls(first_ranks(images[asking], captions, asking, owners))
    to_image = recalls(first_ranks(captions, images, owners, numbers))
    return {
        way: {name: round(value, 2) for name, value in values.items()}
        for way, values in zip(WAYS, (to_text, to_image), strict=True)
    }


def by_labels(encoder: Encoder, pooled: Tensor, texts: list[str], labeler: Labeler) -> tuple[Tensor, Tensor]:
    """(images [N, D], captions [M, D]) for the inner product, by the classifier's rows of a caption's labels.

    A caption is the sum of its labels' rows, of unit length, or a caption of many labels would score more extremely
    than one of few; an image is its pooled vector less the mean of all of them, which does away with what all
    images score alike (docs/language.md has the measurements). As logits are linear, that is the sum of the labels'
    logits, and one vector a caption is all that is kept. A caption that names no label is the zero vector: it scores
    0 with every image, and ties count against it.
    """
    weight, _ = head_of(encoder)
    index = {label: i for i, label in enumerate(encoder.labels)}
    classes = torch.tensor([index.get(synset, -1) for synset in labeler.synsets], dtype=torch.int32).numpy()
    labels, offsets = classes_in([[text] for text in texts], labeler, classes)
    rows = torch.repeat_interleave(torch.arange(len(texts)), torch.from_numpy(offsets).diff())
    captions = torch.zeros(len(texts), weight.shape[1])
    for some, into in zip(torch.from_numpy(labels).split(100_000), rows.split(100_000), strict=True):
        captions.index_add_(0, into, weight[some])
    return pooled - pooled.mean(0), F.normalize(captions, dim=1)


def first_ranks(
    queries: Tensor, candidates: Tensor, query_owner: Tensor, candidate_owner: Tensor, block: int = BLOCK
) -> Tensor:
    """int64 [Q]: how many candidates of other owners score at least as well as the best of the query's own.

    queries [Q, D], candidates [C, D], scored by inner product; owner: number of the image each belongs to. 0 is a
    hit at 1, 4 a hit at 5. A tie counts against the model, and so does NaN; a query whose owner has no candidate gets
    NEVER. Memory: a few blocks of scores, whatever Q and C are.
    """
    ranks = torch.empty(len(queries), dtype=torch.int64)
    size = max(1, block // max(len(candidates), 1))
    rounding = ROUNDING * queries.norm(dim=1, keepdim=True) * candidates.norm(dim=1).amax()
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        scores = queries[part] @ candidates.T
        own = query_owner[part, None] == candidate_owner
        best = scores.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
        better = ~(scores < best - rounding[part]) & ~own
        ranks[part] = torch.where(best[:, 0].isfinite(), better.sum(1), NEVER)
    return ranks


def recalls(ranks: Tensor, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """{"r@1": percent, ..., "median_rank": the middle query's rank, from 1}."""
    found = {f"r@{k}": 100 * ranks.lt(k).double().mean().item() for k in at}
    return {**found, "median_rank": ranks.double().quantile(0.5).item() + 1}


def read_captions(path: str | Path, keys: list[str]) -> list[list[str]]:
    """Captions from a file of their own, a list an image.

    Either a text file, one caption a line, as many an image for all and in the images' order; or JSON, {key or file
    name: [captions]}. keys: of the images. Raises UsageError if their numbers or names do not fit.
    """
    path, text = Path(path), text_of(path, "`captions`")
    if path.suffix == ".json":
        return _from_json(path, text, keys)
    found = lines(text)
    if len(found) % len(keys):
        raise UsageError(
            f"`captions` {path} has {len(found):,} captions for {len(keys):,} pictures; it needs as many lines as "
            "pictures, or 2, 3 ... times as many, those of one picture one below the other"
        )
    each = len(found) // len(keys)
    return [found[start : start + each] for start in range(0, len(found), each)]


def _from_json(path: Path, text: str, keys: list[str]) -> list[list[str]]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UsageError(f"`captions` {path} is no JSON: {error}") from None
    good = isinstance(table, dict) and all(
        isinstance(some, list) and all(isinstance(caption, str) for caption in some) for some in table.values()
    )
    if not good:
        raise UsageError(f"`captions` {path}: expected {{key: [captions]}}")
    numbers = Names(table, f"`captions` {path}").find_all(keys)
    missing = [key for key, number in zip(keys, numbers, strict=True) if number is None]
    if missing:
        raise UsageError(
            f"`captions` {path} has captions of {len(table):,} pictures; {len(missing):,} of the {len(keys):,} "
            f"pictures are not among them, e.g. {missing[0]}"
        )
    captions = list(table.values())
    return [captions[number] for number in numbers if number is not None]
