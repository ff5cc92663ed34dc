"""Contrastive objectives against open_clip's losses and the papers' definitions, and in several processes as in one."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.errors import UsageError
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import load_dual
from catlip.models.encoder import Encoder
from catlip.models.sentences import Sentences
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context
from catlip.objectives.clip import Clip, SigLip
from catlip.objectives.clip_lite import ClipLite, ClipLiteObjective, adversarial_prior, released_prior
from catlip.objectives.contrastive import info_nce, pairwise_sigmoid, wrong_captions
from catlip.objectives.hybrid import HybridObjective
from catlip.objectives.subwords import SubwordObjective, Subwords
from catlip.objectives.synsets import SynsetObjective, Synsets
from catlip.objectives.text import Text, TextObjective
from catlip.tasks.pretrain import as_vocabulary

TEXT = TextConfig(text_width=64, text_layers=1)
VOCAB = 40
TOKENIZER: Any = SimpleNamespace(size=VOCAB, context=8, bos=VOCAB - 2, eos=VOCAB - 1)
EMBEDDING, KEPT = 12, 7  # length of a frozen sentence embedding, before and after whitening


def make_sentences() -> Sentences:
    found = Sentences(lambda texts: np.ones((len(texts), EMBEDDING)))
    rng = np.random.default_rng(0)
    found.mean, found.matrix = (rng.normal(size=s).astype(np.float32) / 3 for s in (EMBEDDING, (EMBEDDING, KEPT)))
    return found


def make_encoder(name: str = "test_vit") -> Encoder:
    torch.manual_seed(0)
    return Encoder.create(name, image_size=32)


def make_batch(n: int = 6, seed: int = 0) -> Batch:
    """Random pictures; captions of two to six tokens, marks 38 and 39."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(n, 8, dtype=torch.int64)
    for row in tokens:
        length = int(torch.randint(1, 6, (), generator=g))
        row[0], row[length + 1] = VOCAB - 2, VOCAB - 1
        row[1 : length + 1] = torch.randint(1, VOCAB - 2, (length,), generator=g)
    image = torch.rand(n, 3, 32, 32, generator=g) * 2 - 1
    labels, offsets = torch.arange(n) % 5, torch.arange(n + 1)
    sentences = nn.functional.normalize(torch.randn(n, EMBEDDING, generator=g), dim=1)
    keys = [str(i) for i in range(n)]
    return Batch(image, torch.arange(n) % 2 == 0, labels, offsets, [[""]] * n, keys, tokens, sentences)


def rows(batch: Batch, a: int, b: int) -> Batch:
    return batch._slice(a, b)


def context() -> Context:
    return Context(as_vocabulary(""), TOKENIZER, TEXT, sentences=make_sentences())


def make_objective(name: str, encoder: Encoder | None = None) -> nn.Module:
    encoder = encoder or make_encoder()
    torch.manual_seed(1)
    match name:
        case "clip":
            return Clip(embed=16).build(encoder, context())
        case "siglip":
            return SigLip(embed=16).build(encoder, context())
        case "clip_lite":
            cfg = ClipLite(embed=16, critic_width=80, prior="adversarial")
            return ClipLiteObjective(encoder, TOKENIZER, cfg, TEXT)
        case "text":
            return TextObjective(encoder, make_sentences(), Text())
        case "smooth_l1":
            return TextObjective(encoder, make_sentences(), Text(distance="smooth_l1"))
        case "clip_frozen":
            return Clip(embed=16, text="frozen").build(encoder, context())
        case "clip_direct":
            return Clip(embed=0, text="frozen").build(encoder, context())
        case "siglip_frozen":
            return SigLip(embed=16, text="frozen").build(encoder, context())
        case "clip_lite_frozen":
            cfg = ClipLite(embed=16, critic_width=80, text="frozen")
            return ClipLiteObjective(encoder, make_sentences(), cfg, TEXT)
        case "taught":
            parts = {n: make_objective(n, encoder) for n in ("synsets", "text", "clip_frozen")}
            return HybridObjective(parts, (1.0, 0.5, 0.25), balance=True)
        case "subwords":
            return SubwordObjective(encoder, TOKENIZER, Subwords())
        case "synsets":
            return SynsetObjective(encoder, [1] * 5, 10, Synsets())
        case "superclip":
            return HybridObjective({n: make_objective(n, encoder) for n in ("clip", "subwords")}, (1.0, 1.0))
    return HybridObjective({n: make_objective(n, encoder) for n in ("siglip", "synsets")}, (1.0, 0.5))


def two_steps(objective: Any, forward: Any, share: slice) -> Tensor:
    """Loss of a second step, its gradients left in place. The first is there to be counted. share: of 12 pictures."""
    loss = torch.zeros(())
    for seed in (1, 2):
        objective.zero_grad()
        loss, _ = forward(rows(make_batch(12, seed), share.start, share.stop))
        loss.backward()
        if hasattr(objective, "after_step"):
            objective.after_step()
    return loss.detach()


TEXTLESS = ["text", "smooth_l1", "clip_frozen", "clip_direct", "siglip_frozen", "clip_lite_frozen", "taught"]
ALL = ["clip", "siglip", "clip_lite", "subwords", "superclip", "siglip_synsets", *TEXTLESS]


@pytest.mark.parametrize("name", ALL)
def test_every_objective_gives_a_loss_metrics_and_gradients(name: str) -> None:
    objective = make_objective(name).train()
    assert isinstance(objective.needs_global_batch, bool)
    loss, metrics = objective(make_batch())
    loss.backward()
    assert loss.ndim == 0
    assert torch.equal(metrics["loss"], loss.detach())
    assert not any(value.requires_grad for value in metrics.values())
    without = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    names = list(objective.state_dict())
    assert sum(n.endswith("patch_embed.proj.weight") for n in names) == 1
    assert any(n.startswith("encoder.backbone.") for n in names)


@pytest.mark.parametrize("name", ALL)
def test_every_objective_learns_its_batch(name: str) -> None:
    objective, batch = make_objective(name).train(), make_batch()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss, metrics = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The adversary's part may rise while the rest is learned.
        losses.append(-metrics["bound"].item() if "bound" in metrics else loss.item())
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:3]) / 3


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_changes_little(name: str) -> None:
    objective, batch = make_objective(name).train(), make_batch()
    torch.manual_seed(0)
    full = objective(batch)[0].item()
    objective = make_objective(name).train()  # counts and running statistics as at the start
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)[0]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize("name", ["clip", "siglip", "clip_lite", "superclip", "clip_frozen"])
def test_a_single_picture_has_no_wrong_caption(name: str) -> None:
    with pytest.raises(UsageError, match="single picture"):
        make_objective(name).eval()(make_batch(1))


def test_a_single_picture_without_contrast_is_fine() -> None:
    objective = make_objective("subwords").train()
    assert objective(make_batch(1))[0].item() > 0
    objective.after_step()
    assert objective(make_batch(1))[0].item() == 0  # so far these tokens were in every caption
    assert math.isfinite(make_objective("synsets")(make_batch(1))[0].item())


@pytest.mark.parametrize("name", ["clip", "siglip", "clip_lite", "subwords", *TEXTLESS])
def test_empty_captions_are_captions(name: str) -> None:
    batch = make_batch()
    assert batch.tokens is not None
    assert batch.sentences is not None
    batch.sentences[:3] = 0
    batch.tokens[:3] = torch.tensor([VOCAB - 2, VOCAB - 1] + [0] * 6)
    objective = make_objective(name).train()
    loss, _ = objective(batch)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def vectors(n: int = 6, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    unit = [nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1).requires_grad_() for _ in range(2)]
    return [*unit, torch.tensor(9.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)]


def compare(ours: Tensor, mine: list[Tensor], theirs: Tensor, reference: list[Tensor]) -> None:
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_info_nce_equals_open_clips() -> None:
    open_clip = pytest.importorskip("open_clip.loss")
    (*a, _), (*b, _) = vectors(), vectors()
    compare(info_nce(*a), a, open_clip.ClipLoss()(*b), b)


def test_pairwise_sigmoid_equals_open_clips() -> None:
    open_clip = pytest.importorskip("open_clip.loss")
    a, b = vectors(), vectors()
    compare(pairwise_sigmoid(*a), a, open_clip.SigLipLoss()(*b), b)


def test_clip_and_siglip_equal_the_papers_loops() -> None:
    image, text, scale, bias = vectors(4)
    z = scale * image @ text.T
    rows_, columns = z.exp().sum(1), z.exp().sum(0)
    nce = -sum((z[i, i].exp() / rows_[i]).log() + (z[i, i].exp() / columns[i]).log() for i in range(4)) / 8
    torch.testing.assert_close(info_nce(image, text, scale), nce, atol=1e-5, rtol=1e-5)
    sig = sum(torch.log1p((-(1 if i == j else -1) * (z[i, j] + bias)).exp()) for i in range(4) for j in range(4)) / 4
    torch.testing.assert_close(pairwise_sigmoid(image, text, scale, bias), sig, atol=1e-5, rtol=1e-5)


@given(st.integers(2, 50), st.integers(0, 60), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_nobody_gets_the_own_caption(n: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    wrong = wrong_captions(n, count)
    assert wrong.shape == (n, min(count or n, n - 1))
    for column in wrong.T.tolist():  # every caption is as often the wrong one as any other
        assert sorted(column) == list(range(n))
    for picture, row in enumerate(wrong.tolist()):
        assert len({picture, *row}) == 1 + len(row)
    torch.manual_seed(seed)
    assert torch.equal(wrong_captions(n, count), wrong)


@pytest.mark.parametrize("count", [1, 2])
def test_every_other_caption_can_be_a_wrong_one(count: int) -> None:
    torch.manual_seed(0)
    assert {caption for _ in range(100) for caption in wrong_captions(5, count)[0].tolist()} == {1, 2, 3, 4}


def test_clip_lites_critic_is_kept_as_a_dual_encoder(tmp_path: Path) -> None:
    """What is written gives the critic's own scores; a critic of pairs has no space that could be written."""
    captions = ["a red apple", "two dogs on a lawn", "a blue lake"]
    tokenizer = Tokenizer.train(captions, 600, 12)
    objective = ClipLiteObjective(make_encoder(), tokenizer, ClipLite(embed=16, critic_width=80), TEXT).eval()
    dual, pooled = objective.dual(), torch.randn(3, objective.encoder.width)
    assert dual is not None
    dual.save(tmp_path)
    objective.encoder.save(tmp_path / "encoder")
    loaded = load_dual(tmp_path)
    tokens = torch.from_numpy(loaded.reader(captions))
    right, _ = objective.critic(pooled, objective.text(tokens), wrong_captions(3))
    ours = (loaded.embed_pooled(pooled) * loaded.embed_captions(tokens)).sum(1) * loaded.scale()
    torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)
    assert ClipLiteObjective(make_encoder(), TOKENIZER, ClipLite(critic="concat"), TEXT).dual() is None


@pytest.mark.parametrize("critic", ["dot", "concat"])
@pytest.mark.parametrize(("n", "negatives"), [(2, 1), (4, 0)])  # every other caption is a wrong one
def test_clip_lite_equals_a_loop_over_pairs(critic: Any, n: int, negatives: int) -> None:
    """The bound pair by pair, and the released code's total: 0.9 of it and 0.1 of both prior terms."""
    cfg = ClipLite(embed=16, critic_width=80, critic=critic, negatives=negatives, prior="released", center=False)
    objective = ClipLiteObjective(make_encoder(), TOKENIZER, cfg, TEXT).eval()
    batch = make_batch(n)
    pooled = torch.randn(n, objective.encoder.width)
    assert batch.tokens is not None
    captions = objective.text(batch.tokens)

    def score(i: int, j: int) -> Tensor:
        if critic == "concat":
            return objective.critic.mlp(torch.cat([pooled[i], captions[j]]))
        u, v = objective.critic.image(pooled)[i], objective.critic.text(captions)[j]
        return objective.critic.logit_scale.exp() * (u @ v) / (u.norm() * v.norm())

    positive = sum(torch.log(1 + torch.exp(-score(i, i))) for i in range(n)) / n
    wrong = [(i, j) for i in range(n) for j in range(n) if i != j]
    negative = sum(torch.log(1 + torch.exp(score(i, j))) for i, j in wrong) / len(wrong)
    torch.manual_seed(3)
    wrong_captions(n, negatives)  # drawn before the prior's samples
    prior = torch.zeros(())
    for discriminator, z in zip(objective.discriminators, (pooled, captions), strict=True):
        of_prior, of_features = (torch.sigmoid(discriminator(x)) for x in (torch.rand_like(z), z))
        prior = prior - (of_prior.log().mean() + (1 - of_features).log().mean())
    torch.manual_seed(3)
    loss, metrics = objective.loss(pooled, batch)
    torch.testing.assert_close(-metrics["bound"], (positive + negative).squeeze(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, (0.9 * (positive + negative) + 0.1 * prior).squeeze(), atol=1e-5, rtol=1e-5)


def in_bounds(features: Tensor) -> Tensor:
    """Standardised over the batch, then the normal distribution function."""
    z = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-5).sqrt()
    return (1 + (z / 2**0.5).erf()) / 2


@pytest.mark.parametrize(("match", "helps"), [(adversarial_prior, False), (released_prior, True)])
def test_only_the_adversarial_prior_works_against_the_discriminator(match: Any, helps: bool) -> None:
    """A step of either down its own gradient: can features be told from the prior better or worse afterwards?"""
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    features = torch.randn(256, 16, requires_grad=True)

    def told_apart(features: Tensor) -> float:
        torch.manual_seed(1)
        return -released_prior(discriminator, features if helps else in_bounds(features)).item()

    match(discriminator, features).backward()
    before = told_apart(features)
    assert features.grad is not None
    assert (told_apart(features.detach() - 5.0 * features.grad) > before) == helps
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter -= 0.1 * parameter.grad
    assert told_apart(features) > before


def test_each_side_of_the_adversarial_prior_has_its_own_gradient() -> None:
    torch.manual_seed(0)
    discriminator, features = nn.Linear(4, 1), torch.randn(8, 4, requires_grad=True)
    torch.manual_seed(1)
    adversarial_prior(discriminator, features).backward()
    z = features.detach().requires_grad_()
    (of_encoder,) = torch.autograd.grad(-discriminator(in_bounds(z)).sigmoid().log().mean(), z)
    torch.manual_seed(1)
    of_prior, of_features = (discriminator(x).sigmoid() for x in (torch.rand(8, 4), in_bounds(z.detach())))
    told = -(of_prior.log().mean() + (1 - of_features).log().mean())
    of_discriminator = torch.autograd.grad(told, list(discriminator.parameters()))
    torch.testing.assert_close(features.grad, of_encoder)
    for parameter, grad in zip(discriminator.parameters(), of_discriminator, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_weights_of_classes_are_those_of_their_own_terms() -> None:
    encoder, batch, weights = make_encoder().eval(), make_batch(), [0.5, 1.0, 4.0, 0.0, 2.0]
    objective = SynsetObjective(encoder, [1] * 5, 10, Synsets(), weights).eval()
    with torch.no_grad():
        loss, _ = objective(batch)
        z = objective.head(encoder.pooled(batch.image).float())
    truth = nn.functional.one_hot(batch.labels, 5).float()
    each = nn.functional.binary_cross_entropy_with_logits(z, truth, pos_weight=torch.tensor(weights), reduction="sum")
    torch.testing.assert_close(loss, each / len(truth))
    assert "weights" not in objective.state_dict()


def test_subwords_equal_a_loop_over_the_paper() -> None:
    objective = make_objective("subwords").train()
    df, pictures = [0] * VOCAB, 0
    for seed in range(3):
        batch = make_batch(5, seed)
        assert batch.tokens is not None
        bags = [sorted(set(row) - {0, VOCAB - 2, VOCAB - 1}) for row in batch.tokens.tolist()]
        pooled = torch.randn(5, objective.encoder.width)
        log_p = objective.head.classifier(objective.head(pooled)).softmax(1).log()
        expected = torch.zeros(())
        for i, bag in enumerate(bags):
            w = {t: math.log((pictures + 1) / (df[t] + 1)) if pictures else 1.0 for t in bag}
            expected = expected - sum(w[t] / sum(w.values()) * log_p[i, t] for t in bag) / 5
        torch.testing.assert_close(objective.loss(pooled, batch)[0], expected, atol=1e-5, rtol=1e-5)
        objective.after_step()
        pictures += len(bags)
        for token in (t for bag in bags for t in bag):
            df[token] += 1
    assert objective.met.counts.tolist() == [*df, pictures]
    objective.eval()
    objective.loss(pooled, batch)
    objective.after_step()
    assert objective.met.counts[-1] == 15  # looking does not count


def test_subwords_in_micro_batches_equal_one_batch() -> None:
    whole, parts = make_objective("subwords").train(), make_objective("subwords").train()
    for seed in range(2):
        batch = make_batch(6, seed)
        at_once = whole(batch)[0].item()
        in_parts = sum(parts(rows(batch, a, b))[0].item() * (b - a) / 6 for a, b in ((0, 1), (1, 4), (4, 6)))
        assert in_parts == pytest.approx(at_once, rel=1e-5)
        whole.after_step()
        parts.after_step()
    assert torch.equal(whole.met.counts, parts.met.counts)


def whitened(batch: Batch) -> Tensor:
    """The targets of a batch, [B, KEPT]: row by row."""
    known, assumed = batch.sentences, make_sentences()
    assert known is not None
    mean, matrix = torch.from_numpy(assumed.mean), torch.from_numpy(assumed.matrix)
    return torch.stack([(row - mean) @ matrix if row.any() else torch.zeros(KEPT) for row in known])


@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from(["text", "smooth_l1"]), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_text_targets_equal_a_loop(n: int, without: int, name: str, seed: int) -> None:
    """Value and gradients, at the pooled features and of the head; pictures without caption among the others."""
    objective, batch = make_objective(name).train(), make_batch(n, seed)
    assert batch.sentences is not None
    batch.sentences[:without] = 0
    g = torch.Generator().manual_seed(seed)
    mine, theirs = (torch.randn(n, 64, generator=g.manual_seed(seed)).requires_grad_() for _ in range(2))
    loss, _ = objective.loss(mine, batch)
    loss.backward()
    weight, bias = (p.detach().clone().requires_grad_() for p in objective.image_projection.parameters())
    expected = torch.zeros(())
    for x, target in zip(theirs, whitened(batch), strict=True):
        z = weight @ x + bias
        if not target.any():
            continue
        if name == "text":
            expected = expected + (1 - z @ target / (z.norm() * target.norm())) / n
        else:
            each = [d * d / 2 if (d := abs(a - b)) < 1 else d - 0.5 for a, b in zip(z, target, strict=True)]
            expected = expected + sum(each) / KEPT / n
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    if expected.requires_grad:
        expected.backward()
        for a, b in (
            (mine, theirs),
            (objective.image_projection.weight, weight),
            (objective.image_projection.bias, bias),
        ):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    assert not mine.grad[:without].any()


@pytest.mark.parametrize(("name", "projected"), [("clip_frozen", True), ("clip_direct", False)])
def test_a_frozen_text_side_is_the_loss_on_whitened_sentences(name: str, projected: bool) -> None:
    objective, batch, pooled = make_objective(name), make_batch(5), torch.randn(5, 64)
    text = whitened(batch)
    if projected:
        text = text @ objective.text_projection.weight.T
    image, text = (nn.functional.normalize(x, dim=1) for x in (objective.image_projection(pooled), text))
    torch.testing.assert_close(objective.loss(pooled, batch)[0], info_nce(image, text, objective.scale()))
    assert not any(name.startswith("text.") for name, _ in objective.named_parameters())  # nothing frozen is trained


def test_text_targets_in_micro_batches_equal_one_batch() -> None:
    whole, parts, batch = make_objective("text"), make_objective("text"), make_batch(6)
    whole(batch)[0].backward()
    for a, b in ((0, 1), (1, 4), (4, 6)):
        (parts(rows(batch, a, b))[0] * (b - a) / 6).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


def pulls(hybrid: HybridObjective, pooled: Tensor, batch: Batch) -> list[Tensor]:
    """The gradient of each part's own loss at the pooled features."""
    found = []
    for part in hybrid.parts.values():
        leaf = pooled.detach().requires_grad_()
        part.loss(leaf, batch)[0].backward()  # pyright: ignore[reportCallIssue]
        found.append(leaf.grad)
    hybrid.zero_grad()
    return found


def test_a_balanced_hybrid_gives_each_part_its_share_of_the_first_ones_pull() -> None:
    objective: Any = make_objective("taught").train()
    batch, pooled = make_batch(6), torch.randn(6, 64)
    alone = pulls(objective, pooled, batch)
    heads = {}
    for name, part in objective.parts.items():
        part.loss(pooled, batch)[0].backward()
        heads |= {f"{name}.{n}": p.grad.clone() for n, p in part.named_parameters() if p.grad is not None}
    objective.zero_grad()
    for step in range(2):
        leaf = pooled.clone().requires_grad_()
        loss, metrics = objective.loss(leaf, batch)
        loss.backward()
        if step == 0:  # nothing is known yet: the weights as they are
            torch.testing.assert_close(leaf.grad, alone[0] + 0.5 * alone[1] + 0.25 * alone[2])
        objective.after_step()
        torch.testing.assert_close(objective.norms, torch.stack([g.norm() / alone[0].norm() for g in alone]))
        if step == 0:
            objective.zero_grad()
    norm = alone[0].norm()
    expected = alone[0] + 0.5 * alone[1] / alone[1].norm() * norm + 0.25 * alone[2] / alone[2].norm() * norm
    torch.testing.assert_close(leaf.grad, expected)
    torch.testing.assert_close(metrics["text.weight"], 0.5 * norm / alone[1].norm())
    torch.testing.assert_close(loss, sum(part.loss(pooled, batch)[0] for part in objective.parts.values()))
    for name, part in objective.parts.items():  # the heads learn from their own losses
        for n, p in part.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(p.grad, heads[f"{name}.{n}"])
    objective.loss(pooled, batch)[0].backward()  # nothing is measured where nothing asks for a gradient
    with torch.no_grad():
        objective.loss(pooled, batch)
    assert "squares" not in " ".join(objective.state_dict())


def test_a_balance_is_the_same_however_a_step_is_split() -> None:
    def run(cuts: list[tuple[int, int]]) -> Tensor:
        encoder = make_encoder()
        parts = {n: make_objective(n, encoder) for n in ("synsets", "text")}
        objective = HybridObjective(parts, (1.0, 0.5), balance=True).train()
        assert not objective.needs_global_batch
        for seed in range(3):
            objective.zero_grad()
            for a, b in cuts:
                (objective(rows(make_batch(6, seed), a, b))[0] * (b - a) / 6).backward()
            objective.after_step()
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])

    torch.testing.assert_close(run([(0, 6)]), run([(0, 1), (1, 4), (4, 6)]), atol=1e-5, rtol=1e-3)


def test_a_step_that_overflows_leaves_the_balance_alone() -> None:
    objective: Any = make_objective("taught").train()
    pooled, batch = torch.randn(6, 64, requires_grad=True), make_batch()
    objective.loss(pooled, batch)[0].backward()
    objective.after_step()
    before = objective.norms.clone()
    (objective.loss(pooled, batch)[0] * float("inf")).backward()
    objective.after_step()
    assert torch.equal(objective.norms, before)
    assert not objective.squares.any()
    with pytest.raises(UsageError, match="the first one is what the others are shares of"):
        HybridObjective({"synsets": make_objective("synsets")}, (0.0,), balance=True)


def test_hybrid_is_the_weighted_sum_and_sees_each_picture_once() -> None:
    encoder, batch = make_encoder(), make_batch()
    calls = []
    encoder.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    features, forward = encoder.backbone.forward_features, []
    encoder.backbone.forward_features = lambda x, **_: forward.append(1) or features(x)
    parts = {n: make_objective(n, encoder).eval() for n in ("siglip", "synsets")}
    alone = {n: part(batch)[0].item() for n, part in parts.items()}
    forward.clear()
    hybrid = HybridObjective(parts, (2.0, 0.25)).eval()
    loss, metrics = hybrid(batch)
    assert len(forward) == 1
    assert loss.item() == pytest.approx(2 * alone["siglip"] + 0.25 * alone["synsets"], rel=1e-5)
    assert metrics["siglip.loss"].item() == pytest.approx(alone["siglip"], rel=1e-5)
    assert parts["siglip"].encoder is encoder
    with pytest.raises(UsageError, match=r"`weights` \(1.0,\): there are 2 parts"):
        HybridObjective(parts, (1.0,))


PARALLEL = ["clip", "siglip", "subwords", "superclip", "siglip_synsets", "text", "clip_frozen", "taught"]
SHARES = {"even": (4, 4, 4), "uneven": (3, 2, 4)}  # pictures of each of three processes


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What three processes computed together (tests/sharded.py), by name."""
    out = tmp_path_factory.mktemp("sharded")
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "tests.sharded", str(out)], check=True, cwd=root, timeout=300)
    return torch.load(out / "results.pt", weights_only=True)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_sharded_losses_equal_one_process(sharded: dict[str, Tensor], kind: str, shares: str) -> None:
    open_clip = pytest.importorskip("open_clip.loss")
    inputs = vectors(sum(SHARES[shares]))[: 3 if kind == "clip" else 4]
    loss = (open_clip.ClipLoss() if kind == "clip" else open_clip.SigLipLoss())(*inputs)
    loss.backward()
    torch.testing.assert_close(sharded[f"{kind}.{shares}.loss"], loss.detach(), atol=1e-5, rtol=1e-5)
    for i, x in enumerate(inputs):
        torch.testing.assert_close(sharded[f"{kind}.{shares}.grad{i}"], x.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PARALLEL)
def test_data_parallel_training_equals_one_process(sharded: dict[str, Tensor], name: str) -> None:
    """Gradients of all weights after averaging over processes, and document frequencies."""
    objective = make_objective(name).train()
    loss = two_steps(objective, objective, slice(0, 12))
    torch.testing.assert_close(sharded[f"{name}.loss"], loss, atol=1e-5, rtol=1e-4)
    for parameter, p in objective.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(sharded[f"{name}.{parameter}"], p.grad, atol=2e-5, rtol=1e-3)
    for buffer, value in objective.named_buffers():
        torch.testing.assert_close(sharded[f"{name}.{buffer}"], value, atol=0.0, rtol=1e-4 * value.is_floating_point())
