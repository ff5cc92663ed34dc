"""Parts and mixtures of datasets against what plain lists give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.data.adapters import Adapted
from catlip.data.dataset import Dataset, Sample
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.subsets import fraction_of_each_class, mix, subset, thinned, with_classes
from catlip.errors import UsageError
from tests.conftest import jpeg

NAMES = ["ant", "bee", "cow", "dog"]


class Captioned(Dataset):
    """n samples in shards of two; their keys say where they are from."""

    def __init__(self, n: int, name: str = "a") -> None:
        self.n, self.name = n, name
        self.shards = np.array([min(2, n - at) for at in range(0, n, 2)], np.int64)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"{self.name}{index}", b"", [f"caption {index}"])

    def fingerprint(self) -> list:
        return [self.name, self.n]

    def prefetch(self, shards) -> None:
        self.asked = list(shards)


def labelled(labels: list[list[int]]) -> Dataset:
    return open_dataset([(b"x", [NAMES[c] for c in own]) for own in labels], target="classes", multi=True)


def named(dataset: Dataset) -> list[tuple[str, list[str]]]:
    return [(sample.key, [dataset.classes[c] for c in sample.target]) for sample in dataset]


labels_ = st.lists(st.lists(st.integers(0, 3), unique=True, max_size=4).map(sorted), min_size=1, max_size=12)


@given(st.integers(1, 20), st.data())
@settings(max_examples=60, deadline=None)
def test_a_subset_is_what_a_list_gives(n: int, data: st.DataObject) -> None:
    dataset = Captioned(n)
    indices = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    some = subset(dataset, indices)
    assert [sample.key for sample in some] == [f"a{i}" for i in indices]
    assert list(some.captions()) == [[f"caption {i}"] for i in indices]
    assert some.shards.sum() == len(some) == len(indices)
    again = data.draw(st.lists(st.integers(0, max(len(some) - 1, 0)), max_size=10 if indices else 0))
    assert list(some.keys()) == [sample.key for sample in some]
    assert [sample.key for sample in subset(some, again)] == [f"a{indices[i]}" for i in again]
    assert subset(dataset, np.arange(n) % 2 == 0).fingerprint() == subset(dataset, range(0, n, 2)).fingerprint()
    if sorted(set(indices)) != list(range(n)):
        assert some.fingerprint() != dataset.fingerprint()


def test_a_subset_keeps_the_shards_and_asks_for_them() -> None:
    dataset = Captioned(7)
    some = subset(dataset, [0, 1, 5, 6])
    assert some.shards.tolist() == [2, 0, 1, 1]
    some.prefetch([2])
    assert dataset.asked == [2]
    with pytest.raises(UsageError, match=r"`indices` are 0..6 of a, not 2..7"):
        subset(dataset, [2, 7])


@given(labels_, st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_labelled_sets_keep_their_classes(labels: list[list[int]], data: st.DataObject) -> None:
    dataset = labelled(labels)
    whole = named(dataset)
    indices = data.draw(st.lists(st.integers(0, len(labels) - 1), max_size=15))
    some = subset(dataset, indices)
    assert named(some) == [whole[i] for i in indices]
    assert some.counts().sum() == sum(len(labels[i]) for i in indices)
    assert named(subset(some, range(len(some)))) == named(some)
    share = data.draw(st.floats(0.01, 1.0))
    assert set(some.classes) == set(dataset.classes)
    assert (fraction_of_each_class(dataset, share, 0).counts() > 0).tolist() == (dataset.counts() > 0).tolist()


@given(labels_, st.permutations(NAMES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_other_class_lists_mean_the_same(labels: list[list[int]], order: list[str], by_name: bool) -> None:
    dataset = labelled(labels)
    rows = None if by_name else [order.index(name) for name in dataset.classes]
    other = with_classes(dataset, order, rows)
    assert other.classes == order
    assert [(key, set(names)) for key, names in named(other)] == [(key, set(names)) for key, names in named(dataset)]
    assert all(list(sample.target) == sorted(sample.target) for sample in other)
    back = with_classes(other, dataset.classes) if dataset.classes else other
    assert named(back) == named(dataset)
    assert not dataset.classes or back.fingerprint() == dataset.fingerprint()


def test_a_class_that_the_other_list_lacks_is_named() -> None:
    with pytest.raises(UsageError, match=r"1 of its classes are not in `train`, e.g. 'cow'"):
        with_classes(labelled([[0], [2]]), ["ant", "bee"], field="`test`")
    assert with_classes(labelled([[0], [1]]), ["bee", "ant"]).labels.tolist() == [1, 0]


def test_classes_can_be_left_out() -> None:
    found = with_classes(labelled([[0, 2, 3], [1], [], [1, 3]]), ["dog", "ant"], [1, -1, -1, 0])
    assert [names for _, names in named(found)] == [["dog", "ant"], [], [], ["dog"]]


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_mixture_is_its_datasets_one_after_the_other(sizes: list[tuple[int, float]]) -> None:
    datasets = [Captioned(n, "abcd"[i]) for i, (n, _) in enumerate(sizes)]
    mixed = mix(datasets, [weight for _, weight in sizes])
    assert [sample.key for sample in mixed] == [sample.key for dataset in datasets for sample in dataset]
    assert list(mixed.keys()) == [sample.key for sample in mixed]
    assert mixed.parts == sizes
    assert mixed.shards.tolist() == [size for dataset in datasets for size in dataset.shards]
    mixed.prefetch(list(range(len(mixed.shards))))
    assert [dataset.asked for dataset in datasets] == [list(range(len(dataset.shards))) for dataset in datasets]
    assert mixed.fingerprint() == [
        [dataset.fingerprint(), weight] for dataset, (_, weight) in zip(datasets, sizes, strict=True)
    ]


@pytest.mark.parametrize("labels", [False, True])
def test_weights_of_a_mixture_are_kept_by_its_parts(labels: bool) -> None:
    """A sample of the first set is twice in an epoch, one of the second once, whatever is made of the mixture."""
    sets = [labelled([[0], [1]]), labelled([[1], [0], [1]])] if labels else [Captioned(2, "a"), Captioned(3, "b")]
    mixed = mix(sets, [2, 1])

    def counts(dataset: Dataset) -> list[int]:
        order = Order(dataset.parts, 0, dataset.shards.tolist(), dataset.window, dataset.keep)
        return np.bincount(order.samples(np.arange(order.length)), minlength=len(dataset)).tolist()

    once = [2, 2, 1, 1, 1]
    assert counts(mixed) == counts(subset(mixed, range(5))) == once
    assert counts(subset(mixed, [4, 0, 1])) == [1, 2, 2]
    assert counts(subset(subset(mixed, [4, 0, 1]), [2, 0])) == [2, 1]
    assert counts(mix([mixed, sets[0]], [1, 3])) == [*once, 3, 3]
    assert counts(mix([sets[0], mixed], [1, 2])) == [1, 1, 4, 4, 2, 2, 2]
    assert counts(open_dataset(mixed, fingerprint="v1")) == once
    assert counts(thinned(thinned(mixed, np.array([1, 1, 1, 0, 1])), np.array([2, 1, 1, 1, 1]))) == [4, 2, 1, 0, 1]
    if labels:
        assert counts(with_classes(mixed, ["bee", "ant"])) == once
        assert counts(open_dataset(mixed, target="classes", multi=True)) == once


def test_mixtures_of_labelled_sets() -> None:
    one, other = labelled([[0], [1]]), labelled([[1], [0, 1]])
    mixed = mix([one, other])
    assert [names for _, names in named(mixed)] == [["ant"], ["bee"], ["bee"], ["ant", "bee"]]
    assert named(subset(mixed, [3, 0])) == [named(mixed)[3], named(mixed)[0]]
    with pytest.raises(UsageError, match="different classes"):
        mix([one, labelled([[2]])])
    for weights in ([1.0, 0.0], [1.0]):
        with pytest.raises(UsageError, match="`weights`: one for each dataset, greater than 0"):
            mix([one, other], weights)


def test_a_list_stays_as_it_was_given() -> None:
    items = [(jpeg(seed=i), "a dog") for i in range(3)]
    dataset = open_dataset(items)
    assert isinstance(dataset, Adapted)
    assert open_dataset(dataset) is dataset
    items.pop()
    assert len(dataset) == 3
