"""Losses of classes, from logits and sparse labels. Pure functions, averaged over pictures, and how rare a class is.

logits [B, V]; labels int64 [sum L], each once a picture; offsets int64 [B + 1]: picture b has
labels[offsets[b]:offsets[b + 1]]. The dense target is never made. Computed in float32 whatever the logits are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.objectives import gather


def rows_of(labels: Tensor, offsets: Tensor) -> Tensor:
    """The picture that each label belongs to: int64 [sum L]."""
    pictures = torch.arange(len(offsets) - 1, device=offsets.device)
    # The known size spares the wait for an accelerator to tell it.
    return torch.repeat_interleave(pictures, offsets.diff(), output_size=len(labels))


def sparse_softmax(logits: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with the target that gives each label its share (SuperClass, arXiv 2411.03313, section 3.2).

    weights: of each class, [V], not negative; None: all alike. A picture without labels, or whose labels all weigh
    nothing, has no target: it contributes 0 to the sum and 1 to what it is divided by.
    """
    z, row = logits.float(), rows_of(labels, offsets)
    weight = torch.ones_like(labels, dtype=z.dtype) if weights is None else weights.to(z.dtype)[labels]
    total = torch.zeros(len(z), dtype=z.dtype, device=z.device).index_add(0, row, weight)
    share = weight / total.clamp_min(torch.finfo(z.dtype).tiny)[row]
    # sum_c t_c (logsumexp - z_c), and the shares t_c of a picture add up to 1.
    return (z.logsumexp(1).where(total > 0, 0).sum() - (share * z[row, labels]).sum()) / len(z)


def sparse_asymmetric(
    logits: Tensor, labels: Tensor, offsets: Tensor, *, gamma_neg: float = 4.0, gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> Tensor:  # fmt: skip
    """Asymmetric loss, summed over classes (Ben-Baruch et al., ICCV 2021, equations 4 to 7).

    Easy classes count less, and negatives less than positives: -(1 - p)^gamma_pos log p for a label, and
    -q^gamma_neg log(1 - q) with q = max(p - clip, 0) for every other class. All three at 0: binary cross-entropy.
    gamma_neg, gamma_pos: 0, or 1 and more; in between the gradient is infinite at q = 0, which is where most classes
    are. Raises ValueError for that, and for a clip outside 0 <= clip < 1.
    """
    if any(0 < gamma < 1 or gamma < 0 for gamma in (gamma_neg, gamma_pos)):
        raise ValueError(f"gamma_neg {gamma_neg} and gamma_pos {gamma_pos}: each is 0, or 1 and more")
    if not 0 <= clip < 1:
        raise ValueError(f"clip {clip} is not in 0 <= clip < 1")
    z = logits.float()
    z_label = z[rows_of(labels, offsets), labels]
    positive = -F.logsigmoid(z_label) * torch.sigmoid(-z_label) ** gamma_pos
    # Everything as a negative, then the labels taken out again.
    negative = _as_negative(z, gamma_neg, clip).sum() - _as_negative(z_label, gamma_neg, clip).sum()
    return (negative + positive.sum()) / len(z)


def _as_negative(z: Tensor, gamma: float, clip: float) -> Tensor:
    if clip == 0:
        return F.softplus(z) * torch.sigmoid(z) ** gamma
    q = (torch.sigmoid(z) - clip).clamp_min(0)
    return -torch.log1p(-q) * q**gamma


class DocumentFrequency(nn.Module):
    """In how many pictures each class was met, counted while training, over all processes.

    What is met is put aside, and added when a step is over: so weights are the same for all of a step's pictures, on
    however many processes and in however many micro-batches they are, and processes talk once a step. Integers, so
    that a run that goes on counts exactly, and so that no average of weights blends them.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.counts: Tensor  # the last one counts the pictures
        self.pending: Tensor
        self.register_buffer("counts", torch.zeros(classes + 1, dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(classes + 1, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def meet(self, labels: Tensor, pictures: int) -> None:
        """Put a batch of this process aside. labels: each once a picture."""
        # index_add and not bincount, whose size an accelerator would have to tell first.
        self.pending.index_add_(0, labels, torch.ones_like(labels))
        self.pending[-1] += pictures

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what was put aside, here and on all other processes. Every process must call it at the same time."""
        self.counts += gather.all_sum(self.pending)
        self.pending.zero_()

    def idf(self) -> Tensor:
        """Inverse document frequency of each class, float32 [V]: log((n + 1) / (df + 1)), so 0 where it is always met.

        Before anything is counted all are 1. SuperClass, equation 4, has log(n / (1 + df)), which is negative for a
        class that is always met; its code adds one to both, as here, but counts a batch before it weighs it.
        """
        df, n = self.counts[:-1], self.counts[-1]
        idf = (n + 1).float().log() - (df + 1).float().log()
        return torch.where(n > 0, idf, torch.ones_like(idf))
