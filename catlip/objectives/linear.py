"""The losses of a wide classifier without its logits, from sparse labels.

At 24,320 classes the logits of 1,024 pictures are 100 MB, and a dense loss keeps some four tensors of that size.
Here the classes are taken a thousand at a time, and the gradients of a chunk are made while its logits are there, so
nothing of size pictures x classes ever exists. Chunks of classes, not of pictures: each writes its own rows of the
weight's gradient, once, where chunks of pictures would each need a whole one to add.

In all of them x is [B, D], weight [V, D], bias [V]; labels int64 [sum L] and offsets int64 [B + 1]: the classes of
picture b are labels[offsets[b]:offsets[b + 1]], each at most once. weights: of each class, [V], not negative; None:
all alike. Losses are summed over classes and averaged over pictures: a float32 scalar. Matrix products are in
autocast's type if it is on.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024  # classes at a time, at least; wide classifiers take a 64th
CHUNKS = 64

# (logits [B, chunk] in float32, which may be overwritten; number of the chunk's first class) -> (loss, its gradient)
ChunkLoss = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def linear_bce(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of sigmoid(x W^T + b). weights: of a label's own term, -log p; the others count once.

    A picture without labels counts: it is evidence against every class.
    """
    own = _Labels.of(labels, offsets, weights)

    def loss(z: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """sum_v softplus(z_v), a label u softplus(-z_v) instead; the gradient is sigmoid(z) minus the labels."""
        at, here, u = own.within(first, z.shape[1])
        z_label = z[own.rows, at]
        total = F.softplus(z).sum() + (here * (u * F.softplus(-z_label) - F.softplus(z_label))).sum()
        p = z_label.sigmoid()
        return total, z.sigmoid_().index_put_((own.rows, at), here * (u * (p - 1) - p), accumulate=True)

    return _chunked(loss, x, weight, bias)


def linear_softmax(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the target that gives each label its share (SuperClass, arXiv 2411.03313, section 3.2).

    A picture without labels, or whose labels all weigh nothing, has no target: it adds 0 to the sum and 1 to what it
    is divided by. The classes are gone through twice, as every gradient needs the sum over all of them.
    """
    own = _Labels.of(labels, offsets, weights)
    total = torch.zeros(len(x), device=x.device).index_add(0, own.rows, own.weights)
    share = own.weights / total.clamp_min(torch.finfo(total.dtype).tiny)[own.rows]
    some = (total > 0).float()
    with torch.no_grad():
        sums = [z.logsumexp(1) for _, z in _logits(x, weight, bias, _dtype(x))]
        over_all = torch.stack(sums).logsumexp(0)

    def loss(z: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """sum_c t_c (logsumexp - z_c), and the shares t_c of a picture add up to 1."""
        at, here, _ = own.within(first, z.shape[1])
        here = here * share
        picked = (here * (over_all[own.rows] - z[own.rows, at])).sum()
        p = z.sub_(over_all[:, None]).exp_().mul_(some[:, None])
        return picked, p.index_put_((own.rows, at), -here, accumulate=True)

    return _chunked(loss, x, weight, bias)


def linear_asymmetric(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    offsets: Tensor,
    weights: Tensor | None = None,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> Tensor:
    """Asymmetric loss (Ben-Baruch et al., ICCV 2021, equations 4 to 7).

    Easy classes count less, and negatives less than positives: -(1 - p)^gamma_pos log p for a label, and
    -q^gamma_neg log(1 - q) with q = max(p - clip, 0) for every other class. All three at 0: binary cross-entropy.
    gamma_neg, gamma_pos: 0, or 1 and more; in between the gradient is infinite at q = 0, which is where most classes
    are. Raises ValueError for that, and for a clip outside 0 <= clip < 1.
    """
    if any(0 < gamma < 1 or gamma < 0 for gamma in (gamma_neg, gamma_pos)):
        raise ValueError(f"gamma_neg {gamma_neg} and gamma_pos {gamma_pos}: each is 0, or 1 and more")
    if not 0 <= clip < 1:
        raise ValueError(f"clip {clip} is not in 0 <= clip < 1")
    own = _Labels.of(labels, offsets, weights)

    def loss(z: Tensor, first: int) -> tuple[Tensor, Tensor]:
        at, here, u = own.within(first, z.shape[1])
        with torch.enable_grad():
            z = z.requires_grad_()
            z_label = z[own.rows, at]
            positive = u * F.softplus(-z_label) * torch.sigmoid(-z_label) ** gamma_pos
            # Everything as a negative, then the labels taken out again.
            total = as_negative(z, gamma_neg, clip).sum()
            total = total + (here * (positive - as_negative(z_label, gamma_neg, clip))).sum()
            (grad,) = torch.autograd.grad(total, z)
        return total.detach(), grad

    return _chunked(loss, x, weight, bias)


def as_negative(z: Tensor, gamma: float, clip: float) -> Tensor:
    """The asymmetric loss of logits whose classes are not there; the same shape as z."""
    if clip == 0:
        return F.softplus(z) * torch.sigmoid(z) ** gamma
    q = (torch.sigmoid(z) - clip).clamp_min(0)
    return -torch.log1p(-q) * q**gamma


class _Labels(NamedTuple):
    """Sparse labels, one element a label: its picture, its class, its weight."""

    rows: Tensor
    classes: Tensor
    weights: Tensor

    @classmethod
    def of(cls, labels: Tensor, offsets: Tensor, weights: Tensor | None) -> "_Labels":
        pictures = torch.arange(len(offsets) - 1, device=offsets.device)
        # The known size spares the wait for an accelerator to tell it.
        rows = torch.repeat_interleave(pictures, offsets.diff(), output_size=len(labels))
        own = torch.ones(len(labels), device=labels.device) if weights is None else weights.float()[labels]
        return cls(rows, labels, own)

    def within(self, first: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """(columns of a chunk of classes, 1.0 where a label is in it, weights): of all labels, so that no shape
        depends on the data; those outside the chunk are clamped into it."""
        at = self.classes - first
        here = ((at >= 0) & (at < width)).float()
        return at.clamp(0, width - 1), here, self.weights


def _dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    # The gradients are made before the loss is scaled, and fp16 would round most of them to 0.
    return torch.float32 if dtype == torch.float16 else dtype


def _logits(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(the classes, their logits in float32), a chunk of classes after the other."""
    low, width = x.to(dtype), len(weight)
    chunk = max(CHUNK, -(-width // CHUNKS))
    for first in range(0, width, chunk):
        part = slice(first, min(first + chunk, width))
        with torch.autocast(x.device.type, enabled=False):
            yield part, torch.addmm(bias[part].to(dtype), low, weight[part].to(dtype).T).float()


def _chunked(loss: ChunkLoss, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _Linear.apply(x, weight, bias, _dtype(x), loss)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    """A loss of x W^T + b that is a sum over classes, averaged over pictures."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, loss: ChunkLoss) -> Tensor:
        n, low = len(x), x.to(dtype)
        wanted = any(ctx.needs_input_grad[:3])
        total = torch.zeros((), device=x.device)
        grad_x = torch.zeros(x.shape, device=x.device) if wanted else None
        grad_weight = torch.empty_like(weight) if wanted else None
        grad_bias = torch.empty_like(bias) if wanted else None
        for part, z in _logits(x, weight, bias, dtype):
            some, grad = loss(z, part.start)
            total += some
            if grad_x is None or grad_weight is None or grad_bias is None:
                continue
            grad = grad.div_(n)
            grad_bias[part] = grad.sum(0)
            grad = grad.to(dtype)
            with torch.autocast(x.device.type, enabled=False):
                grad_weight[part] = grad.T @ low
                grad_x += grad @ weight[part].to(dtype)
        ctx.grads, ctx.dtype = (grad_x, grad_weight, grad_bias), x.dtype
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.grads is None:
            raise RuntimeError("a loss of linear.py was differentiated twice; its gradients are made once and given")
        x, weight, bias = (None if g is None else g.mul_(grad) for g in ctx.grads)
        ctx.grads = None
        return None if x is None else x.to(ctx.dtype), weight, bias, None, None
