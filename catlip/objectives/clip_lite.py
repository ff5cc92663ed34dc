"""CLIP-Lite (arXiv 2112.07133): one wrong caption a picture is enough, by a bound of mutual information that needs no
more. A critic scores a picture and a caption; the Jensen-Shannon bound is raised; no other process is asked.

The wrong caption is that of another picture of this process' share of the batch, at a random distance each step. The
released code takes the next picture's, always. All similarities of the batch are there anyway: with every other caption
as a wrong one (`negatives` 0) the bound probes as well as CLIP (RESULTS.md), and with one it does not.

The features of the image are standardised before the critic (`center`; not so in the released code). A wrong pair
should score below 0, and the shortest way there is to turn all images away from all captions; what a ResNet's features,
never negative, have in common is at hand for that, and says nothing of what is in the picture (LOG.md has numbers).

The prior term, off since it never helped here, comes from Deep InfoMax (arXiv 1808.06670, section 3.3): features shall
look like samples of a uniform distribution to a discriminator. There the encoder works against the discriminator. In
CLIP-Lite's released code both minimise the same loss, so that the encoder helps to tell its features from the prior,
the opposite of matching it, and features without bounds are held against a prior on [0, 1). "adversarial" does what the
term is for: features are brought to [0, 1] and the encoder learns what the discriminator takes for the prior.
"released" is the code's. Tried before: reversing the gradient between the two; the discriminator wins at once, and then
there is no gradient to reverse. And a sigmoid for the bounds: features that are never negative lie above 1/2, can never
be uniform, and the encoder suffers for it (LOG.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from catlip.data.batches import Batch
from catlip.errors import UsageError
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import READS, DualEncoder, Projection, Side, read_by, text_side
from catlip.models.encoder import Encoder
from catlip.models.sentences import Sentences
from catlip.models.text_tower import TextConfig, TextTower
from catlip.objectives.base import Context
from catlip.objectives.contrastive import jensen_shannon, wrong_captions


@dataclass(kw_only=True, slots=True)
class ClipLite:
    """Settings of the objective."""

    name: ClassVar[str] = "clip_lite"

    embed: int = 512  # length of the caption's vector, if it is a tower's
    text: Side = "tower"  # frozen: sentence embeddings, as in the paper, instead of a text tower
    negatives: int = 1  # wrong captions a picture, 1 in the paper; 0: all others of a process' share of the batch
    critic: Literal["dot", "concat"] = "dot"  # cosine of two non-linear projections, or an MLP over both vectors
    critic_width: int = 2048  # of the projections, if the critic is "dot"
    center: bool = True  # standardise the image's features before the critic "dot"; false: as released
    prior: Literal["none", "adversarial", "released"] = "none"  # of the features' distribution
    prior_weight: float = 0.1  # of the prior term; the rest is the bound's

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({READS[self.text]})

    def build(self, encoder: Encoder, context: Context) -> "ClipLiteObjective":
        """The objective with its initial weights."""
        return ClipLiteObjective(encoder, context.reader(self.text), self, context.text)


class ClipLiteObjective(nn.Module):
    """Encoder, text side, critic, discriminators. forward(batch) -> (loss, metrics); needs batch.tokens or .sentences.

    Raises UsageError if this process' share of the batch is a single picture.
    """

    needs_global_batch = True  # no captions are exchanged, but which one is the wrong one depends on the share

    def __init__(self, encoder: Encoder, reader: Tokenizer | Sentences, cfg: ClipLite, text: TextConfig) -> None:
        """reader: what the loader reads captions with; text: a tower's size.

        Raises UsageError for a weight outside 0..1, and for a negative number of negatives.
        """
        super().__init__()
        if cfg.negatives < 0:
            raise UsageError(f"`negatives` {cfg.negatives}: 0 for all, or how many")
        if not 0 <= cfg.prior_weight <= 1:
            raise UsageError(f"`prior_weight` {cfg.prior_weight} is not between 0 and 1")
        self.encoder, self.cfg = encoder, cfg
        self.text, length = text_side(reader, text, cfg.embed)
        sizes = encoder.width, length
        dot = cfg.critic == "dot"
        self.critic = DotCritic(*sizes, cfg.critic_width, cfg.center) if dot else ConcatCritic(*sizes)
        self.reader = reader
        self.discriminators = nn.ModuleList() if cfg.prior == "none" else nn.ModuleList(map(_discriminator, sizes))

    def save(self, out: Path) -> None:
        """The text tower, for zero-shot and retrieval, where image and caption have a space in common."""
        if (dual := self.dual()) is not None:
            dual.save(out)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.encoder.pooled(batch.image), batch)

    def loss(self, pooled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from what the encoder returned for the batch, [B, encoder.width]."""
        wrong = wrong_captions(len(pooled), self.cfg.negatives).to(pooled.device)
        captions = self.text(read_by(self.text, batch))
        bound = jensen_shannon(*self.critic(pooled, captions, wrong))
        if self.cfg.prior == "none":
            return bound, {"loss": bound.detach()}
        both = zip(self.discriminators, (pooled, captions), strict=True)
        match = released_prior if self.cfg.prior == "released" else adversarial_prior
        prior = torch.stack([match(d, z) for d, z in both]).sum()
        loss = (1 - self.cfg.prior_weight) * bound + self.cfg.prior_weight * prior
        return loss, {"loss": loss.detach(), "bound": -bound.detach(), "prior": prior.detach()}

    def dual(self) -> DualEncoder | None:
        """The same weights as a dual encoder; None for the critic "concat", whose vectors have no space in common."""
        if not isinstance(self.critic, DotCritic):
            return None
        size = self.text.cfg if isinstance(self.text, TextTower) else TextConfig()
        cfg = self.cfg
        dual = DualEncoder(
            self.encoder, self.reader, size, embed=cfg.embed, scale=1.0, mlp=cfg.critic_width, center=cfg.center
        )
        dual.text, dual.logit_scale = self.text, self.critic.logit_scale
        dual.image_projection, dual.text_projection = self.critic.image, self.critic.text
        return dual


def released_prior(discriminator: nn.Module, features: Tensor) -> Tensor:
    """Cross-entropy of telling features [B, D] from samples of the prior; who made the features gets its gradient."""
    drawn = torch.rand_like(features)
    return F.softplus(-discriminator(drawn).float()).mean() + F.softplus(discriminator(features).float()).mean()


def adversarial_prior(discriminator: nn.Module, features: Tensor) -> Tensor:
    """The same for the discriminator alone, plus how badly it is deceived, for who made the features alone.

    Features are held against the prior by their rank among a normal distribution's: each is standardised over the
    batch and put through the normal distribution function, so that features of any sign and size can be uniform.

    In one backward pass, each gets the gradient of its own term (Goodfellow et al. 2014, section 3: the one of
    log(1 - D) would vanish as soon as the discriminator is good).
    """
    bounded = torch.special.ndtr(F.batch_norm(features.float(), None, None, training=True))
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    deceived = F.softplus(-functional_call(discriminator, fixed, (bounded,)).float()).mean()
    return released_prior(discriminator, bounded.detach()) + deceived


class DotCritic(nn.Module):
    """Temperature times the cosine of both vectors after a non-linear projection each."""

    def __init__(self, image: int, text: int, width: int, center: bool = False) -> None:
        super().__init__()
        self.image, self.text = Projection(image, width, center), Projection(text, width)
        self.logit_scale = nn.Parameter(torch.tensor([1 / 0.07]).log())  # FSDP shards no scalars

    def forward(self, image: Tensor, text: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B] of the right captions and [B, N] of the wrong ones. wrong: int64 [B, N], rows of `text`."""
        image, text = (F.normalize(v.float(), dim=-1) for v in (self.image(image), self.text(text)))
        with torch.autocast(image.device.type, enabled=False):
            scores = self.logit_scale.exp() * (image @ text.T)
        return scores.diagonal(), scores.gather(1, wrong)


class ConcatCritic(nn.Module):
    """An MLP over both vectors, one behind the other."""

    def __init__(self, image: int, text: int) -> None:
        super().__init__()
        layers = nn.Linear(image + text, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
        self.mlp = nn.Sequential(*layers)

    def forward(self, image: Tensor, text: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B] of the right captions and [B, N] of the wrong ones. wrong: int64 [B, N], rows of `text`."""
        others = image[:, None].expand(-1, wrong.shape[1], -1)
        right, wrong = (self.mlp(torch.cat(pair, -1)).squeeze(-1) for pair in ((image, text), (others, text[wrong])))
        return right, wrong


def _discriminator(inputs: int) -> nn.Module:
    """Is this a sample of the prior? One logit."""
    return nn.Sequential(nn.Linear(inputs, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1))
