"""The classes of a labelled set: softmax for one class a picture, a sigmoid each for several; mixed pictures.

Targets are dense here, [B, C] on the device: a labelled set has thousands of classes at most, and mixing makes of every
target a row of real numbers anyway.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.objectives.linear import as_negative


@dataclass(kw_only=True, slots=True)
class Classes:
    """Settings of the objective."""

    smoothing: float = 0.1  # one class a picture: share of the target that all classes get alike
    multi_loss: Literal["bce", "asymmetric"] = "bce"  # several classes: ICCV 2021's asymmetric loss (4, 0, .05) or BCE
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), the share of one picture in a blend of two; 0: off
    cutmix: float = 0.0  # the same for a box of one picture in another; both: half of the pictures each


class ClassObjective(nn.Module):
    """Encoder and linear head. forward(batch) -> (loss, metrics).

    Each picture is mixed with the next one of its micro-batch. So accumulation changes which pictures are paired (as it
    changes what drop path drops), but not their distribution, and the micro-batch may be halved when memory runs out.
    """

    needs_global_batch = False

    def __init__(self, encoder: Encoder, head: nn.Linear, cfg: Classes, *, multi: bool) -> None:
        """multi: pictures may have any number of classes. Raises UsageError for settings out of range."""
        super().__init__()
        if not 0 <= cfg.smoothing < 1 or min(cfg.mixup, cfg.cutmix) < 0:
            raise UsageError("`smoothing` is at least 0 and below 1, `mixup` and `cutmix` are 0 or more")
        self.encoder, self.head, self.cfg, self.multi = encoder, head, cfg, multi

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """batch.image: float [B, 3, H, W] in the encoder's input space."""
        target = dense(batch.labels, batch.offsets, self.head.out_features)
        image = batch.image
        if self.training and (self.cfg.mixup or self.cfg.cutmix):
            image, kept = mix(image, self.cfg.mixup, self.cfg.cutmix)
            target = kept[:, None] * target + (1 - kept)[:, None] * target.roll(-1, 0)
        loss = self.loss(self.head(self.encoder.pooled(image)).float(), target)
        return loss, {"loss": loss.detach()}

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Averaged over pictures; of several classes summed over them. logits, target [B, C]."""
        if not self.multi:
            smooth = self.cfg.smoothing
            return F.cross_entropy(logits, (1 - smooth) * target + smooth / logits.shape[1])
        if self.cfg.multi_loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
        return asymmetric(logits, target).sum() / len(logits)

    def logits(self, image: Tensor) -> Tensor:
        """Scores of the classes: [B, C]. image: [B, 3, H, W], uint8 or float in [0, 1]."""
        return self.head(self.encoder.pooled(self.encoder.normalize(image)))


def dense(labels: Tensor, offsets: Tensor, classes: int) -> Tensor:
    """float [B, classes], 1 where a picture has the class."""
    pictures = torch.arange(len(offsets) - 1, device=labels.device)
    rows = torch.repeat_interleave(pictures, offsets.diff(), output_size=len(labels))
    return torch.zeros(len(pictures), classes, device=labels.device).index_put_((rows, labels), torch.tensor(1.0))


def asymmetric(logits: Tensor, target: Tensor) -> Tensor:
    """As linear.linear_asymmetric, of each class, for targets between 0 and 1 too."""
    return target * F.softplus(-logits) + (1 - target) * as_negative(logits, 4.0, 0.05)


def mix(image: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Each picture with the one after it (the last with the first) -> (pictures, float [B]: the share of its own).

    mixup: blended (Zhang et al. 2018), with Beta(mixup, mixup). cutmix: a box of the other is put into it (Yun et al.
    2019), a share of the area from Beta(cutmix, cutmix), around any place, cut off at the edge. 0: not this way; both:
    each picture one of the ways, at random.
    """
    count, _, height, width = image.shape
    other = image.roll(-1, 0)

    def own(alpha: float) -> Tensor:
        return torch.distributions.Beta(alpha, alpha).sample((count,)).to(image.device)

    def blended() -> tuple[Tensor, Tensor]:
        share = own(mixup)
        return torch.lerp(other, image, share.view(-1, 1, 1, 1).to(image.dtype)), share

    def boxed() -> tuple[Tensor, Tensor]:
        side = (1 - own(cutmix)).sqrt()
        place = torch.rand(2, count, device=image.device)
        inside = torch.ones(count, 1, height, width, dtype=torch.bool, device=image.device)
        for axis, length in ((2, height), (3, width)):
            at = torch.arange(length, device=image.device).view([-1 if i == axis else 1 for i in range(4)])
            middle, half = place[axis - 2].view(-1, 1, 1, 1) * length, side.view(-1, 1, 1, 1) * length / 2
            inside &= (at >= (middle - half).round()) & (at < (middle + half).round())
        return torch.where(inside, other, image), 1 - inside.float().mean((1, 2, 3))

    if not cutmix:
        return blended()
    if not mixup:
        return boxed()
    which = torch.rand(count, device=image.device) < 0.5
    (a, share_a), (b, share_b) = blended(), boxed()
    return torch.where(which.view(-1, 1, 1, 1), a, b), torch.where(which, share_a, share_b)
