"""Lists, torch map-style datasets and Hugging Face's: what they give, how they are known, and that they train."""

import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from catlip.data.batches import CaptionBatches, ClassBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset, Sample
from catlip.data.loader import Loader
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.pack import pack
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary
from catlip.tasks.finetune import finetune
from catlip.tasks.pretrain import pretrain
from catlip.training import checkpoint
from catlip.training.state import LoopConfig
from tests.conftest import COLOURS, jpeg, write_tar

NOUNS = list(COLOURS)
COUNT = 24


def encoded(i: int) -> bytes:
    return jpeg(COLOURS[NOUNS[i % 4]], seed=i)


def captions(i: int) -> list[str]:
    return [f"one {NOUNS[i % 4]}", f"the {NOUNS[i % 4]}, again"]


class Torch(torch.utils.data.Dataset):
    """Map-style, with images as torchvision gives them."""

    def __init__(self, second: Callable[[int], Any]) -> None:
        self.second = second

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Image.Image, Any]:
        return Image.open(io.BytesIO(encoded(i))).convert("RGB"), self.second(i)


class Own(Dataset):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"own {index}", encoded(index), captions(index), index % 4)


def hugging_face(**more: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    columns = {"image": [{"bytes": encoded(i), "path": None} for i in range(COUNT)], **more}
    data = datasets.Dataset.from_dict(columns)
    return data.cast_column("image", datasets.Image()) if more.pop("decode", True) else data


def with_captions(form: str, folder: Path) -> Any:
    if form == "torch":
        return Torch(captions)
    if form == "own":
        return Own()
    if form == "hugging face":
        return hugging_face(text=[captions(i) for i in range(COUNT)], licence=["cc"] * COUNT)
    if form == "dicts":
        return [{"image": encoded(i), "caption": captions(i), "licence": "cc"} for i in range(COUNT)]
    images: dict[str, Callable[[int], Any]] = {
        "bytes": encoded,
        "paths": lambda i: str(folder / f"{i}.jpg"),
        "pil": lambda i: Image.open(folder / f"{i}.jpg"),
        "arrays": lambda i: np.asarray(Image.open(io.BytesIO(encoded(i)))),
    }
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(encoded(i))
    return [(images[form](i), captions(i)) for i in range(COUNT)]


FORMS = ["bytes", "paths", "pil", "arrays", "dicts", "torch", "own", "hugging face"]


def loader(dataset: Dataset, workers: int) -> Loader:
    steps = Steps(CurriculumConfig(), budget=2 * COUNT, batch_size=8, image_size=32, seed=1)
    order = Order(dataset.parts, 1, dataset.shards.tolist())
    crop = CropConfig(scale=(0.5, 1.0))
    if dataset.has_classes:
        return Loader(ClassBatches(dataset, order, steps, crop=crop), workers)
    vocabulary = Vocabulary(synsets=[], names=[], counts=[], samples=1)
    return Loader(CaptionBatches(dataset, order, steps, vocabulary=vocabulary, labeler=Labeler(), crop=crop), workers)


@pytest.mark.parametrize("form", FORMS)
def test_two_epochs_are_those_of_a_tar_and_resume_at_any_step(form: str, tmp_path: Path) -> None:
    members = {f"{i:03d}.{end}": data for i in range(COUNT)
               for end, data in (("jpg", encoded(i)), ("txt", "\n".join(captions(i)).encode()))}  # fmt: skip
    packed = open_dataset(str(write_tar(tmp_path / "a.tar", members)))
    dataset = open_dataset(with_captions(form, tmp_path), fingerprint="v1" if form in ("torch", "own") else None)
    assert len(dataset) == COUNT
    assert list(dataset.captions()) == list(packed.captions())
    assert dataset[5].captions == captions(5)
    whole = [(batch.captions, batch.image) for batch in loader(dataset, 1).batches_from(0)]
    assert len(whole) == 2 * COUNT / 8
    again = [(batch.captions, batch.image) for batch in loader(dataset, 1).batches_from(3)]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(again, whole[3:], strict=True))
    # Whoever decodes, the pixels are the same to a few grey levels: JPEGs are decoded at a smaller scale here.
    for found, batch in zip(whole, loader(packed, 0).batches_from(0), strict=True):
        assert found[0] == batch.captions
        assert (found[1].float() - batch.image.float()).abs().mean() < 4


@pytest.mark.parametrize("form", FORMS)
def test_a_fingerprint_changes_with_the_data_or_is_asked_for(form: str, tmp_path: Path) -> None:
    data = with_captions(form, tmp_path)
    stated = open_dataset(data, fingerprint="v1").fingerprint()
    assert stated == ["v1", COUNT] != open_dataset(data, fingerprint="v2").fingerprint()
    if form in ("torch", "own"):
        with pytest.raises(UsageError, match=r"`fingerprint` of .* is not known"):
            open_dataset(data).fingerprint()
        return
    known = open_dataset(data).fingerprint()
    assert known == open_dataset(with_captions(form, tmp_path)).fingerprint()
    other = data.select(range(1, COUNT)) if form == "hugging face" else data[1:] + data[:1]
    assert known != open_dataset(other).fingerprint()


def test_what_is_too_much_to_hash_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catlip.data.adapters.MAX_HASHED", 1000)
    with pytest.raises(UsageError, match=r"open_dataset\(data, fingerprint="):
        open_dataset([(encoded(i), "a dog") for i in range(3)]).fingerprint()


@pytest.mark.parametrize("form", ["names", "numbers", "torch", "targets", "own", "hugging face", "strings"])
def test_classes(form: str, tmp_path: Path) -> None:
    names = ["zebra", "ant", "10", "9"]
    ordered = names if form in ("targets", "own", "hugging face") else ["ant", "zebra", "9", "10"]
    if form == "names":
        data: Any = [(encoded(i), names[i % 4]) for i in range(COUNT)]
    elif form == "numbers":
        data, ordered = [(encoded(i), i % 4) for i in range(COUNT)], list("0123")
    elif form == "torch":
        data, ordered = Torch(lambda i: torch.tensor(i % 4)), list("0123")
    elif form == "targets":
        data = Torch(lambda i: pytest.fail("read") if False else i % 4)
        data.classes, data.targets = names, [i % 4 for i in range(COUNT)]
    elif form == "own":
        data = Own()
        data.classes = names
    elif form == "strings":
        data = hugging_face(category=[names[i % 4] for i in range(COUNT)])
    else:
        datasets = pytest.importorskip("datasets")
        data = hugging_face(label=[i % 4 for i in range(COUNT)]).cast_column("label", datasets.ClassLabel(names=names))
    found = open_dataset(data, target="classes")
    assert (found.classes, found.multi) == (ordered, False)
    wanted = [names[i % 4] if ordered != list("0123") else str(i % 4) for i in range(COUNT)]
    assert [found.classes[found[i].target[0]] for i in range(COUNT)] == wanted
    assert found.counts().tolist() == [COUNT // 4] * 4
    labels = [batch.labels.tolist() for batch in loader(found, 1).batches_from(0)]
    assert labels[3:] == [batch.labels.tolist() for batch in loader(found, 0).batches_from(3)]
    if form not in ("names", "own", "strings"):  # nothing in these could be a caption
        assert open_dataset(data).classes == ordered
    pack(found, tmp_path / "shards")
    assert open_dataset(str(tmp_path / "shards"), target="classes").labels.size == COUNT


def test_a_stated_fingerprint_keeps_the_classes() -> None:
    data = open_dataset([(encoded(i), i % 4) for i in range(8)])
    stated = open_dataset(data, fingerprint="v1")
    assert stated.fingerprint() == ["v1", 8]
    assert (stated.classes, stated.labels.tolist()) == (data.classes, data.labels.tolist())
    assert [sample.target for sample in stated] == [sample.target for sample in data]
    assert open_dataset(stated, target="classes") is stated


def test_several_classes_an_image() -> None:
    data = [(encoded(0), ["cat", "dog"]), (encoded(1), []), (encoded(2), ["dog"])]
    found = open_dataset(data, target="classes")
    assert (found.multi, found.labels.tolist(), found.offsets.tolist()) == (True, [0, 1, 1], [0, 2, 2, 3])
    for given in (data, found):  # opened before or not
        with pytest.raises(UsageError, match="0 has 2 labels, where each picture should have one"):
            open_dataset(given, target="classes", multi=False)
    single = open_dataset([(encoded(0), "cat"), (encoded(1), "dog")], target="classes")
    assert open_dataset(single, target="classes", multi=True).multi
    assert not single.multi


@pytest.mark.parametrize("form", FORMS)
def test_all_of_them_pack(form: str, tmp_path: Path) -> None:
    found = open_dataset(str(pack(with_captions(form, tmp_path), tmp_path / "shards", per_shard=10)))
    assert found.shards.tolist() == [10, 10, 4]
    assert [sample.captions for sample in found] == [captions(i) for i in range(COUNT)]
    if form in ("bytes", "paths", "dicts", "own", "hugging face"):
        assert found[7].image == encoded(7), "a small JPEG passes as it is"
    if form in ("dicts", "hugging face"):
        assert found[7].metadata["licence"] == "cc"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the list is empty"),
        ([(b"1", "a dog", 3)], r"an item is \(image, caption\).*found a tuple"),
        (iter([]), "what has no length and no .index. cannot be resumed exactly"),
        ({"train": [], "test": []}, r"has the parts train, test: choose one, data\['train'\]"),
        ([{"picture": b"1", "text": "a dog"}, 3], None),
        ([{"where": b"1", "text": "a dog"}], r"which column holds the image\? Columns found: where, text"),
    ],
)
def test_what_is_no_dataset_is_told(data: Any, says: str | None) -> None:
    if says is None:
        with pytest.raises(UsageError, match="found a int"):
            open_dataset(data)[1]
        return
    with pytest.raises(UsageError, match=says):
        open_dataset(data)


def test_images_of_other_kinds(tmp_path: Path) -> None:
    grey, pixels = np.zeros((8, 9), np.uint8), torch.zeros(3, 8, 9, dtype=torch.uint8)
    data = open_dataset([(grey, "a"), (pixels, "b"), (str(tmp_path / "none.jpg"), "c"), (None, "d"), (pixels / 1, "e")])
    assert data[0].image.shape == (8, 9)
    assert data[1].image.shape == (8, 9, 3)
    assert "no such file" in data[2].image.why
    assert data[3].image == b""
    with pytest.raises(UsageError, match=r"an image is a Tensor of float32 \[3, 8, 9\].*leave out a transform"):
        data[4]
    with pytest.raises(UsageError, match="files have one of their own"):
        open_dataset("x.csv", fingerprint="v1")


def trained(train: Callable[[Path], Any], folder: Path) -> None:
    """A run that is killed at a checkpoint and goes on ends with the very weights of one that nobody touched."""
    save = checkpoint.save

    def save_and_die(place: Path, state: dict) -> None:
        save(place, state)
        if state["samples"] >= COUNT:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        torch.set_num_threads(1)
        with mock.patch.object(checkpoint, "save", save_and_die):
            train(folder / "killed")

    torch.set_num_threads(1)
    train(folder / "whole")
    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    train(folder / "killed")
    whole, again = (
        torch.load(folder / name / "resume" / "state.pt", weights_only=True)["average"] for name in ("whole", "killed")
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), again.values(), strict=True))


SETTINGS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "workers": 1, "device": "cpu", "image_size": 32,
    "crop": CropConfig(scale=(0.5, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_of_them_pretrain_and_resume_bit_for_bit(form: str, flow: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    fingerprint = "v1" if form in ("torch", "own") else None

    def train(out: Path) -> None:
        data = open_dataset(with_captions(form, tmp_path / "images"), fingerprint=fingerprint)
        loop = LoopConfig(ema=0.9, precision="fp32", save_every=8)
        pretrain(data, str(flow[1]), backbone="test_resnet", out=str(out), loop=loop, **SETTINGS)

    trained(train, tmp_path)


@pytest.mark.parametrize("form", ["list", "torch", "hugging face"])
def test_labelled_ones_fine_tune_and_resume_bit_for_bit(form: str, flow: tuple[str, Path], tmp_path: Path) -> None:
    start = pretrain(flow[0], str(flow[1]), backbone="test_resnet", out=str(tmp_path / "start"), **SETTINGS).out

    def data() -> Any:
        if form == "list":
            return [(encoded(i), NOUNS[i % 4]) for i in range(COUNT)]
        if form == "torch":
            return open_dataset(Torch(lambda i: i % 4), target="classes", fingerprint="v1")
        datasets = pytest.importorskip("datasets")
        labels = datasets.ClassLabel(names=NOUNS)
        return hugging_face(label=[i % 4 for i in range(COUNT)]).cast_column("label", labels)

    def train(out: Path) -> None:
        loop = LoopConfig(ema=0.9, precision="fp32", save_every=8)
        run = finetune(str(start), data(), data(), out=str(out), loop=loop, **{**SETTINGS, "watch_limit": 0})
        assert run.encoder.width

    trained(train, tmp_path)


def test_what_has_no_fingerprint_is_not_trained_on(flow: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`fingerprint` of .*Torch is not known, and a run needs it to resume"):
        pretrain(Torch(captions), str(flow[1]), backbone="test_resnet", out=str(tmp_path / "run"), **SETTINGS)
    assert not (tmp_path / "run").exists()
