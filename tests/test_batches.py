"""Batches: the same whatever the number of ranks and workers, from any step on, and when workers die."""

import errno
import multiprocessing
import os
import sys
from itertools import islice
from pathlib import Path
from unittest import mock

import pytest
import torch

from catlip.data import loader as loaders
from catlip.data.batches import Batch, CaptionBatches
from catlip.data.crops import CropConfig
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary, to_classes
from tests.conftest import jpeg, write_tar

LABELER = Labeler()


def vocabulary(*words: str) -> Vocabulary:
    counts = {LABELER([word])[0][0]: 10 for word in words}
    return Vocabulary.from_counts(counts, LABELER, samples=40, captions=40, source="test")


def make(
    data: str, rank: int = 0, world: int = 1, workers: int = 0, budget: int = 1000, batch_size: int = 12, **curriculum
) -> Loader:
    source = open_dataset(data)
    steps = Steps(CurriculumConfig(**curriculum), budget=budget, batch_size=batch_size, image_size=16, seed=5)
    order = Order(source.parts, 5, source.shards.tolist())
    words = vocabulary("apple", "lake", "lawn", "lemon")
    return Loader(
        CaptionBatches(
            source, order, steps, vocabulary=words, labeler=LABELER, crop=CropConfig(), rank=rank, world=world
        ),
        workers,
    )


def take(loader: Loader, start: int, count: int) -> list[Batch]:
    stream = loader.batches_from(loader.batches.steps.after(start))
    found = list(islice(stream, count))
    stream.close()
    return found


def test_batches_do_not_depend_on_workers_and_go_on_anywhere(coloured_shards) -> None:
    data = coloured_shards(50)
    whole = take(make(data), 0, 6)
    later = take(make(data, workers=2), 36, 3)
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


def test_low_resolution_first_full_at_the_end(coloured_shards) -> None:
    loader = make(coloured_shards(24), budget=48, low_res=8, low_res_share=0.5)
    assert [batch.image.shape[-1] for batch in take(loader, 0, 5)] == [8, 8, 16, 16]
    assert take(loader, 12, 1)[0].image.shape[-1] == 8  # also when it goes on from the middle


def test_sizes_vary_with_constant_pixels_and_nothing_is_lost(coloured_shards) -> None:
    data = coloured_shards(48)
    whole = take(make(data, budget=96, scales=(8, 16, 24), batch_size=12), 0, 100)
    assert {batch.image.shape[-1] for batch in whole} == {8, 16, 24}
    assert {(batch.image.shape[-1], len(batch)) for batch in whole} == {(8, 48), (16, 12), (24, 5)}
    keys = [key for batch in whole for key in batch.keys]
    assert sorted(keys[:48]) == sorted(keys[48:96]) == [f"{i:06d}" for i in range(48)]
    shared = [take(make(data, rank, 3, budget=96, scales=(8, 16, 24)), 0, 100) for rank in range(3)]
    assert {len(batches) for batches in shared} == {len(whole)}
    for step, batch in enumerate(whole):
        assert sorted(batch.keys) == sorted(key for rank in shared for key in rank[step].keys)


def test_three_shards_on_eight_ranks(coloured_shards) -> None:
    data = coloured_shards(50, 3)
    ranks = [take(make(data, rank, 8, budget=50, batch_size=10), 0, 5) for rank in range(8)]
    assert {len(batches) for batches in ranks} == {5}
    keys = [key for batches in ranks for batch in batches for key in batch.keys]
    assert len(keys) == len(set(keys)) == 50


def test_a_worker_that_dies_costs_nothing(coloured_shards) -> None:
    data = coloured_shards(48)
    whole = [batch.keys for batch in take(make(data), 0, 8)]
    loader = make(data, workers=2)
    stream, seen = loader.batches_from(0), []
    for step, batch in enumerate(islice(stream, 8)):
        seen.append(batch.keys)
        if step in (1, 4):
            for child in multiprocessing.active_children():
                child.kill()
    stream.close()
    assert seen == whole
    assert loader.deaths >= 1


def test_what_a_loader_hands_out_may_be_kept_unless_it_is_lent(coloured_shards) -> None:
    data = coloured_shards(48)
    whole = [batch.image for batch in make(data).batches_from(0)]
    kept = [batch.image for batch in make(data, workers=1).batches_from(0)]
    lent = [batch.image.clone() for batch in make(data, workers=1).batches_from(0, lend=True)]
    assert len(whole) == 84
    for images in (kept, lent):
        assert all(torch.equal(a, b) for a, b in zip(whole, images, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_batches_in_waiting_are_bounded_by_the_machine_and_not_by_dev_shm(coloured_shards, monkeypatch) -> None:
    """A container gives /dev/shm 64 MB, and memory may be less than the ring would like."""
    sizes, shared = [], loaders._shared

    def noted(count: int, size: int) -> torch.Tensor:
        sizes.append(count)
        return shared(count, size)

    monkeypatch.setattr(loaders, "_shared", noted)
    loader = make(coloured_shards(48), workers=2)
    stream = loader.batches_from(0)
    next(stream)
    maps = (
        Path("/proc/self/maps").read_text().replace("/dev/shm/sem.", "")
    )  # a semaphore of another library's is none of ours
    assert "/dev/shm" not in maps
    stream.close()
    monkeypatch.setattr(loaders.machine, "memory", lambda: 4 * 2 * loader.batches.largest())
    take(loader, 0, 2)
    assert sizes == [loaders.AHEAD * 2 + 2, 4]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_file_that_fails_is_the_reason_that_is_told(coloured_shards, monkeypatch, capfd, code: int) -> None:
    """A worker that meets the system's errors ends and is started anew; after five times the user reads which error."""
    loader = make(coloured_shards(48), workers=1)
    failing = OSError(code, os.strerror(code), "/mnt/photos/train-0.tar")
    monkeypatch.setattr(type(loader.batches.source), "__getitem__", mock.Mock(side_effect=failing))
    with pytest.raises(UsageError, match=rf"died 5 times over step 0 .*{os.strerror(code)}: '/mnt/photos") as raised:
        take(loader, 0, 1)
    assert "memory" not in str(raised.value)
    assert capfd.readouterr().err.count("started anew") == 4


def test_a_file_that_fails_once_costs_nothing(coloured_shards, monkeypatch, tmp_path: Path) -> None:
    data = coloured_shards(48)
    whole = [batch.keys for batch in take(make(data), 0, 4)]
    loader, once = make(data, workers=2), tmp_path / "once"
    read = type(loader.batches.source).__getitem__

    def fails_once(self, number: int):
        if not once.exists():
            once.touch()
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self, number)

    monkeypatch.setattr(type(loader.batches.source), "__getitem__", fails_once)
    assert [batch.keys for batch in take(loader, 0, 4)] == whole
    assert loader.deaths == 1


def test_a_mistake_in_a_worker_is_told_at_once(coloured_shards, monkeypatch) -> None:
    loader = make(coloured_shards(48), workers=1)
    monkeypatch.setattr(type(loader.batches.source), "__getitem__", mock.Mock(side_effect=KeyError("oh")))
    with pytest.raises(RuntimeError, match=r"a loader worker met KeyError: 'oh'"):
        take(loader, 0, 1)
    assert loader.deaths == 0


def test_micro_batches_are_the_batch(coloured_shards) -> None:
    batch = take(make(coloured_shards(24)), 0, 1)[0]
    micro = batch.split(5)
    assert [len(part) for part in micro] == [5, 5, 2]
    assert [len(part) for part in batch._slice(0, 11).split(5)] == [3, 4, 4]  # and no rest of a single picture
    assert torch.equal(torch.cat([part.image for part in micro]), batch.image)
    assert torch.equal(torch.cat([part.labels for part in micro]), batch.labels)
    assert torch.equal(torch.cat([part.offsets.diff() for part in micro]), batch.offsets.diff())
    assert [key for part in micro for key in part.keys] == batch.keys
