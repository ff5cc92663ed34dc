"""The loss of a wide classifier without its logits.

At 24,320 classes the logits of 1,024 pictures are 100 MB, and a dense loss keeps some four tensors of that size.
Here the classes are taken a thousand at a time, and the gradients of a chunk are made while its logits are there, so
nothing of size pictures x classes ever exists and nothing is computed twice. Chunks of classes, not of pictures:
each writes its own rows of the weight's gradient, once, where chunks of pictures would each need a whole one to add.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024  # classes at a time, at least; wide classifiers take a 64th
CHUNKS = 64


def linear_bce(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(x W^T + b), summed over classes and averaged over pictures: a scalar, float32.

    x [B, D], weight [V, D], bias [V]; labels int64 [sum L] and offsets int64 [B + 1]: the classes of picture b are
    labels[offsets[b]:offsets[b + 1]], each at most once. A picture without labels counts: it is evidence against
    every class. Matrix products are in autocast's type if it is on.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = torch.repeat_interleave(torch.arange(len(x), device=x.device), offsets.diff(), output_size=len(labels))
    return _LinearBCE.apply(x, weight, bias, labels, rows, dtype)  # pyright: ignore[reportReturnType]


class _LinearBCE(torch.autograd.Function):
    """sum_v softplus(z_v) - sum_{v in labels} z_v, whose gradient is sigmoid(z) minus the labels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, rows: Tensor, dtype: torch.dtype
    ) -> Tensor:
        n, width = len(x), len(weight)
        wanted = any(ctx.needs_input_grad[:3])
        low = x.to(dtype)
        loss = torch.zeros((), device=x.device)
        grad_x = torch.zeros(x.shape, device=x.device) if wanted else None
        grad_weight = torch.empty_like(weight) if wanted else None
        grad_bias = torch.empty_like(bias) if wanted else None
        chunk = max(CHUNK, -(-width // CHUNKS))
        for first in range(0, width, chunk):
            part = slice(first, min(first + chunk, width))
            w = weight[part].to(dtype)
            with torch.autocast(x.device.type, enabled=False):
                z = torch.addmm(bias[part].to(dtype), low, w.T).float()
                # Labels outside the chunk are clamped into it with weight 0: shapes that do not depend on the data.
                at = labels - first
                here = ((at >= 0) & (at < len(w))).float()
                at = at.clamp(0, len(w) - 1)
                loss += F.softplus(z).sum() - (z[rows, at] * here).sum()
                if grad_x is None or grad_weight is None or grad_bias is None:
                    continue
                grad = z.sigmoid_().index_put_((rows, at), -here, accumulate=True).div_(n)
                grad_bias[part] = grad.sum(0)
                grad = grad.to(dtype)
                grad_weight[part] = grad.T @ low
                grad_x += grad @ w
        ctx.grads = (grad_x.to(x.dtype) if grad_x is not None else None, grad_weight, grad_bias)
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.grads is None:
            raise RuntimeError("linear_bce was differentiated twice; its gradients are made once and given away")
        found = tuple(None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.grads)
        ctx.grads = None
        return (*found, None, None, None)
