"""Common labels thinned: the probabilities against a loop, what is written, and a run that keeps to them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from catlip.data.balance import FILE, fair_shares, keep_probabilities
from catlip.data.corpus import balance, build_vocabulary
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.subsets import mix, subset, thinned
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.tasks.pretrain import pretrain
from catlip.training.state import LoopConfig
from tests.conftest import cut_short

COMMON, RARE = "a dog on the grass", "a harp"
CAPTIONS = [COMMON] * 180 + [RARE] * 5 + ["a dog beside a harp"] * 5 + ["running fast"] * 10


@given(
    labels=st.lists(st.lists(st.integers(0, 4), unique=True, max_size=4), min_size=1, max_size=20),
    per_label=st.integers(1, 30),
    counts=st.lists(st.integers(0, 100), min_size=5, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_probabilities_against_a_loop(labels: list[list[int]], per_label: int, counts: list[int]) -> None:
    offsets = np.cumsum([0, *map(len, labels)])
    flat = np.array([label for some in labels for label in some], np.int64)
    found = keep_probabilities(flat, offsets, np.array(counts), per_label)
    for value, some in zip(found, labels, strict=True):
        left_out = 1.0
        for label in some:
            left_out *= 1 - min(1.0, per_label / max(counts[label], 1))
        assert value == pytest.approx(1 - left_out)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "c.parquet"
    keys = [str(i) for i in range(len(CAPTIONS))]
    pq.write_table(pa.table({"uid": keys, "caption": CAPTIONS}), path, row_group_size=50)
    build_vocabulary(str(path), out=str(tmp_path / "v.tsv"), workers=1)
    return path


def test_common_labels_are_thinned_and_rare_ones_are_not(table: Path, tmp_path: Path, capsys) -> None:
    settings_ = {"vocab": str(tmp_path / "v.tsv"), "per_label": 20, "workers": 1}
    counts = balance(str(table), str(tmp_path / "out"), **settings_)
    rows = [row for file in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found = Counter(row["captions"][0] for row in rows)
    assert found[RARE] == found["a dog beside a harp"] == 5
    assert found["running fast"] == 0
    # The dog is in 185 samples, the grass in 180.
    keep = 1 - (1 - 20 / 185) * (1 - 20 / 180)
    assert abs(found[COMMON] - 180 * keep) < 4 * (180 * keep * (1 - keep)) ** 0.5
    assert {row["keep"] for row in rows if row["captions"] == [COMMON]} == {np.float32(keep)}
    assert all(CAPTIONS[int(row["uid"])] == row["captions"][0] for row in rows)
    assert counts.kept == len(rows)
    assert "dog 185 -> " in capsys.readouterr().out
    # Again: the same; another seed: another draw of the same size.
    again = balance(str(table), str(tmp_path / "again"), **settings_)
    assert again.kept_by_synset == counts.kept_by_synset
    other = [balance(str(table), str(tmp_path / f"s{seed}"), seed=seed, **settings_).kept for seed in (1, 2, 3)]
    assert len({counts.kept, *other}) > 1
    with pytest.raises(UsageError, match="`out`"):
        balance(str(table), str(tmp_path / "out"), **{**settings_, "per_label": 10})
    # What was written is data like any other.
    assert build_vocabulary(str(tmp_path / "out"), out="", workers=1).samples == len(rows)


def test_a_vocabulary_of_other_captions_is_told(table: Path, tmp_path: Path, capsys) -> None:
    pq.write_table(pa.table({"caption": CAPTIONS[:20]}), tmp_path / "few.parquet")
    balance(str(tmp_path / "few.parquet"), str(tmp_path / "o"), vocab=str(tmp_path / "v.tsv"), per_label=9, workers=1)
    assert "counted on 200 samples, and here are 20" in capsys.readouterr().err
    with pytest.raises(UsageError, match="`per_label` 0"):
        balance(str(table), str(tmp_path / "p"), vocab=str(tmp_path / "v.tsv"), per_label=0)


def pictures(captions: list[str]) -> list[tuple[np.ndarray, str]]:
    return [(np.full((8, 8, 3), 40 + i, np.uint8), caption) for i, caption in enumerate(captions)]


def test_an_epoch_holds_the_fair_share(tmp_path: Path) -> None:
    dataset = open_dataset(pictures(CAPTIONS))
    vocabulary = Vocabulary.count(dataset)
    shares = fair_shares(dataset, vocabulary, 20)
    keep, counted = shares.keep, shares.thinned(vocabulary)
    fair = thinned(dataset, keep)
    order = Order(fair.parts, 0, keep=fair.keep)
    found = Counter(CAPTIONS[i] for i in order.samples(np.arange(40 * order.length)).tolist())
    assert found[RARE] == pytest.approx(40 * 5, abs=5)
    assert found[COMMON] == pytest.approx(40 * keep[0] * 180, rel=0.02)
    assert "running fast" not in found
    epoch: Counter[str] = Counter()
    for caption, times in found.items():
        epoch.update(dict.fromkeys(vocabulary.labeler()([caption])[0], times))
    assert counted.synsets == vocabulary.synsets
    assert counted.counts == pytest.approx([epoch[label] / 40 for label in vocabulary.synsets], abs=1)
    assert counted.samples == order.length
    with pytest.raises(UsageError, match="not one caption"):
        fair_shares(open_dataset(pictures(["running fast"] * 3)), vocabulary, 20)


def test_parts_and_mixtures_keep_the_shares() -> None:
    dataset = open_dataset(pictures([COMMON] * 4))
    fair = thinned(dataset, np.array([0.5, 1, 0.25, 0]))
    assert subset(fair, [2, 0]).keep.tolist() == [0.25, 0.5]
    mixed = mix([fair, dataset], [2.0, 1.0])
    assert mixed.keep.tolist() == [0.5, 1, 0.25, 0, 1, 1, 1, 1]
    assert thinned(mixed, np.full(8, 0.5)).keep.tolist() == [0.5, 1, 0.25, 0, 0.5, 0.5, 0.5, 0.5]  # halved
    prints = [d.fingerprint() for d in (dataset, fair, thinned(dataset, np.ones(4)))]
    assert prints[0] != prints[1] != prints[2]


def test_a_run_resumes_on_thinned_samples_exactly(tmp_path: Path) -> None:
    dataset = open_dataset(pictures(CAPTIONS))
    vocabulary = Vocabulary.count(dataset)

    def run(out: str, per_label: int = 20) -> dict[str, torch.Tensor]:
        trained = pretrain(
            dataset, vocabulary, out=tmp_path / out, backbone="test_vit", image_size=16, samples=96, batch_size=16,
            per_label=per_label, device="cpu", workers=1, loop=LoopConfig(precision="fp32", save_every=32),
        )  # fmt: skip
        return load_file(trained.out / "encoder" / "model.safetensors")

    whole = run("whole")
    with cut_short():
        run("cut")
    with pytest.MonkeyPatch.context() as patch:  # going on labels batches alone, not all captions again
        patch.setattr(Vocabulary, "sparse", lambda *_: pytest.fail("labelled again"))
        again = run("cut")
    other = run("other", 0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
    with pytest.raises(UsageError, match="per_label"):
        run("cut", 10)
    assert not (tmp_path / "other" / FILE).exists()


def test_kept_shares_are_those_of_the_same_captions_labels_and_number(tmp_path: Path) -> None:
    dataset, others = open_dataset(pictures(CAPTIONS)), open_dataset(pictures([*CAPTIONS[1:], RARE]))
    vocabulary = Vocabulary.count(dataset)
    shares = fair_shares(dataset, vocabulary, 20, tmp_path)
    shares.save(tmp_path)

    def labelled(dataset: Any = dataset, vocabulary: Vocabulary = vocabulary, per_label: int = 20) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            labels = Vocabulary.sparse
            patch.setattr(Vocabulary, "sparse", lambda *args: calls.append(1) or labels(*args))
            calls: list[int] = []
            found = fair_shares(dataset, vocabulary, per_label, tmp_path)
        fresh = fair_shares(dataset, vocabulary, per_label)
        assert found.keep.tobytes() == fresh.keep.tobytes()
        assert found.thinned(vocabulary) == fresh.thinned(vocabulary)
        return bool(calls)

    assert not labelled()
    assert labelled(others)
    assert labelled(per_label=10)
    assert labelled(vocabulary=Vocabulary.count(dataset, max_size=2))
    assert labelled(vocabulary=Vocabulary.count(dataset, heads=False))
    # Files have their names and sizes for a fingerprint: what is in another column shows in the captions.
    table = tmp_path / "t.csv"
    table.write_text("image,title,text\n" + "".join(f"{i}.jpg,a dog,a cat\n" for i in range(9)))
    columns = [open_dataset(str(table), text_col=name) for name in ("title", "text")]
    assert columns[0].fingerprint() == columns[1].fingerprint()
    of_both = Vocabulary.count(["a dog", "a cat"], min_count=1)
    fair_shares(columns[0], of_both, 1, tmp_path).save(tmp_path)
    assert not labelled(columns[0], of_both, 1)
    assert labelled(columns[1], of_both, 1)
    for damaged in (b"", b"no tensors", (tmp_path / FILE).read_bytes()[:-9]):
        (tmp_path / FILE).write_bytes(damaged)
        assert labelled(columns[0], of_both, 1)
