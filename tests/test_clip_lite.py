"""CLIP-Lite's loss and gradients against its definition, written out as its authors' code has it.

The facts: both vectors go through a block (linear, batch norm, ReLU, linear; plus a linear shortcut; layer norm), are
normalised, and their product is multiplied by exp(t), t = log(1 / 0.07) at the start; the wrong caption is the next
picture's; softplus(-right) + softplus(wrong), each averaged; 0.9 of that and 0.1 of the prior term of both sides, the
cross-entropy of a discriminator with layers of 1000 and 200 between uniform samples and features.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from catlip.objectives import clip_lite
from catlip.objectives.clip_lite import ClipLite
from tests.test_objectives import TEXT, TOKENIZER, make_batch, make_encoder, make_sentences

WIDTH = 80


def next_pictures(n: int, count: int) -> Tensor:
    return (torch.arange(n)[:, None] + 1 + torch.arange(count)) % n


def block(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    h = x @ w[f"{name}.mlp.0.weight"].T
    mean, var = h.mean(0), h.var(0, correction=0)
    h = (h - mean) / (var + 1e-5).sqrt() * w[f"{name}.mlp.1.weight"] + w[f"{name}.mlp.1.bias"]
    f = h.clamp(min=0) @ w[f"{name}.mlp.3.weight"].T + w[f"{name}.mlp.3.bias"]
    f = f + x @ w[f"{name}.shortcut.weight"].T + w[f"{name}.shortcut.bias"]
    f = (f - f.mean(1, keepdim=True)) / (f.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    f = f * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]
    return f / f.norm(dim=1, keepdim=True)


def told(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    for layer in (0, 2):
        x = (x @ w[f"{name}.{layer}.weight"].T + w[f"{name}.{layer}.bias"]).clamp(min=0)
    return torch.sigmoid(x @ w[f"{name}.4.weight"].T + w[f"{name}.4.bias"])


def released(image: Tensor, text: Tensor, w: dict[str, Tensor], prior: bool, negatives: int) -> Tensor:
    """The released loss, from the features and the weights by name; of several negatives the mean of their terms."""
    n = len(image)
    f, g = block(image, w, "critic.image"), block(text, w, "critic.text")
    scale = w["critic.logit_scale"].exp()
    bound = torch.zeros((), dtype=image.dtype)
    for i in range(n):
        bound = bound + torch.log1p((-scale * (f[i] @ g[i])).exp()).squeeze() / n
        for k in range(1, negatives + 1):
            bound = bound + torch.log1p((scale * (f[i] @ g[(i + k) % n])).exp()).squeeze() / n / negatives
    if not prior:
        return bound
    total = torch.zeros((), dtype=image.dtype)
    for k, features in enumerate((image, text)):
        drawn = torch.rand_like(features.float()).to(features.dtype)
        of_prior, of_features = told(drawn, w, f"discriminators.{k}"), told(features, w, f"discriminators.{k}")
        total = total - (of_prior.log().mean() + (1 - of_features).log().mean())
    return 0.9 * bound + 0.1 * total


@pytest.mark.parametrize("side", ["tower", "frozen"])
@pytest.mark.parametrize("prior", ["released", "none"])
@pytest.mark.parametrize("negatives", [1, 4])
def test_value_and_gradients_are_the_released_codes(
    side: Any, prior: Any, negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_lite, "wrong_captions", next_pictures)
    reader = TOKENIZER if side == "tower" else make_sentences()
    torch.manual_seed(0)
    cfg = ClipLite(embed=16, critic_width=WIDTH, text=side, prior=prior, center=False, negatives=negatives)
    objective = clip_lite.ClipLiteObjective(make_encoder(), reader, cfg, TEXT).train()
    batch, pooled = make_batch(5), torch.randn(5, 64).abs().requires_grad_()
    kept: list[Tensor] = []

    def keep(module: Any, given: Any, text: Tensor) -> Tensor:
        kept.append(text.detach().requires_grad_())
        return kept[0]

    objective.text.register_forward_hook(keep)
    torch.manual_seed(7)
    loss, _ = objective.loss(pooled, batch)
    loss.backward()
    weights = {
        name: value.detach().double().requires_grad_()
        for name, value in objective.named_parameters()
        if name.startswith(("critic.", "discriminators."))
    }
    image, text = (x.detach().double().requires_grad_() for x in (pooled, kept[0]))
    torch.manual_seed(7)
    expected = released(image, text, weights, prior == "released", negatives)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own = dict(objective.named_parameters())
    for name, value in {**weights, "image": image, "text": text}.items():
        mine = {"image": pooled, "text": kept[0]}.get(name, own.get(name))
        assert mine is not None
        torch.testing.assert_close(
            mine.grad.double(), value.grad, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_centering_takes_out_what_all_pictures_have_in_common() -> None:
    """Features with any common mean and scale get the same scores, and the encoder a gradient without a common part."""
    torch.manual_seed(0)
    objective = clip_lite.ClipLiteObjective(
        make_encoder(), TOKENIZER, ClipLite(embed=16, critic_width=WIDTH), TEXT
    ).train()
    batch, x = make_batch(6), torch.randn(6, 64)
    losses = []
    for pooled in (x, 3 * x + torch.rand(64) * 50):
        pooled.requires_grad_()
        torch.manual_seed(1)
        loss, _ = objective.loss(pooled, batch)
        loss.backward()
        losses.append(loss.item())
        assert pooled.grad is not None
        torch.testing.assert_close(pooled.grad.sum(0), torch.zeros(64), atol=1e-5, rtol=0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_start_is_the_released_codes() -> None:
    objective = clip_lite.ClipLiteObjective(make_encoder(), TOKENIZER, ClipLite(embed=16, critic_width=WIDTH), TEXT)
    assert objective.critic.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    shortcut = objective.critic.image.shortcut.weight.detach()
    assert torch.equal(shortcut.diagonal(), torch.ones(64))
    off = shortcut - torch.eye(WIDTH, 64)
    assert 0.009 < off.abs().max() <= 0.01
