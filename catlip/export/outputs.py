"""What an encoder computes, as one module with named results, and how far two computations of it lie apart."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from catlip.errors import UsageError
from catlip.export.pictures import to_input
from catlip.models.encoder import Encoder

# 16 pictures; 1, 2 and 5 are the sizes at which a batch that was baked in shows
BATCHES = (1, 2, 5, 8)
TOLERANCE = 1e-3  # of the largest value: beyond that an export computes something else

Results = dict[str, Tensor]


class Outputs(nn.Module):
    """image [B, 3, H, W] -> pooled [B, D], tokens [B, N, D] and, with a classifier, logits [B, V]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = ["pooled", "tokens", *(["logits"] if encoder.labels else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        backbone = self.encoder.backbone
        features = backbone.forward_features(image)
        found = (backbone.forward_head(features, pre_logits=True), self.encoder.as_tokens(features))
        return (*found, backbone.forward_head(features)) if self.encoder.labels else found

    @torch.no_grad()
    def results(self, image: Tensor) -> Results:
        return dict(zip(self.names, self(image), strict=True))


def takes_any_size(encoder: Encoder) -> bool:
    """Whether pictures of another size than the encoder's own go through it."""
    if getattr(getattr(encoder.backbone, "patch_embed", None), "strict_img_size", False):
        return False
    try:
        with torch.no_grad():
            encoder.pooled(torch.zeros(1, 3, *[other_size(encoder)] * 2, device=encoder.mean.device))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def other_size(encoder: Encoder) -> int:
    """A size that the encoder was not made for: two patches, or 64 px, more."""
    return encoder.image_size + 2 * patch_size(encoder)


def patch_size(encoder: Encoder) -> int:
    """Pixels a patch of token models, which picture sizes are a multiple of; 32 for convolutional ones."""
    embed = getattr(encoder.backbone, "patch_embed", None)
    return int(embed.feat_ratio()) if embed is not None and hasattr(embed, "feat_ratio") else 32


@torch.no_grad()
def compare(
    encoder: Encoder,
    images: list[bytes],
    ours: Callable[[Tensor], Results],
    other: Callable[[Tensor], Results],
    any_size: bool,
) -> dict[str, float]:
    """Largest absolute difference of each result of `other` from ours, the pictures in batches of 1, 2, 5 and 8.

    any_size: one more batch of two at another picture size. Raises UsageError if the two do not agree.
    """
    batches = torch.stack([to_input(encoder, image) for image in images]).split(list(BATCHES))
    if any_size:
        batches = (*batches, torch.stack([to_input(encoder, image, other_size(encoder)) for image in images[:2]]))
    worst: dict[str, float] = {}
    for batch in batches:
        expected = ours(batch)
        for name, found in other(batch).items():
            if found.shape != expected[name].shape:
                shapes = f"{list(found.shape)} instead of {list(expected[name].shape)}"
                raise UsageError(f"the export computes something else: {name} is {shapes}")
            apart = float((found - expected[name]).abs().max())
            if not apart <= TOLERANCE * max(1.0, float(expected[name].abs().max())):  # nan is no agreement
                raise UsageError(f"the export computes something else: {name} is off by {apart:.2g}")
            worst[name] = max(worst.get(name, 0.0), apart)
    return worst
