"""Transfer Init: a classifier for new classes that starts from the rows of a classifier of synsets.

CatLIP (arXiv 2404.15653, section 4.2; its released code has no such thing) takes for each class the row of its synset,
the mean row of the most path-similar ones, or a random row. Taken as they are, such rows do not classify: biases are
log-odds of how often captions name a thing, and logits of frequent synsets vary more. CIFAR-10, ten classes, resnet10t
after Flickr8k, without training: rows and biases as they are 10.0 % (one class for everything), without biases 16.2 %,
biases set so that classes are level over some images 19.5 %, and logits of equal deviation 20.9 %.

Which deviation does not change that, but what the first steps make of it. Fifty labelled images, AdamW at 1e-3 on
the head alone, mean of five subsets, accuracy after 0, 1, 3, 10 and 30 steps: deviation .1: 20.9 19.6 19.9 19.9 20.7;
.5: 20.9 20.8 20.6 21.5 21.6; 1: 20.9 21.1 21.3 21.9 21.8; 4: 20.9 20.9 21.1 21.3 20.4. One has also the lowest
cross-entropy before training (of .1, .25, .5, 1, 2). 256 images without labels level as well as 5,000, and 16 cost
half a point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Match, Matcher, run_labeler
from catlip.models.encoder import Encoder
from catlip.models.weights import named

ALPHA = 0.25  # least path similarity: three steps in WordNet, deer - ruminant - bovid - sheep


@dataclass(frozen=True, slots=True)
class TransferRows:
    """A classifier of C classes for pooled features [N, D], and where its rows are from."""

    weight: Tensor  # float32 [C, D]
    bias: Tensor  # float32 [C]
    matches: list[Match]


def told(matches: Sequence[Match], encoder: Encoder) -> dict[str, str]:
    """Class name -> what its row was made of, for people."""
    names = dict(zip(encoder.labels, encoder.names, strict=True))
    return {m.name: m.told(names) if m.rows else f"random ({m.told(names)})" for m in matches}


def transfer_rows(
    encoder: Encoder,
    run: Any,
    classes: Sequence[ClassName],
    pooled: Tensor,
    *,
    alpha: float = ALPHA,
    deviation: float = 1.0,
    seed: int = 0,
) -> TransferRows:
    """Rows and biases that put the classes on one level over some images of the new task.

    run: where the encoder is from; its vocabulary says how names are read. pooled [N, D]: Encoder.pooled of images of
    the new task, labelled or not; some 256 are enough, 2 the least. Over them, every class' logits have mean 0 and this
    deviation (a tenth of it where the row is random, so that a class nothing is known of starts at chance).
    Raises UsageError for an encoder without synsets, for names of which none is near one, and for images that
    are all alike.
    """
    matches = match_rows(encoder, run, classes, alpha)
    weight, _ = head_of(encoder)
    return scale_rows(matches, weight, pooled, deviation=deviation, seed=seed)


def match_rows(encoder: Encoder, run: Any, classes: Sequence[ClassName], alpha: float = ALPHA) -> list[Match]:
    """Where each class is found; needs no images. Raises UsageError as `transfer_rows` does."""
    if not 0 < alpha <= 1:
        raise UsageError(f"`alpha` {alpha:g}: path similarities are above 0 and at most 1")
    labeler, where = run_labeler(run), named(run)
    if not any(map(labeler.wordnet.has_synset, encoder.labels)):
        what = f"its labels are no synsets, e.g. {encoder.labels[0]!r}" if encoder.labels else "it has none"
        raise UsageError(
            f"`init` transfer takes rows from a classifier of synsets, and {where}: {what}. Take `init` random, or an "
            "encoder that `catlip pretrain` made with `objective` synsets"
        )
    head_of(encoder)
    matches = Matcher(encoder.labels, labeler).similar(classes, alpha)
    if not any(match.rows for match in matches):
        some = ", ".join(repr(match.name) for match in matches[:3])
        raise UsageError(
            f"`init` transfer: no class name has path similarity {alpha:g} or more with one of the "
            f"{len(encoder.labels):,} synsets of {where}: {some}. Write other names in `classes`, or the wnid behind "
            "the name and a tab; or take a smaller `alpha`, or `init` random"
        )
    return matches


def scale_rows(
    matches: Sequence[Match], weight: Tensor, pooled: Tensor, *, deviation: float = 1.0, seed: int = 0
) -> TransferRows:
    """The new classifier from matched rows of a weight [V, D]; see `transfer_rows`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack(
        [
            _mean_row(match, weight) if match.rows else torch.randn(weight.shape[1], generator=generator)
            for match in matches
        ]
    )
    known = torch.tensor([bool(match.rows) for match in matches])
    # The mean row moves all logits of an image alike, which no softmax sees, but a penalty or weight decay would.
    rows = torch.where(known[:, None], rows - rows[known].mean(0) * (known.sum() > 1), rows)
    pooled = pooled.double()
    mean = pooled.mean(0)
    spread = ((pooled - mean) @ rows.double().T).std(0, correction=0)
    wanted = torch.where(known, deviation, deviation / 10).double()
    # The logits of classes that share all their rows are all 0 after the mean is taken off; they stay there.
    same = rows.abs().amax(1) < 1e-6 * weight.abs().max()
    if bool(((spread < 1e-9) & ~same).any()):
        raise UsageError(
            f"`init` transfer sets the scale by how pictures differ, and {len(pooled)} training pictures do not differ"
        )
    result = rows.double() * torch.where(same, 0.0, wanted / spread.clamp_min(1e-9))[:, None]
    return TransferRows(result.float(), (-result @ mean).float(), list(matches))


def _mean_row(match: Match, weight: Tensor) -> Tensor:
    """Mean over the parts of a name of the means over their rows."""
    if match.parts:
        return torch.stack([_mean_row(part, weight) for part in match.parts]).mean(0)
    return weight[list(match.rows)].mean(0)


def head_of(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """(weight [V, D], bias [V]) of the classifier, on the CPU. Raises UsageError if it is not one linear layer."""
    head = encoder.backbone.get_classifier() if encoder.labels else None
    if not isinstance(head, nn.Linear | nn.Conv2d):  # a 1 x 1 convolution, as in BiT
        raise UsageError("the rows of its classifier are needed, and this encoder has no linear classifier")
    weight = head.weight.detach().float().cpu().flatten(1)
    return weight, head.bias.detach().float().cpu() if head.bias is not None else weight.new_zeros(len(weight))
