"""Losses of pairs: which caption belongs to which picture. Pure functions of unit vectors, over all processes.

Both are the mean over this process' pictures; the mean over processes is the loss of the whole batch. Similarities are
computed in float32 whatever the precision around: at a scale of 100, bfloat16 would move them by a quarter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.errors import UsageError
from catlip.objectives import gather


def info_nce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each picture over all captions and of each caption over all pictures (CLIP, figure 3).

    image, text: unit vectors [B, D] of this process; those of all processes are the candidates, but each process
    names only its own rows, so B x (all) logits are made and not all x all. Raises UsageError for a single pair.
    """
    counts = gather.row_counts(image)
    _refuse_one(sum(counts), "the whole batch")
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        right = torch.arange(len(image), device=image.device) + sum(counts[: gather.world()[0]])
        of_image = scale * image @ gather.all_rows(text, counts).T
        of_text = scale * text @ gather.all_rows(image, counts).T
        return (F.cross_entropy(of_image, right) + F.cross_entropy(of_text, right)) / 2


def pairwise_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each pair of a picture and a caption judged alone: together or not (SigLIP, arXiv 2303.15343, algorithm 1).

    Summed over captions, averaged over pictures. The captions of other processes pass by, one process at a time.
    Raises UsageError for a single pair.
    """
    counts = gather.row_counts(image)
    _refuse_one(sum(counts), "the whole batch")
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        logits = scale * image @ text.T + bias
        # -log sigmoid(z) = softplus(z) - z: everything as a negative, then the diagonal put right.
        loss = F.softplus(logits).sum() - logits.diagonal().sum()
        for others in gather.ring(text, counts):
            loss = loss + F.softplus(scale * image @ others.T + bias).sum()
        return loss / len(image)


def jensen_shannon(positive: Tensor, negative: Tensor) -> Tensor:
    """Minus the Jensen-Shannon lower bound of mutual information, from the critic's scores of pairs that belong
    together and of pairs that do not (f-GAN, arXiv 1606.00709; Deep InfoMax, arXiv 1808.06670, equation 4)."""
    return F.softplus(-positive.float()).mean() + F.softplus(negative.float()).mean()


def wrong_captions(n: int, count: int = 1) -> Tensor:
    """Numbers of other pictures' captions, int64 [n, count]: those at `count` distances drawn from torch's generator.

    count: 0, or more than there are: all n - 1 of them. Raises UsageError for n = 1: there is none.
    """
    _refuse_one(n, "a process' share of the batch")
    far = torch.randint(1, n, (1,)) if count == 1 else 1 + torch.randperm(n - 1)[: count or n]
    return (torch.arange(n)[:, None] + far) % n


def _refuse_one(n: int, what: str) -> None:
    if n < 2:
        raise UsageError(f"{what} is a single picture, so no caption is a wrong one: raise `batch_size`")
