"""The order of samples: exact permutations, fair mixtures, windows; steps that add up."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.data.order import Order, samples_at, uniforms
from catlip.data.steps import CurriculumConfig, Steps, paper_scales
from catlip.errors import UsageError


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


@given(
    parts=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_a_mixture_is_fair(parts: list[tuple[int, float]], seed: int) -> None:
    """Each source has its share of every epoch, and over the epochs no sample of it comes twice more than another."""
    order = Order(parts, seed)
    seen = [max(1, round(n * w)) for n, w in parts]
    assert order.length == sum(seen)
    epochs = 4
    found = order.samples(np.arange(epochs * order.length))
    first = 0
    for (n, _), share in zip(parts, seen, strict=True):
        mine = found[(found >= first) & (found < first + n)] - first
        assert len(mine) == epochs * share
        counts = np.bincount(mine, minlength=n)
        assert counts.max() - counts.min() <= 1
        by_epoch = [((e >= first) & (e < first + n)).sum() for e in found.reshape(epochs, -1)]
        assert by_epoch == [share] * epochs
        first += n


@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    window=st.integers(1, 100),
    seed=st.integers(0, 2**40),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_windows_are_exact_and_local(shards: list[int], window: int, seed: int, cuts: list[int]) -> None:
    n = sum(shards)
    order = Order([(n, 1.0)], seed, shards, window)
    places = np.arange(3 * n)
    found = order.samples(places)
    for epoch in found.reshape(3, n):
        assert sorted(epoch.tolist()) == list(range(n))
    # Any piece computed alone is the same.
    for cut in cuts:
        piece = places[cut : cut + 7]
        assert order.samples(piece).tolist() == found[cut : cut + 7].tolist()
    # A window's samples come from the shards that were announced for it, which hold little more than the window.
    owner = np.searchsorted(np.cumsum(shards), np.arange(n), side="right")
    for place in range(0, n, max(1, n // 5)):
        announced = order.shards_from(place, windows=1)
        assert owner[found[place]] in announced
        assert sum(shards[s] for s in announced) < 2 * window + 2 * max(shards)


def test_windows_repeat_whole_shards_by_weight() -> None:
    order = Order([(6, 2.0), (4, 1.0)], 3, [3, 3, 4], window=5)
    assert order.length == 16
    assert np.bincount(order.samples(np.arange(16)), minlength=10).tolist() == [2] * 6 + [1] * 4
    with pytest.raises(UsageError, match="whole numbers"):
        Order([(6, 1.5), (4, 1.0)], 3, [3, 3, 4], window=5)


@given(
    keep=st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]), min_size=1, max_size=200),
    seed=st.integers(0, 2**40),
    weight=st.sampled_from([1.0, 2.0, 0.4]),
)
@settings(max_examples=80, deadline=None)
def test_thinned_samples_come_as_often_as_they_should(keep: list[float], seed: int, weight: float) -> None:
    expected = np.array(keep) * weight
    if expected.sum() < 1.001:
        return
    order, epochs = Order([(len(keep), weight)], seed, keep=np.array(keep)), 80
    assert expected.sum() - 1.001 < order.length <= expected.sum() + 0.001
    found = order.samples(np.arange(epochs * order.length)).reshape(epochs, -1)
    counts = np.array([np.bincount(epoch, minlength=len(keep)) for epoch in found])
    assert (counts <= np.ceil(expected)).all(), "a sample of a weight up to 1 is never twice in an epoch"
    fair = expected * order.length / expected.sum()  # what is too much for a whole number is taken from all alike
    assert np.abs(counts.sum(0) - fair * epochs).max() < 4


def test_thinned_by_nothing_is_a_permutation_and_another_one_each_epoch() -> None:
    first, second = Order([(500, 1.0)], 5, keep=np.ones(500)).samples(np.arange(1000)).reshape(2, -1)
    assert sorted(first) == sorted(second) == list(range(500))
    assert (first == second).mean() < 0.02


def test_golden_thinned_order() -> None:
    """As of all orders: a run goes on with the very same samples."""
    order = Order([(6, 1.0), (4, 0.5)], 7, keep=np.linspace(0, 1, 10))
    assert order.length == 3
    assert order.samples(np.arange(9)).tolist() == [6, 9, 4, 2, 5, 8, 4, 9, 7]


@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    window=st.integers(1, 60),
    seed=st.integers(0, 2**40),
    share=st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_thinned_windows_hold_the_same_samples_and_are_local(
    shards: list[int], window: int, seed: int, share: float
) -> None:
    n = sum(shards)
    keep = np.random.default_rng(seed).random(n) ** (1 / share - 0.99)
    if keep.sum() < 1.001:
        return
    plain, order = Order([(n, 1.0)], seed, keep=keep), Order([(n, 1.0)], seed, shards, window, keep)
    places = np.arange(3 * plain.length)
    found = order.samples(places)
    for mine, theirs in zip(found.reshape(3, -1), plain.samples(places).reshape(3, -1), strict=True):
        assert sorted(mine) == sorted(theirs)
    assert order.samples(places[5:9]).tolist() == found[5:9].tolist()
    owner = np.searchsorted(np.cumsum(shards), np.arange(n), side="right")
    for place in range(0, order.length, max(1, order.length // 5)):
        assert owner[found[place]] in order.shards_from(place, windows=1)


def test_nothing_kept_is_said() -> None:
    with pytest.raises(UsageError, match="no sample"):
        Order([(3, 1.0)], 0, keep=np.array([0.1, 0.2, 0.0]))


def test_random_numbers_are_uniform_and_a_function_of_the_place() -> None:
    draws = uniforms(np.arange(20_000), 5, seed=3)
    assert draws.shape == (20_000, 5)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.03
    assert (uniforms(np.array([7]), 5, seed=3) == draws[7]).all()
    assert (uniforms(np.array([7]), 5, seed=4) != draws[7]).all()


def test_the_papers_sizes_and_batches() -> None:
    """13 sizes for 25 asked, 3,136 pictures of 128 px where 1,024 of 224 fit, as the official sampler has it."""
    sizes = paper_scales()
    assert sizes == (128, 144, 160, 176, 192, 208, 224, 240, 256, 272, 288, 304, 320)
    steps = Steps(CurriculumConfig(scales=sizes), budget=10**6, batch_size=1024, image_size=224, seed=0)
    batches = {size: batch for batch, size in steps.shapes()}
    expected = [3136, 2477, 2007, 1658, 1393, 1187, 1024, 892, 784, 694, 619, 555, 501]
    # The official code cuts the fraction off where we round: one picture apart at most.
    assert all(abs(batches[s] - b) <= 1 for s, b in zip(sizes, expected, strict=True))


@given(
    budget=st.integers(1, 5000), batch=st.integers(1, 64), seed=st.integers(0, 999), multi=st.booleans(),
    stop=st.integers(0, 40),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_steps_join_without_gap(budget: int, batch: int, seed: int, multi: bool, stop: int) -> None:
    cfg = CurriculumConfig(scales=(32, 64, 96) if multi else ())
    steps = Steps(cfg, budget=budget, batch_size=batch, image_size=64, seed=seed)
    whole = [steps[i] for i in range(len(steps))]
    assert whole[0].start == 0
    assert all(a.start + a.batch == b.start for a, b in pairwise(whole))
    last = whole[-1]
    assert last.start < budget <= last.start + last.batch
    at = min(stop, len(whole) - 1)
    again = Steps(cfg, budget=budget, batch_size=batch, image_size=64, seed=seed)
    assert again.after(whole[at].start) == at
    assert again[at] == whole[at]


def test_a_changed_batch_size_goes_on_where_it_was() -> None:
    steps = Steps(CurriculumConfig(), budget=1000, batch_size=64, image_size=32, seed=0)
    number = steps.after(100)
    assert steps[number].start == 100
    assert steps[number + 1].start == 164
    assert steps[len(steps) - 1].start + 64 >= 1000 > steps[len(steps) - 1].start


def test_patches_come_back_at_the_end() -> None:
    cfg = CurriculumConfig(patch_keep=0.5, patch_keep_share=0.8)
    steps = Steps(cfg, budget=100, batch_size=10, image_size=32, seed=0)
    assert [steps[i].keep for i in range(10)] == [0.5] * 8 + [1.0] * 2


@pytest.mark.parametrize(
    "settings_", [{"scales": (32,), "low_res": 16}, {"patch_keep": 0.0}, {"low_res": 8, "low_res_share": 1.5}]
)
def test_contradictions_are_refused(settings_: dict) -> None:
    with pytest.raises(UsageError):
        Steps(CurriculumConfig(**settings_), budget=100, batch_size=10, image_size=32, seed=0)
