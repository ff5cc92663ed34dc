"""What encoders are compared by: a judge's number against naive ones, and nothing of the test set in a search."""

import numpy as np
import pytest
import torch

from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.recipes.judges import LEAST, open_judges
from tests.conftest import COLOURS, jpeg

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder.create("test_resnet", image_size=32)


def pictures(count: int, start: int = 0, *, several: bool = False) -> list:
    """(image, class), or (image, [classes]): its colour, and whether its number is even."""
    found, names = [], list(COLOURS)
    for i in range(start, start + count):
        name = names[i % 4]
        classes = [name, *(["even"] if (i // 4) % 2 else [])] if several else name
        found.append((jpeg(COLOURS[name], seed=i), classes))
    return found


def test_one_class_an_image(encoder: Encoder) -> None:
    (judge,) = open_judges([pictures(80)], [pictures(40, 80)])
    found = judge(encoder, CPU)
    assert found.measure == judge.measure == "top-1"
    assert set(found.each) <= {0.0, 100.0}
    assert len(found.each) == 40
    assert found.value == pytest.approx(np.mean(found.each))
    assert found.value > 60  # a colour is easy
    assert found.knn is not None
    assert found.knn > 60


def test_several_classes_an_image(encoder: Encoder) -> None:
    train = open_dataset(pictures(80, several=True), target="classes", multi=True)
    test = open_dataset(pictures(40, 80, several=True), target="classes", multi=True)
    (judge,) = open_judges([train], [test])
    found = judge(encoder, CPU)
    assert found.measure == "mAP"
    assert len(found.each) == 5  # four colours, and even
    assert found.value == pytest.approx(np.mean(found.each), abs=0.01)
    assert found.knn is None
    assert min(found.each) < 80 < max(found.each)  # the number of an image cannot be seen, its colour can


def test_a_search_sees_nothing_of_the_test(encoder: Encoder) -> None:
    (judge,) = open_judges([pictures(80)], [pictures(40, 80)])
    searched = judge.held_out()
    keys = [sample.key for part in (searched.train, searched.test) for sample in part]
    assert sorted(keys) == sorted(sample.key for sample in judge.train)
    assert (len(searched.train), len(searched.test)) == (64, 16)
    assert len(searched(encoder, CPU).each) == 16


def captioned(count: int) -> list:
    """Image i: the noun of its colour, and of every ninth a second one."""
    names = list(COLOURS)
    return [
        (jpeg(COLOURS[names[i % 4]], seed=i), f"one {names[i % 4]}" + (" beside a horse" if i % 9 == 0 else ""))
        for i in range(count)
    ]


def test_nouns_of_captions(encoder: Encoder) -> None:
    train, test = open_dataset(captioned(60)), open_dataset(captioned(24))
    vocabulary = Vocabulary.count(train, min_count=1)
    (judge,) = open_judges([], [], [train, test], vocabulary)
    labeler = vocabulary.labeler()
    said = [set(labels) for labels in labeler([captions[0] for captions in train.captions()])]
    often = {synset for synset in vocabulary.synsets if LEAST <= sum(synset in own for own in said) < len(train)}
    assert set(judge.train.classes) == often
    horse = vocabulary.synsets[vocabulary.names.index("horse")]
    assert horse in said[0] - often  # seven images are too few
    for dataset, count in ((judge.train, 60), (judge.test, 24)):
        assert dataset.multi
        assert len(dataset) == count
        for i in range(count):
            own = [dataset.classes[c] for c in dataset.labels[dataset.offsets[i] : dataset.offsets[i + 1]]]
            assert set(own) == said[i] & often
            assert dataset[i].target == tuple(sorted(dataset.classes.index(name) for name in own))
    assert judge(encoder, CPU).value > 60
    with pytest.raises(UsageError, match="no noun"):
        open_judges([], [], [open_dataset(captioned(8)), test], vocabulary)


def test_names_are_short() -> None:
    from catlip.recipes.judges import _short

    assert _short("/data/cifar10/test-000000.tar") == "cifar10/test"
    assert _short("data/flickr8k/test-{000000..000003}.tar") == "flickr8k/test"
    assert _short("coco128/annotations/instances_val2017.json") == "coco128/instances_val"
    assert _short("photos/test") == "photos/test"
    assert _short("labels.csv") == "labels"
