"""Where in an image an encoder sees something, and whether it is there: relevance maps and the pointing game."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catlip.data.coco import ShareBox
from catlip.models.encoder import Encoder


@torch.no_grad()
def position_vectors(encoder: Encoder, x: Tensor) -> Tensor:
    """Each position of the last feature map, put through the head as if it were the whole image: [B, h, w, D].

    x: square images in the encoder's input space. Where the pooled vector is the mean of the positions, as in ResNets,
    the mean of these is the pooled vector, and their product with a row of a linear classifier is the class
    activation map (Zhou et al. 2016, arXiv 1512.04150). Where a norm follows the mean (ConvNeXt, ViTs with average
    pooling) each position is normed by itself. In ViTs with a class token the classifier has never read a patch: its
    rows are applied to patches after the last norm, which works as far as the two share a space.
    """
    backbone: Any = encoder.backbone
    features = backbone.forward_features(x)
    if features.ndim == 4:
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        features = features if last else features.permute(0, 2, 3, 1)
        batch, height, width, depth = features.shape
        vectors = features.reshape(-1, 1, 1, depth) if last else features.reshape(-1, depth, 1, 1)
    else:
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        tokens = features[:, prefix:]
        batch, number, depth = tokens.shape
        height = width = round(number**0.5)
        assert height * width == number, "a square image has a square of patches"
        vectors = tokens.reshape(-1, 1, depth)
        if prefix and getattr(backbone, "global_pool", "") not in ("token", ""):
            vectors = torch.cat([features[:, :prefix].repeat_interleave(number, 0), vectors], dim=1)
    pooled = backbone.forward_head(vectors, pre_logits=True)
    return pooled.float().reshape(batch, height, width, -1)


def peak(relevance: Tensor) -> tuple[float, float]:
    """(x, y) of the best position of a map [h, w], as shares of the image: the middle of its cell.

    That is where the map enlarged bilinearly has its maximum. The first of several equal ones.
    """
    best = int(relevance.argmax())
    height, width = relevance.shape
    return (best % width + 0.5) / width, (best // width + 0.5) / height


def inside(point: tuple[float, float], boxes: Sequence[ShareBox]) -> bool:
    """Whether a point lies in one of the boxes, edges included."""
    x, y = point
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


@dataclass(frozen=True, slots=True)
class Pointed:
    """One round of the game: an image and a category that is in it."""

    category: str
    hit: bool
    centre_hit: bool  # whether the centre of the image would have been right
    area: float  # share of the image that the category's boxes cover
    categories: int  # that the image shows

    @property
    def hard(self) -> bool:
        """Boxes over less than a quarter of the image, and another category beside them."""
        return self.area < 0.25 and self.categories > 1


def area(boxes: Sequence[ShareBox]) -> float:
    """Share of the image that the boxes cover together, overlaps counted once. On a grid of 100 x 100 points."""
    at = (torch.arange(100) + 0.5) / 100
    covered = torch.zeros(100, 100, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        across, down = (left <= at) & (at <= right), (top <= at) & (at <= bottom)
        covered |= down[:, None] & across
    return covered.double().mean().item()


def pointing_game(rounds: Sequence[Pointed]) -> dict[str, float]:
    """In percent (Zhang et al. 2016, arXiv 1608.00507, section 5.1; without their tolerance of 15 pixels).

    {"accuracy": mean over categories, "centre": the same of always pointing at the centre, "anywhere": of a random
    point, "all": over all rounds, "hard" and "hard_centre": mean over categories of the hard rounds}; NaN without
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
