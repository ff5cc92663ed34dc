"""Labelled pictures from tars, class folders, tables and COCO files: which classes, one or several, and what is said
of sets that are none."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.data.batches import ClassBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.images import Unreadable
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.data.subsets import WithClasses, fraction_of_each_class, with_classes
from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, rows_of
from catlip.evaluation.features import class_indices, decoded, open_labelled
from catlip.models.encoder import Encoder
from tests.conftest import SHARED, jpeg, write_tar


def named(source: Dataset) -> dict[str, list[str]]:
    """{key without folders: class names}."""
    records = [source[number] for number in range(len(source))]
    return {r.key.rpartition("/")[2]: [source.classes[c] for c in r.target] for r in records}


def write_folders(folder: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{name}{i}.jpg").write_bytes(jpeg(seed=i))
    return folder


def write_table(folder: Path, rows: dict[str, str], header: str = "image,labels") -> str:
    for name in rows:
        (folder / name).write_bytes(jpeg())
    (folder / "list.csv").write_text("\n".join([header, *(f"{name},{cell}" for name, cell in rows.items())]) + "\n")
    return str(folder / "list.csv")


def test_tars_have_one_class_a_picture_sorted_by_value(tmp_path: Path) -> None:
    members = {f"{i}.{end}": data for i, label in enumerate(["10", "9", "2", "9"])
               for end, data in (("jpg", jpeg()), ("cls", label.encode() + b"\n"))}  # fmt: skip
    source = open_dataset(str(write_tar(tmp_path / "a.tar", members)), target="classes")
    assert (source.classes, source.multi) == (["2", "9", "10"], False)
    assert named(source) == {"0": ["10"], "1": ["9"], "2": ["2"], "3": ["9"]}
    assert source[0].image == members["0.jpg"]
    assert source.counts().tolist() == [1, 2, 1]
    assert open_dataset(str(tmp_path), target="classes").classes == source.classes  # the folder of the shards


def test_folders_are_classes_at_any_depth_and_through_links(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "set", dog=2, ant=1)
    (folder / "dog" / "more").mkdir()
    (folder / "dog" / "more" / "x.png").write_bytes(jpeg())
    (folder / "zebra").symlink_to(write_folders(tmp_path / "elsewhere", z=1) / "z")
    (folder / "nothing").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "x.jpg").write_bytes(jpeg())
    (folder / "ant" / "._ant0.jpg").write_bytes(b"of macOS")
    source = open_dataset(str(folder), target="classes")
    assert (source.classes, source.multi) == (["ant", "dog", "zebra"], False)
    assert named(source) == {"ant0.jpg": ["ant"], "dog0.jpg": ["dog"], "dog1.jpg": ["dog"], "x.png": ["dog"],
                             "z0.jpg": ["zebra"]}  # fmt: skip
    assert all(source[n].image for n in range(len(source)))
    assert source.troubles == {"nothing": "no pictures in this folder"}


def test_a_table_is_multi_label_where_a_picture_has_two(tmp_path: Path) -> None:
    source = open_dataset(
        write_table(tmp_path, {"a.jpg": "dog; cat ;dog", "b.jpg": "", "c.jpg": "hot dog"}), target="classes"
    )
    assert (source.classes, source.multi) == (["cat", "dog", "hot dog"], True)
    assert named(source) == {"a.jpg": ["cat", "dog"], "b.jpg": [], "c.jpg": ["hot dog"]}
    single = open_dataset(write_table(tmp_path, {"a.jpg": "dog", "b.jpg": "cat"}, "file,target"), target="classes")
    assert (single.classes, single.multi) == (["cat", "dog"], False)
    assert open_dataset(str(tmp_path / "list.csv"), multi=True, target="classes").multi


def test_rows_of_the_same_picture_add_up(tmp_path: Path) -> None:
    write_table(tmp_path, {"a.jpg": "", "b.jpg": ""})
    (tmp_path / "list.tsv").write_text("label\tpath\ndog\ta.jpg\ncat\tb.jpg\nant\ta.jpg\n")
    source = open_dataset(str(tmp_path / "list.tsv"), target="classes")
    assert source.multi
    assert named(source) == {"a.jpg": ["ant", "dog"], "b.jpg": ["cat"]}


def write_coco(folder: Path) -> dict:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (folder / name).write_bytes(jpeg())
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in (1, 2, 3)],
        "categories": [{"id": 7, "name": "tie"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "unseen"}],
        "annotations": [{"image_id": 2, "category_id": c, "bbox": [0, 0, 3, 3], "iscrowd": c % 3} for c in (7, 3, 7)]
        + [{"image_id": 3, "category_id": 3}],
    }  # fmt: skip


def test_coco_pictures_have_the_categories_that_occur_in_them(tmp_path: Path) -> None:
    content = write_coco(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = open_dataset(str(tmp_path / "instances.json"), target="classes")
    assert (source.classes, source.multi) == (["cat", "unseen", "tie"], True)  # by id, unseen ones too
    assert named(source) == {"1.jpg": [], "2.jpg": ["cat", "tie"], "3.jpg": ["cat"]}
    assert source.counts().tolist() == [2, 0, 1]


@pytest.mark.skipif(not (SHARED / "coco128").is_dir(), reason="no shared data")
def test_coco128() -> None:
    source = open_dataset(str(SHARED / "coco128" / "annotations" / "detection_train2017.json"), target="classes")
    assert (len(source), len(source.classes), source.multi) == (126, 80, True)
    content = json.loads((SHARED / "coco128" / "annotations" / "detection_train2017.json").read_text())
    pairs = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    assert source.counts().sum() == len(pairs)
    assert source[100].image[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"categories": [{"id": 1, "name": "x"}]},
            "i.json: 4 of 4 annotations have a category_id that the file does not list, e.g. 7",
        ),
        ({"categories": None}, "no COCO file"),
        ({"images": []}, "have a image_id that the file does not list"),
        ({"images": [], "annotations": []}, "names no pictures"),
        ({"categories": [{"id": 3, "name": "x"}, {"id": 7, "name": "x"}]}, "i.json: two categories are called 'x'"),
    ],
)
def test_bad_coco_files(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "i.json").write_text(json.dumps({**write_coco(tmp_path), **change}))
    with pytest.raises(UsageError, match=message):
        open_dataset(str(tmp_path / "i.json"), target="classes")


def test_what_is_no_labelled_set_says_what_was_found(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"a.jpg": "dog", "b.jpg": "cat"}, "image,colour")
    with pytest.raises(UsageError, match=r"holds the label\? Columns found: colour.*dog.*`label_col`"):
        open_dataset(table, target="classes")
    with pytest.raises(UsageError, match=r"no column 'animal' \(`label_col`\). Columns found: colour"):
        open_dataset(table, label_col="animal", target="classes")
    assert open_dataset(table, label_col="colour", target="classes").classes == ["cat", "dog"]
    missing = write_table(tmp_path, {"a.jpg": "dog", "b.jpg": ""})
    with pytest.raises(UsageError, match=r"1 of 2 samples have no label, e.g. b.jpg; .*`labels` multi"):
        open_dataset(missing, target="classes")
    several = write_table(tmp_path, {"a.jpg": "dog;cat", "b.jpg": "dog"})
    with pytest.raises(UsageError, match=r"a.jpg has 2 labels"):
        open_dataset(several, multi=False, target="classes")
    with pytest.raises(UsageError, match="have several labels"):
        open_labelled(several)
    with pytest.raises(UsageError, match=r"not one row has a picture"):
        open_dataset(write_table(tmp_path, {}), target="classes")
    tar = write_tar(tmp_path / "no.tar", {"a.jpg": jpeg(), "a.cls": b"1", "b.jpg": jpeg()})
    with pytest.raises(UsageError, match=r"1 of 2 samples have no .cls, e.g. b"):
        open_dataset(str(tar), target="classes")
    tar = write_tar(tmp_path / "long.tar", {"a.jpg": jpeg(), "a.cls": b"x" * 70_000})
    with pytest.raises(UsageError, match=r"a.cls has 70,000 bytes"):
        open_dataset(str(tar), target="classes")
    (tmp_path / "empty" / "dog").mkdir(parents=True)
    with pytest.raises(UsageError, match="no pictures in sub-folders"):
        open_dataset(str(tmp_path / "empty"), target="classes")
    (tmp_path / "x.jsonl").write_text("{}")
    with pytest.raises(UsageError, match=r"one COCO .json"):
        open_dataset(str(tmp_path / "x.jsonl"), target="classes")
    with pytest.raises(UsageError, match="no such file"):
        open_dataset(str(tmp_path / "gone.tar"), target="classes")


def test_a_test_set_is_numbered_as_the_training_set(tmp_path: Path) -> None:
    train = open_labelled(str(write_folders(tmp_path / "train", ant=1, bee=2, cow=1)))
    test = open_labelled(str(write_folders(tmp_path / "test", cow=1, bee=1)))
    classes, y_train, y_test = class_indices(train, test)
    assert (classes, y_train.tolist(), y_test.tolist()) == (["ant", "bee", "cow"], [0, 1, 1, 2], [1, 2])
    assert named(with_classes(test, classes)) == {"bee0.jpg": ["bee"], "cow0.jpg": ["cow"]}
    with pytest.raises(UsageError, match=r"1 of its classes are not in `train`, e.g. 'ant'"):
        class_indices(test, train)
    with pytest.raises(UsageError, match="single class, 'ant'"):
        class_indices(*[open_labelled(str(write_folders(tmp_path / "one", ant=2)))] * 2)


def test_labels_are_names_or_numbers_of_a_list() -> None:
    names = [ClassName("hot dog"), ClassName("cat", ("n02121620",)), ClassName("ant")]
    assert rows_of(["ANT", "hot_dog", "n02121620"], names, "n.txt", "x.tar") == [2, 0, 1]
    assert rows_of(["0", "2"], names, "n.txt", "x.tar") == [0, 2]
    with pytest.raises(UsageError, match=r"names 3 classes; x.tar has the label 3"):
        rows_of(["0", "3"], names, "n.txt", "x.tar")
    with pytest.raises(UsageError, match=r"1 labels of x.tar are not in it, e.g. 'cst', did you mean 'cat'"):
        rows_of(["ant", "cst"], names, "n.txt", "x.tar")


class Numbers(Dataset):
    """A source without pictures."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def fingerprint(self) -> list:
        return [self.n]


def made(labels: list[set[int]], classes: int, multi: bool) -> Dataset:
    flat = np.array([c for own in labels for c in sorted(own)], np.int64)
    offsets = np.cumsum([0, *map(len, labels)])
    return WithClasses(Numbers(len(labels)), [f"c{i}" for i in range(classes)], flat, offsets, multi=multi)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1.0), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_share_is_of_every_class_and_grows(labels: list[int], fraction: float, seed: int) -> None:
    source = made([{label} for label in labels], 5, multi=False)
    some = fraction_of_each_class(source, fraction, seed)
    wanted = [max(1, round(fraction * n)) if n else 0 for n in source.counts().tolist()]
    assert some.counts().tolist() == wanted
    assert all(labels[n] == c for n, c in zip(some.numbers.tolist(), some.labels.tolist(), strict=True))
    larger = fraction_of_each_class(source, min(1.0, 2 * fraction), seed)
    assert set(some.numbers.tolist()) <= set(larger.numbers.tolist())
    assert some.fingerprint() == fraction_of_each_class(source, fraction, seed).fingerprint()
    assert len(fraction_of_each_class(source, 1.0, seed)) == len(source)


@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=60), st.floats(0.01, 1.0), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_multi_label_share_has_every_class(labels: list[set[int]], fraction: float, seed: int) -> None:
    source = made(labels, 5, multi=True)
    some = fraction_of_each_class(source, fraction, seed)
    assert ((some.counts() > 0) == (source.counts() > 0)).all()
    least = max(1, round(fraction * len(labels)))
    assert least <= len(some) <= least + 5
    found = [set(some.labels[a:b].tolist()) for a, b in zip(some.offsets, some.offsets[1:], strict=False)]
    assert found == [labels[n] for n in some.numbers.tolist()]
    larger = fraction_of_each_class(source, min(1.0, 2 * fraction), seed)
    assert set(some.numbers.tolist()) <= set(larger.numbers.tolist())


def test_batches_carry_the_classes_through_workers(tmp_path: Path) -> None:
    cells = {f"{i}.jpg": ";".join(f"c{j}" for j in range(5) if (i >> j) & 1) for i in range(31)}
    source = open_dataset(write_table(tmp_path, cells), target="classes")
    steps = Steps(CurriculumConfig(), budget=31, batch_size=8, image_size=16, seed=3)
    batches = ClassBatches(source, Order([(31, 1.0)], 3), steps, crop=CropConfig())
    seen: dict[str, list[int]] = {}
    for here, there in zip(Loader(batches, 0).batches_from(0), Loader(batches, 1).batches_from(0), strict=True):
        assert (here.labels.tolist(), here.offsets.tolist()) == (there.labels.tolist(), there.offsets.tolist())
        assert (here.image == there.image).all()
        for part in here.split(3):
            for i, key in enumerate(part.keys):
                seen[key] = part.labels[part.offsets[i] : part.offsets[i + 1]].tolist()
    assert seen == {key: [int(name[1]) for name in cell.split(";") if name] for key, cell in cells.items()}


def test_decoding_leaves_out_a_few_unreadable_pictures_and_refuse_many(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "set", a=120, b=1)
    (folder / "a" / "a7.jpg").write_bytes(b"nothing")
    source = open_labelled(str(folder))

    def seen() -> list[int]:
        unreadable = Unreadable()
        view = Encoder.create("test_resnet", image_size=32).pixels
        return [n for some, _, _ in decoded(source, range(len(source)), view, unreadable, batch_size=50) for n in some]

    numbers = seen()
    assert len(numbers) == 120
    assert set(range(121)) - set(numbers) == {[source[n].key for n in range(121)].index("a/a7.jpg")}
    (folder / "a" / "a8.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="2 of 121 pictures cannot be read"):
        seen()
