"""Images on a map by their encoder's features: a page to look at, to search and to walk through. The verb `atlas`."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from catlip import page
from catlip.config import configure
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import Unreadable, left_out, read_image
from catlip.data.open import open_dataset, open_images
from catlip.data.subsets import subset
from catlip.errors import UsageError
from catlip.evaluation.class_names import run_labeler
from catlip.evaluation.features import data_name, features, open_encoder
from catlip.evaluation.transfer_init import head_of
from catlip.models.encoder import Encoder
from catlip.models.weights import named
from catlip.notices import say
from catlip.training.distributed import one_device

PIXELS = 10_000 * 64 * 64  # of all thumbnails: 64 x 64 each of 10,000 images, and LARGEST of 1,600
LARGEST = 160  # a thumbnail's longer side
COLUMNS = 32  # of a sheet of thumbnails, and its rows
SCALE = 65_535  # of the coordinates
COMPONENTS = 50  # of the features, that t-SNE is given
PREDICTED = 3  # labels of an image that has neither captions nor a class
HOW = "Click a point, drag, zoom in until there are pictures; or use the arrow keys, + and -."
CAPTION = 300  # characters
LABELS = 30  # of an image


@dataclass(kw_only=True, slots=True)
class AtlasConfig:
    """Settings of `catlip atlas`."""

    run: str  # run folder, model folder, or timm:NAME; from Python also an Encoder or a Run
    images: str  # captioned or labelled pictures, or a folder of pictures; from Python also a Dataset or a list
    out: str = "atlas"  # folder; its index.html is all there is, and opens from disk
    limit: int = 10_000  # pictures; of more, so many are drawn at random
    image_col: str | None = None
    text_col: str | None = None
    image_size: int | None = None  # pixels; default: the encoder's own
    seed: int = 0  # of what is drawn, and of the map
    device: str = "auto"


@dataclass(slots=True)
class Mapped:
    """The images of a map, N of them."""

    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)  # names
    thumbnails: list[Image.Image] = field(default_factory=list)


def atlas(encoder: Any = None, images: Any = None, *, config: AtlasConfig | None = None, **settings: Any) -> Path:
    """A page with the images on a map, on which what the encoder finds alike is near; the file.

    encoder: an Encoder, a Run, or what `catlip.load` takes. images: what `catlip.open` takes, or a folder of images.
    settings: fields of `AtlasConfig`. An image's labels are those of its captions, else its classes, else the encoder's
    best ones. The same images give the same page. Raises UsageError for an `out` that has a page, and without
    scikit-learn.
    """
    cfg = configure(AtlasConfig, config, run=encoder, images=images, **settings)
    path = Path(cfg.out) / "index.html"
    if path.exists():
        raise UsageError(f"`out` {cfg.out} already holds a page; choose another folder")
    if cfg.limit < 1:
        raise UsageError("`limit` is a positive number")
    _sklearn()
    dataset = _opened(cfg)
    drawn = np.sort(np.random.default_rng(cfg.seed).permutation(len(dataset))[: cfg.limit])
    model, unreadable = open_encoder(cfg.run, cfg.image_size), Unreadable()
    pooled, shown, source = _looked_at(cfg, model, subset(dataset, drawn), unreadable)
    left_out(images=unreadable)
    say(f"{len(pooled):,} pictures are laid out")
    about = [
        f"{len(pooled):,} pictures of {data_name(cfg.images, dataset)}",
        f"a random part of {len(dataset):,}" if len(drawn) < len(dataset) else "",
        f"{len(unreadable.reasons)} could not be read" if unreadable.reasons else "",
        f"by the features of {named(cfg.run)}",
    ]
    parts = _parts(", ".join(filter(None, about)), project(pooled, cfg.seed), shown, source)
    page.write(path, page.page("Atlas", *parts))
    say(f"{path}: the map")
    return path


def _opened(cfg: AtlasConfig) -> Dataset:
    """With captions, else with classes, else the images alone. Raises UsageError."""
    if cfg.image_col or cfg.text_col:
        return open_dataset(cfg.images, image_col=cfg.image_col, text_col=cfg.text_col)
    with suppress(UsageError):
        found = open_dataset(cfg.images)
        if any(found[number].captions for number in range(min(len(found), 100))):
            return found
    with suppress(UsageError):
        return open_dataset(cfg.images, target="classes")
    return open_images(cfg.images)


def _looked_at(cfg: AtlasConfig, encoder: Encoder, data: Dataset, unreadable: Unreadable) -> tuple[Tensor, Mapped, str]:
    """(features [N, D], what is shown of the images, where their labels are from)."""
    labeler, shown = run_labeler(cfg.run), Mapped()
    names, side = dict(zip(encoder.labels, encoder.names, strict=True)), thumbnail_side(len(data))
    classes = getattr(data, "classes", None)

    def met(numbers: list[int], samples: list[Sample]) -> None:
        for number, sample in zip(numbers, samples, strict=True):
            shown.keys.append(sample.key[:CAPTION])
            shown.captions.append(" / ".join(sample.captions)[:CAPTION])
            if classes is None:
                synsets = sorted({synset for found in labeler(sample.captions) for synset in found})
                found = [names.get(synset) or labeler.name(synset) for synset in synsets]
            else:
                found = [classes[c] for c in data.labels[data.offsets[number] : data.offsets[number + 1]]]
            shown.labels.append([name.replace("_", " ")[:CAPTION] for name in found[:LABELS]])
            picture = read_image(sample.image)
            picture.thumbnail((side, side))
            shown.thumbnails.append(picture)

    pooled, _ = features(encoder, data, one_device(cfg.device), unreadable, met=met)
    if classes is not None or any(shown.captions):
        return pooled, shown, "their classes" if classes is not None else "the labels of their captions"
    if encoder.labels:
        weight, bias = head_of(encoder)
        best = (pooled @ weight.T + bias).topk(min(PREDICTED, len(bias)), dim=1).indices.tolist()
        shown.labels = [[encoder.names[label].replace("_", " ") for label in some] for some in best]
    return pooled, shown, f"the encoder's {PREDICTED} best labels, as there are no captions"


def thumbnail_side(count: int) -> int:
    """Pixels of a thumbnail's longer side, so that the page of any number of images is bounded."""
    return min(LARGEST, int((PIXELS / max(count, 1)) ** 0.5))


def project(pooled: Tensor, seed: int = 0) -> np.ndarray:
    """int [N, 2] from 0 to SCALE: features of unit length on a plane, by principal components and t-SNE.

    t-SNE (van der Maaten and Hinton 2008) keeps neighbours; distances between groups mean little. Raises UsageError for
    features that are not finite.
    """
    decomposition, manifold = _sklearn()
    x = F.normalize(pooled, dim=1).double().numpy()
    if not np.isfinite(x).all():
        raise UsageError("the encoder's features are not finite; is it trained?")
    x = x - x.mean(0)
    if len(x) >= 5 and x.std() > 1e-9:  # else there is nothing to lay out
        x = decomposition.PCA(min(COMPONENTS, *x.shape), svd_solver="full", random_state=seed).fit_transform(x)
        perplexity = min(30.0, (len(x) - 1) / 3)
        x = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    x = x[:, :2] - x[:, :2].min(0)
    x = x + (x.max() - x.max(0)) / 2  # in the middle of a square
    return np.rint(x / max(x.max(), 1e-9) * SCALE).astype(int)


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import decomposition, manifold
    except ImportError:
        raise UsageError("the map needs scikit-learn: pip install 'catlip[atlas]'") from None
    return decomposition, manifold


def ranked(labels: Sequence[Sequence[str]]) -> tuple[list[str], list[int], list[list[int]]]:
    """(names, the most used first; how many images have each; each image's labels as numbers of names, ascending)."""
    uses = Counter(name for some in labels for name in set(some))
    names = sorted(uses, key=lambda name: (-uses[name], name))
    number = {name: i for i, name in enumerate(names)}
    return names, [uses[name] for name in names], [sorted({number[name] for name in some}) for some in labels]


def _parts(about: str, places: np.ndarray, shown: Mapped, source: str) -> list[page.Html]:
    names, counts, labels = ranked(shown.labels)
    data = {
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "width": [one.width for one in shown.thumbnails],
        "height": [one.height for one in shown.thumbnails],
        "keys": shown.keys,
        "captions": shown.captions,
        "labels": labels,
        "names": names,
        "counts": counts,
        "scale": SCALE,
        "side": thumbnail_side(len(shown.keys)),
        "columns": COLUMNS,
    }
    help_ = (
        f"Map of {len(places):,} pictures. Arrow keys go to the next picture, plus and minus zoom, 0 shows everything"
    )
    script = resources.files("catlip.report").joinpath("atlas.js").read_text(encoding="utf-8")
    inside = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it ends the script
    return [
        page.paragraph(f"{about}. What is alike to the encoder is near; distances between groups mean little."),
        page.paragraph((f"Colour: the most used of {source}. " if names else "") + HOW, soft=True),
        page.Html(
            f'<style>{STYLE}</style><p><input type="search" id="find" placeholder="Search a noun" '
            f'aria-label="Search a noun" aria-controls="matches"> <span class="soft" role="status" id="count"></span>'
            f'</p><p id="legend"></p><div class="atlas"><canvas id="map" tabindex="0" role="application" '
            f'aria-label="{page.escape(help_)}"></canvas><div id="panel" class="card" aria-live="polite">No picture is '
            f'chosen.</div></div><div id="matches"></div>{_sheets(shown.thumbnails, data["side"])}'
            f'<script type="application/json" id="atlas">{inside}</script><script>{script}</script>'
        ),
    ]


STYLE = """
.atlas{display:flex;flex-wrap:wrap;gap:.8rem}#map{flex:3 1 20rem;min-width:0;height:min(70vh,40rem,100vw);
cursor:crosshair;touch-action:none;background:var(--card);border:1px solid var(--line);border-radius:10px}
#panel{flex:1 1 14rem;min-width:0}#panel canvas{width:100%}button{font:inherit;color:inherit;background:var(--card);
cursor:pointer}[aria-pressed=true]{background:var(--line)}
#matches{display:flex;flex-wrap:wrap;gap:.4rem;margin-top:.8rem}#matches .card{padding:.3rem}
#matches canvas{display:block}#count{white-space:nowrap}:focus-visible{outline:2px solid var(--c0);outline-offset:1px}
"""


def _sheets(thumbnails: Sequence[Image.Image], side: int) -> str:
    """Thumbnails in squares of COLUMNS x COLUMNS, row by row, as hidden images."""
    each, found = COLUMNS * COLUMNS, []
    for start in range(0, len(thumbnails), each):
        some = thumbnails[start : start + each]
        width, height = min(len(some), COLUMNS), -(-len(some) // COLUMNS)
        sheet, buffer = Image.new("RGB", (width * side, height * side)), io.BytesIO()
        for cell, one in enumerate(some):
            sheet.paste(one, (cell % COLUMNS * side, cell // COLUMNS * side))
        sheet.save(buffer, "JPEG", quality=75)
        found.append(page.image(buffer.getvalue(), "").text.replace("<img", '<img class="sheet" hidden', 1))
    return "".join(found)
