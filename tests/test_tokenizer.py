"""Tokens against open_clip's own tokenizer, and what a trained vocabulary promises."""

import pickle
import random
import subprocess
import sys
from pathlib import Path
from unicodedata import ucd_3_2_0

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.errors import UsageError
from catlip.labels.tokenizer import Tokenizer, TokenizerConfig, clean, make_tokenizer

TRICKY = [
    "a photo of a dog", "", "   \t ",
    "Hello!! it's we'll DON'T I'D she'S", "&amp;lt;b&gt; caf\u00e9 na\u00efve \ufb01sh",
    "\u201cquotes\u201d \u2014 12345 \u00bd \u00b2 don\u2019t", "日本語 テスト \U0001f436\U0001f469\u200d\U0001f467",
    "a!", "!!!?", "! !", "'\u017f \u01c5 \u0130stanbul \u03a3\u0391\u03a3", "x" * 300, "word " * 200, "&nbsp;hi&#39;s",
    "soft\u00adhyphen zero\u200bwidth", "\x1b[31mred\x00\x07", "caf\u00c3\u00a9", "A\u0300 e\u0301", "a\u3000b\u00a0c",
    "it's'S 're<br/>", "१२३ ٣ Ⅷ", "don&rsquo;t &lt;i&gt;do&lt;/i&gt;", "line\r\nbreak\u2028new", "a_b-c/d\\e #tag @me",
]  # fmt: skip
CAPTIONS = [f"{a} {b} on the {c}" for a in ("one", "two", "a big") for b in ("dogs", "cats") for c in ("mat", "sofa")]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    pytest.importorskip("open_clip")
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, size=560, context=16)


def test_clips_tokens_equal_open_clips(clip: Tokenizer) -> None:
    open_clip = pytest.importorskip("open_clip")
    captions = TRICKY + [f"a{chr(c)}b 1{chr(c)}" for c in range(1, 0x2E00, 3) if clean(chr(c)) or chr(c).isspace()]
    assigned = [c for c in captions if all(_assigned(x) for x in c)]
    np.testing.assert_array_equal(clip(assigned), open_clip.tokenize(assigned).numpy())
    assert (clip.size, clip.bos, clip.eos) == (49408, 49406, 49407)


def _assigned(character: str) -> bool:
    """Whether Unicode 3.2 knows the character: on later ones, libraries' tables differ with their age."""
    return ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co")


@given(st.text(st.characters(max_codepoint=0x2FFFF).filter(_assigned), max_size=60))
@settings(max_examples=200, deadline=None)
def test_clips_tokens_equal_open_clips_on_any_text(clip: Tokenizer, text: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    np.testing.assert_array_equal(clip([text]), open_clip.tokenize([text]).numpy())


def test_a_caption_cannot_forge_a_mark(clip: Tokenizer) -> None:
    """open_clip reads "<end_of_text>" in a caption as the mark, so that a caption can cut itself short."""
    tokens = clip(["<end_of_text> a dog"])[0]
    assert (tokens == clip.eos).sum() == 1
    assert tokens.argmax() == (tokens > 0).sum() - 1


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_rows_have_marks_and_padding_in_their_places(trained: Tokenizer, captions: list[str]) -> None:
    tokens = trained(captions)
    assert tokens.shape == (len(captions), 16)
    assert tokens.dtype == np.int64
    for row in tokens:
        end = row.argmax()
        assert row[0] == trained.bos
        assert row[end] == trained.eos
        assert (row[1:end] > 0).all()
        assert (row[1:end] < trained.bos).all()
        assert (row[end + 1 :] == 0).all()


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_every_text_comes_back_from_its_tokens(trained: Tokenizer, text: str) -> None:
    """No byte is unknown, met in training or not."""
    assert trained.decode(trained.encode(text)).replace(" ", "") == clean(text).replace(" ", "")


def test_empty_and_long_captions(trained: Tokenizer) -> None:
    empty, long = trained(["", "dogs " * 50])
    assert empty.tolist() == [trained.bos, trained.eos] + [0] * 14
    assert long[-1] == trained.eos
    assert (long > 0).all()
    assert trained([None, float("nan")]).tolist() == [empty.tolist()] * 2  # type: ignore[list-item]
    with pytest.raises(UsageError, match="a caption is int"):
        trained([3])  # type: ignore[list-item]


def test_training_is_a_function_of_the_captions(trained: Tokenizer, tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    Tokenizer.train(iter(shuffled), size=560).save(tmp_path / "a.json")
    trained.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    again = Tokenizer.load(tmp_path / "b.json", context=16)
    np.testing.assert_array_equal(again(CAPTIONS), trained(CAPTIONS))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(trained))(CAPTIONS), trained(CAPTIONS))
    assert len(trained.encode("dogs")) == 1
    assert len(trained.encode("zebra")) == 5
    assert trained.size <= 560


def test_the_three_ways_of_making_one(trained: Tokenizer, clip: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.json")
    loaded = make_tokenizer(TokenizerConfig(tokenizer=str(tmp_path / "tokenizer.json"), context=16), [])
    now = make_tokenizer(TokenizerConfig(tokens=560, context=16), CAPTIONS)
    np.testing.assert_array_equal(loaded(CAPTIONS), now(CAPTIONS))
    assert make_tokenizer(TokenizerConfig(tokenizer="clip"), []).size == clip.size
    assert (now.context, clip.context) == (16, 77)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`tokens` 100: .* 515"):
        Tokenizer.train(CAPTIONS, size=100)
    with pytest.raises(UsageError, match="no such tokenizer"):
        Tokenizer.load(tmp_path / "nope.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        Tokenizer.load(tmp_path / "bad.json")
    from tokenizers import Tokenizer as Bpe
    from tokenizers import models

    Bpe(models.BPE({"a": 0}, [])).save(str(tmp_path / "other.json"))
    with pytest.raises(UsageError, match="none of catlip's"):
        Tokenizer.load(tmp_path / "other.json")
    with pytest.raises(UsageError, match="`context` 2"):
        Tokenizer.train(CAPTIONS, size=515, context=2)


def test_without_open_clip_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catlip.labels.tokenizer.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="train a tokenizer"):
        Tokenizer.clip()


def test_tokens_need_no_torch_and_the_package_no_tokenizers() -> None:
    code = (
        "import sys, catlip, catlip.cli\n"
        "catlip.cli.run(['--help'])\n"
        "assert 'tokenizers' not in sys.modules\n"
        "from catlip.labels.tokenizer import Tokenizer\n"
        "Tokenizer.train(['a dog', 'a dog'], size=520)(['dog'])\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
