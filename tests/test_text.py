"""The text tower against open_clip's, and dual encoders that come back from their folder as they were."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from catlip.errors import UsageError
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import MAX_SCALE, DualEncoder, load_dual
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig, TextTower
from catlip.objectives.base import Context
from catlip.objectives.clip import Clip
from catlip.objectives.hybrid import HybridObjective
from catlip.objectives.subwords import SubwordObjective, Subwords
from catlip.tasks.pretrain import as_vocabulary

CFG = TextConfig(text_width=64, text_layers=2)
CAPTIONS = ["a dog on a mat", "", "two cats", "one very long caption about dogs and cats and mats and sofas"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 2, size=530, context=12)


def tokens_of(tokenizer: Tokenizer) -> torch.Tensor:
    return torch.from_numpy(tokenizer(CAPTIONS))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_tower_equals_open_clips(tokenizer: Tokenizer, causal: bool, training: bool) -> None:
    transformer = pytest.importorskip("open_clip.transformer")
    theirs = transformer.TextTransformer(
        context_length=12, vocab_size=tokenizer.size, width=64, heads=1, layers=2, output_dim=32,
        no_causal_mask=not causal, use_pad_mask=not causal,
    )  # fmt: skip
    ours = TextTower(tokenizer.size, 12, replace(CFG, causal=causal), embed=32)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = tokens_of(tokenizer)
    a, b = ours.train(training)(tokens), theirs.train(training)(tokens)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # another code path of torch's attention
        torch.testing.assert_close(ours(tokens), b, atol=1e-5, rtol=1e-5)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_the_start_is_open_clips() -> None:
    """Spread of every weight at the start, so that a comparison of objectives compares no initialisations."""
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    theirs = transformer.TextTransformer(context_length=77, vocab_size=600, width=128, heads=2, layers=2, output_dim=96)
    ours = TextTower(600, 77, TextConfig(text_width=128, text_layers=2), embed=96)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.12, abs=0.02), name


@pytest.mark.parametrize("causal", [True, False])
def test_padding_and_company_change_nothing(tokenizer: Tokenizer, causal: bool) -> None:
    tower = TextTower(tokenizer.size, 12, replace(CFG, causal=causal), embed=32).eval()
    tokens = tokens_of(tokenizer)
    together = tower(tokens)
    for row, alone in zip(tokens, together, strict=True):
        torch.testing.assert_close(tower(row[None, : int(row.argmax()) + 1])[0], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("context", [12, 77])
def test_lengths_that_a_gpu_is_given(causal: bool, context: int) -> None:
    """A multiple of 8 or the whole context, and nothing else changes."""
    tower = TextTower(600, context, replace(CFG, causal=causal), embed=32).eval()
    lengths = set()
    for length in range(1, context + 1):
        tokens = torch.randint(1, 590, (2, length))
        tokens[:, -1] = 599
        padded = tower.few_lengths(tokens)
        lengths.add(padded.shape[1])
        assert torch.equal(padded[:, :length], tokens)
        assert not padded[:, length:].any()
        torch.testing.assert_close(tower(padded), tower(tokens), atol=1e-5, rtol=1e-5)
    assert lengths == {*range(8, context, 8), context}


def test_mistakes(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="`text_width` 100"):
        TextTower(600, 12, TextConfig(text_width=100), embed=8)
    with pytest.raises(UsageError, match=r"13 tokens .* `context` 12"):
        TextTower(600, 12, CFG, embed=8)(torch.ones(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(("embed", "bias"), [(0, None), (24, -10.0)])
def test_a_dual_encoder_comes_back_as_it_was(
    tokenizer: Tokenizer, tmp_path: Path, embed: int, bias: float | None
) -> None:
    encoder = Encoder.create("test_vit", image_size=32)
    dual = DualEncoder(encoder, tokenizer, CFG, embed=embed, scale=10.0, bias=bias).eval()
    encoder.save(tmp_path / "encoder")
    dual.save(tmp_path)
    again = load_dual(tmp_path)
    x, tokens = torch.randn(2, 3, 32, 32), tokens_of(tokenizer)
    torch.testing.assert_close(again.embed_images(x), dual.embed_images(x))
    torch.testing.assert_close(again.embed_captions(tokens), dual.embed_captions(tokens))
    torch.testing.assert_close(again.embed_texts(CAPTIONS, batch=2), dual.embed_captions(tokens))
    torch.testing.assert_close(again.scale(), dual.scale())
    assert (again.logit_bias is None) == (bias is None)
    assert (again.reader(CAPTIONS) == tokenizer(CAPTIONS)).all()
    assert torch.allclose(again.embed_images(x).norm(dim=1), torch.ones(2))
    (tmp_path / "text" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_dual(tmp_path)


def test_a_part_of_a_hybrid_is_saved_like_any_other(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoder = Encoder.create("test_vit", image_size=32)
    clip = Clip(embed=16).build(encoder, Context(as_vocabulary(""), tokenizer, CFG))
    hybrid = HybridObjective({"clip": clip, "subwords": SubwordObjective(encoder, tokenizer, Subwords())}, (1.0, 1.0))
    hybrid.encoder.save(tmp_path / "encoder")
    clip.save(tmp_path)
    again = load_dual(tmp_path)
    tokens = tokens_of(tokenizer)
    torch.testing.assert_close(again.embed_captions(tokens), clip.eval().embed_captions(tokens))
    names = [name for name in hybrid.state_dict() if not name.startswith(("encoder.", "parts."))]
    assert names == []


def test_a_run_without_text_tower_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text tower"):
        load_dual(tmp_path)


def test_the_scale_is_held_back_and_comes_down_again(tokenizer: Tokenizer) -> None:
    encoder = Encoder.create("test_vit", image_size=32)
    dual = DualEncoder(encoder, tokenizer, CFG, embed=8, scale=1000.0)
    scale = dual.scale()
    assert scale.item() == pytest.approx(MAX_SCALE)
    (-scale).backward()  # a loss that wants more
    assert dual.logit_scale.grad is not None
    assert dual.logit_scale.grad.item() == 0
    dual.scale().backward()  # one that wants less
    assert dual.logit_scale.grad.item() > 0
