"""Captions find their pictures, and pictures their captions. The verb `retrieve`.

Protocol of Hodosh et al. (2013), as CLIP and its successors report it: a picture has found its text if any of its
captions is among the first K; each caption is a query for its picture.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.data.batches import to_classes
from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.class_names import run_labeler
from catlip.evaluation.classification import NEVER
from catlip.evaluation.features import Captioned, embed_source, read_captions
from catlip.evaluation.zero_shot import Route, embed_texts, head_of, open_routes
from catlip.labels.labeler import Labeler
from catlip.models.encoder import Encoder
from catlip.notices import say
from catlip.training.distributed import one_device
from catlip.training.log import append_json, table


@dataclass(kw_only=True, slots=True)
class RetrieveConfig:
    """Settings of `catlip retrieve`."""

    run: str  # run folder or model folder
    data: str  # captioned pictures, as `catlip pretrain` takes them
    captions: str | None = None  # instead of the data's own: a text file, one a line, or JSON {key: [captions]}
    image_col: str | None = None
    text_col: str | None = None
    route: Route = "auto"  # head: the classifier's rows of a caption's labels; text: the text tower; auto: all there is
    image_size: int | None = None  # pixels; default: the encoder's own
    device: str = "auto"


def retrieve(cfg: RetrieveConfig) -> dict[str, Any]:
    """R@1, 5, 10 in percent, both ways, of each route; one line is added to the run's results.jsonl.

    Raises UsageError for captions that do not fit the pictures, and for a route that the run does not have.
    """
    began = time.perf_counter()
    encoder, dual, tokenizer = open_routes(cfg.run, cfg.route)
    if cfg.image_size:
        encoder.resize(cfg.image_size)
    source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    other = None
    if cfg.captions:
        other = read_captions(cfg.captions, [source[i].key for i in range(len(source))])
    data = embed_source(encoder, source, one_device(cfg.device), other)
    texts = [caption for captions in data.captions for caption in captions]
    if not texts:
        raise UsageError(f"`data` {cfg.data}: not one picture has a caption; `captions` names a file that has them")
    found: dict[str, dict[str, Any]] = {}
    labeler = run_labeler(cfg.run)
    if cfg.route != "text" and any(map(labeler.wordnet.has_synset, encoder.labels)):
        pictures, captions = by_labels(encoder, data.pooled, texts, labeler)
        found["head"] = both_ways(pictures, captions, data)
        found["head"]["captions_without_label"] = int(captions.eq(0).all(1).sum())
    elif cfg.route == "head":
        raise UsageError(f"{cfg.run}: its labels are no synsets, so a caption has no rows among them; `route` text")
    if dual is not None and tokenizer is not None:
        dual.cpu()
        with torch.no_grad():
            found["text"] = both_ways(dual.embed_pooled(data.pooled), embed_texts(dual, tokenizer, texts), data)
    if not found:
        raise UsageError(
            f"{cfg.run} has no text tower and its labels are no synsets: `catlip align {cfg.run} "
            "`data` CAPTIONED `out` NEW` trains a tower"
        )
    result = {
        "task": "retrieve",
        **found,
        "pictures": len(data),
        "captions": len(texts),
        "data": cfg.data,
        "image_size": encoder.image_size,
        "encoder": cfg.run,
        "seconds": round(time.perf_counter() - began, 1),
        **left_out(data=data.unreadable),
    }
    _say(result, found)
    if Path(cfg.run).is_dir():
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result


def both_ways(pictures: Tensor, captions: Tensor, data: Captioned) -> dict[str, Any]:
    """Recalls in percent: {"image_to_text": {"r@1", ...}, "text_to_image": ...}. pictures [N, D], captions [M, D].

    Pictures without a caption are found or not, but look for nothing.
    """
    owners, numbers = data.owners(), torch.arange(len(pictures))
    asking = numbers[torch.tensor([bool(captions) for captions in data.captions])]
    to_text = recalls(first_ranks(pictures[asking], captions, asking, owners))
    to_image = recalls(first_ranks(captions, pictures, owners, numbers))
    ways = {"image_to_text": to_text, "text_to_image": to_image}
    return {way: {name: round(value, 2) for name, value in values.items()} for way, values in ways.items()}


def by_labels(encoder: Encoder, pooled: Tensor, texts: list[str], labeler: Labeler) -> tuple[Tensor, Tensor]:
    """(pictures [N, D], captions [M, D]) for the inner product, by the classifier's rows of a caption's labels.

    A caption is the sum of its labels' rows, of unit length, or a caption of many labels would score more extremely
    than one of few; a picture is its pooled vector less the mean of all of them, which does away with what all
    pictures score alike (docs/language.md has the measurements). As logits are linear, that is the sum of the labels'
    logits, and one vector a caption is all that is kept. A caption that names no label is the zero vector: it scores
    0 with every picture, and ties count against it.
    """
    weight, _ = head_of(encoder)
    index = {label: i for i, label in enumerate(encoder.labels)}
    classes = torch.tensor([index.get(synset, -1) for synset in labeler.synsets], dtype=torch.int32).numpy()
    labels, offsets = to_classes(*labeler.sparse(texts), classes, len(texts))
    rows = torch.repeat_interleave(torch.arange(len(texts)), torch.from_numpy(offsets).diff())
    captions = torch.zeros(len(texts), weight.shape[1])
    for some, into in zip(torch.from_numpy(labels).split(100_000), rows.split(100_000), strict=True):
        captions.index_add_(0, into, weight[some])
    return pooled - pooled.mean(0), F.normalize(captions, dim=1)


def _say(result: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    rows = {}
    for route, ways in found.items():
        for way in ("image_to_text", "text_to_image"):
            told = "   ".join(f"{name.upper()} {value:.2f}" for name, value in ways[way].items() if name[0] == "r")
            rows[f"{route} route, {way.replace('_', ' ')}"] = f"{told}   median rank {ways[way]['median_rank']:g}"
    chance = (f"R@{k} {min(100 * k / result['pictures'], 100):.2f}" for k in (1, 5, 10))
    rows["chance, text to image"] = "   ".join(chance)
    title = f"{result['encoder']}: {result['pictures']:,} pictures, {result['captions']:,} captions; recall in percent"
    say(table(rows, title))


# Who finds whom: ranks and recall of cross-modal retrieval, exact, a block of scores at a time.

ROUNDING = 1e-6  # of the vectors' lengths: scores nearer than that are equal, however a matrix product rounded them
BLOCK = 2**24  # scores at a time, 64 MiB


def first_ranks(
    queries: Tensor, candidates: Tensor, query_owner: Tensor, candidate_owner: Tensor, block: int = BLOCK
) -> Tensor:
    """int64 [Q]: how many candidates of other owners score at least as well as the best of the query's own.

    queries [Q, D], candidates [C, D], scored by inner product; owner: number of the picture each belongs to. 0 is a
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
