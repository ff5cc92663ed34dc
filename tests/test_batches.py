"""The order of samples: an exact permutation each epoch, whatever the number of ranks; batches that go on anywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.captions.labeler import Labeler
from catlip.captions.vocabulary import Vocabulary
from catlip.data.batches import Batches, Resolution, samples_at, to_classes
from catlip.data.images import Crop
from catlip.data.sources import open_source
from catlip.errors import UsageError
from tests.conftest import jpeg, write_tar

LABELER = Labeler()


def vocabulary(*words: str) -> Vocabulary:
    counts = {LABELER([word])[0][0]: 10 for word in words}
    return Vocabulary.from_counts(counts, LABELER, samples=40, captions=40, source="test")


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = samples_at(np.arange(epoch * n, (epoch + 1) * n), n, seed)
    assert sorted(order.tolist()) == list(range(n))


def test_orders_differ_by_epoch_and_seed_and_look_random() -> None:
    n = 10_000
    first, second, other = (samples_at(np.arange(e * n, (e + 1) * n), n, s) for e, s in ((0, 1), (1, 1), (0, 2)))
    for a, b in ((first, second), (first, other), (first, np.arange(n))):
        assert (a == b).mean() < 0.002
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05  # neighbours are strangers


def test_golden_order() -> None:
    """A run that was begun with an older version must go on with the very same samples."""
    assert samples_at(np.arange(12), 10, 7).tolist() == GOLDEN


GOLDEN = [3, 4, 1, 5, 2, 0, 8, 7, 9, 6, 8, 7]


def make(data: str, rank: int = 0, world: int = 1, workers: int = 2) -> Batches:
    return Batches(
        open_source(data), vocabulary("apple", "lake", "lawn", "lemon"), LABELER, batch_size=12, image_size=16,
        crop=Crop(), seed=5, workers=workers, rank=rank, world=world, resolution=Resolution(), budget=1000,
    )  # fmt: skip


def take(batches: Batches, start: int, count: int) -> list:
    stream = batches.from_sample(start)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_batches_do_not_depend_on_workers_and_go_on_anywhere(coloured_shards) -> None:
    data = coloured_shards(50)
    whole = take(make(data, workers=1), 0, 6)
    later = take(make(data, workers=3), 36, 3)
    for a, b in zip(whole[3:], later, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.flip, b.flip)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_batch(coloured_shards, world: int) -> None:
    data = coloured_shards(50)
    alone = take(make(data), 0, 5)
    ranks = [take(make(data, rank, world), 0, 5) for rank in range(world)]
    for step, batch in enumerate(alone):
        interleaved = [ranks[i % world][step].keys[i // world] for i in range(12)]
        assert batch.keys == interleaved


def test_every_sample_once_an_epoch(coloured_shards) -> None:
    keys = [key for batch in take(make(coloured_shards(48)), 0, 8) for key in batch.keys]
    assert sorted(keys[:48]) == sorted(keys[48:]) == [f"{i:06d}" for i in range(48)]


def test_labels_are_those_of_all_captions_of_the_picture(coloured_shards) -> None:
    batch = take(make(coloured_shards(24)), 0, 1)[0]
    words = vocabulary("apple", "lake", "lawn", "lemon")
    for row in range(len(batch)):
        mine = batch.labels[batch.offsets[row] : batch.offsets[row + 1]].tolist()
        assert mine == words.encode(s for labels in LABELER(batch.captions[row]) for s in labels)
        assert len(mine) == 1
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (12, 3, 16, 16)


def test_labels_outside_the_vocabulary_fall_away() -> None:
    indices, offsets = LABELER.sparse(["a dog and a lake", "nothing", "an apple in a lake"])
    classes = vocabulary("lake", "apple").classes_of(LABELER)
    labels, bounds = to_classes(indices, offsets, classes, 4)
    assert bounds.tolist() == [0, 1, 1, 3, 3]
    assert labels.tolist()[1:] == [0, 1]


def shard_with(tmp_path: Path, bad: int, samples: int) -> str:
    members = {}
    for i in range(samples):
        members[f"{i:04d}.jpg"] = b"not a picture" if i < bad else jpeg(seed=i)
        members[f"{i:04d}.txt"] = b"an apple"
    return str(write_tar(tmp_path / "x.tar", members))


def test_a_bad_picture_is_skipped_and_named(tmp_path: Path) -> None:
    batches = make(shard_with(tmp_path, bad=1, samples=120))
    sizes = [len(batch) for batch in take(batches, 0, 10)]
    assert sorted(sizes) == [11] + [12] * 9
    assert list(batches.unreadable.reasons) == ["0000"]


def test_more_than_one_percent_of_bad_pictures_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read, more than 1%: 000\d"):
        take(make(shard_with(tmp_path, bad=4, samples=120)), 0, 10)


def test_batch_size_and_processes_must_fit(coloured_shards) -> None:
    with pytest.raises(UsageError, match="no multiple"):
        make(coloured_shards(24), 0, 5)


def test_low_resolution_first_full_at_the_end(coloured_shards) -> None:
    batches = make(coloured_shards(24))
    batches.resolution, batches.budget = Resolution(low_res=8, low_res_share=0.5), 48
    assert [batch.image.shape[-1] for batch in take(batches, 0, 5)] == [8, 8, 16, 16, 16]
    assert take(batches, 12, 1)[0].image.shape[-1] == 8  # also when it goes on from the middle
