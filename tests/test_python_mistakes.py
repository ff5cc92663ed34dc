"""Mistakes from Python: one line that names the field; and what a careless user may well do."""

import copy
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import catlip
from catlip.data.batches import ClassBatches
from catlip.data.crops import CropConfig
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig
from tests.test_python import Mine, Squared, pairs

TINY: dict[str, Any] = {"batch_size": 8, "samples": 16, "device": "cpu", "workers": 1}
TINY["loop"] = LoopConfig(precision="fp32")
PRE: dict[str, Any] = {**TINY, "backbone": "test_resnet", "image_size": 32}


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return catlip.Vocabulary.count(pairs(), min_count=2)


@pytest.fixture(scope="module")
def run(vocab: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> catlip.Run:
    return catlip.pretrain(Mine(), vocab, out=tmp_path_factory.mktemp("runs") / "run", **PRE)


def labelled() -> list[tuple[Any, str]]:
    return [(image, caption.split()[1]) for image, caption in pairs(24)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", "16"), ("batch_size", 2.5), ("seed", -1), ("seed", 1 << 70), ("seed", 1.5), ("workers", -1),
        ("workers", "1"), ("image_size", (32, 32)), ("backbone", 3), ("loop", {"ema": 0.9}), ("optim", 3),
        ("precision", LoopConfig(precision="fp17")), ("lr", OptimConfig(lr=float("nan"))), ("track", "wandb"),  # type: ignore[arg-type]
        ("schedule", OptimConfig(schedule="zz")), ("evaluate", 3), ("evaluate", [3]), ("augment", 3),  # type: ignore[arg-type]
        ("augment", lambda images: images), ("objective", 3), ("objective", "synsets"), ("crop", {}), ("out", 3),
        ("config", {"samples": 3}), ("config", LoopConfig()),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name_before_anything_is_written(
    field: str, value: Any, vocab: Vocabulary, tmp_path: Path
) -> None:
    name = {"precision": "loop", "lr": "optim", "schedule": "optim"}.get(field, field)
    settings = {"data": Mine(), "vocab": vocab, "out": tmp_path / "run", **PRE, name: value}
    with pytest.raises(UsageError, match=rf"^[^\n]*`{field}`[^\n]*$"):
        catlip.pretrain(**settings)
    assert not (tmp_path / "run").exists()


def returning(what: Any) -> type[torch.nn.Module]:
    class Returns(Squared):
        def forward(self, batch: Any) -> Any:
            return what(self.encoder.pooled(batch.image).mean())

    return Returns


class NoForward(torch.nn.Module):
    def __init__(self, encoder: Any, context: Any) -> None:
        super().__init__()


@pytest.mark.parametrize(
    "objective",
    [
        NoForward, lambda encoder, context: None, Squared(None, None), returning(lambda loss: None),
        returning(lambda loss: loss), returning(lambda loss: (0.5, {"loss": 0.5})), returning(lambda loss: (loss, {})),
        returning(lambda loss: (loss, None)), returning(lambda loss: (loss, {"loss": loss.item()})),
        returning(lambda loss: (loss.expand(3), {"loss": loss})),
        returning(lambda loss: (loss.detach(), {"loss": loss})),
    ],
)  # fmt: skip
def test_an_objective_that_is_none_is_told_so(objective: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^`objective`[^\n]*$"):
        catlip.pretrain(Mine(), objective=objective, out=tmp_path / "run", **PRE)


@pytest.mark.parametrize("wrong", [lambda x: x[:2], lambda x: x[:, :1], lambda x: None, lambda x: (255 * x).byte()])
def test_an_augmentation_keeps_the_shape(wrong: Any, vocab: Vocabulary, tmp_path: Path) -> None:
    class Augment(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return wrong(images)

    with pytest.raises(UsageError, match=r"^`augment` returns [^\n]*$"):
        catlip.pretrain(Mine(), vocab, augment=Augment(), out=tmp_path / "run", **PRE)


@pytest.mark.parametrize("value", [None, 3.0, {"a": "x"}, {"a": torch.ones(3)}])
def test_an_evaluator_returns_numbers_by_name(value: Any, vocab: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^`evaluate` [^\n]*$"):
        catlip.pretrain(Mine(), vocab, evaluate=[lambda encoder: value], out=tmp_path / "run", **PRE)


@pytest.mark.parametrize(
    ("sample", "word"),
    [
        (None, "NoneType"), (pairs(1)[0], "tuple"), (catlip.Sample("1", b"", "a dog"), "captions"),  # type: ignore[arg-type]
        (catlip.Sample("1", b"", None), "captions"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_dataset_gives_samples(sample: Any, word: str, vocab: Vocabulary, tmp_path: Path) -> None:
    class Wrong(Mine):
        def __getitem__(self, index: int) -> Any:
            return sample

    with pytest.raises(UsageError, match=rf"^`data` mine gives [^\n]*{word}"):
        catlip.pretrain(Wrong(), vocab, out=tmp_path / "run", **PRE)


def test_a_fingerprint_is_fit_for_json(vocab: Vocabulary, tmp_path: Path) -> None:
    class Wrong(Mine):
        def fingerprint(self) -> Any:
            return [{1, 2}]

    with pytest.raises(UsageError, match="`fingerprint` of mine"):
        catlip.pretrain(Wrong(), vocab, out=tmp_path / "run", **PRE)
    assert not (tmp_path / "run").exists()


def test_the_first_caption_may_be_missing() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert list(catlip.open([(image, None), (image, "a dog")]).captions()) == [[], ["a dog"]]
    with pytest.raises(UsageError, match=r"whole number, not 0\.5"):
        catlip.open([(image, 0.5), (image, 1.0)], target="classes")


def test_pixels_of_any_shape_are_read_or_named() -> None:
    from catlip.data.images import UnreadableImageError, read_image

    assert read_image(np.zeros((8, 9, 1), np.uint8)).size == (9, 8)
    with pytest.raises(UnreadableImageError, match="without pixels"):
        read_image(np.zeros((0, 0, 3), np.uint8))


def test_the_same_call_returns_an_equal_run(
    run: catlip.Run, vocab: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catlip.pretrain(Mine(), vocab, out=str(run.out), **PRE) == run
    monkeypatch.chdir(tmp_path)
    relative = catlip.pretrain(Mine(), vocab, out="run", **PRE)
    monkeypatch.chdir("/")
    assert relative.encoder.architecture == "test_resnet"  # from another folder than it was made in


def test_curves_of_what_is_in_memory(run: catlip.Run, tmp_path: Path) -> None:
    data = labelled()
    catlip.probe(run, data, data, fractions=[0.5, 1], seeds=1, device="cpu")
    for encoder, fractions in ((run.encoder, "1"), (run, [1.0])):
        found = catlip.finetune(encoder, data, data, out=tmp_path / "curve", fractions=fractions, seeds=2, **TINY)
        assert len(found.curve) == 1
    with pytest.raises(UsageError, match="`labels` is one of 'auto', 'single', 'multi'"):
        catlip.finetune(run, data, data, labels="many", out=tmp_path / "x", **TINY)


class MyTask(catlip.Task):
    def batches(self, dataset: Any, order: Any, steps: Any, rank: int, world: int) -> Any:
        return ClassBatches(dataset, order, steps, crop=CropConfig(), rank=rank, world=world)


class MyObjective(torch.nn.Module):
    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, torch.nn.Linear(encoder.width, classes)

    def forward(self, batch: Any) -> Any:
        loss = torch.nn.functional.cross_entropy(self.head(self.encoder.pooled(batch.image)), batch.labels)
        return loss, {"loss": loss.detach()}


def test_a_task_of_ones_own(run: catlip.Run, tmp_path: Path) -> None:
    data = catlip.open(labelled(), target="classes")
    task = MyTask(MyObjective(run.encoder, len(data.classes)))
    trained = catlip.train(task, data, catlip.TrainConfig(**TINY), tmp_path / "mine")
    assert trained.encoder.architecture == "test_resnet"
    assert [field.name for field in dataclasses.fields(trained)][:2] == ["out", "samples"]


def test_a_task_of_ones_own_obeys_the_trainers_settings(run: catlip.Run, tmp_path: Path) -> None:
    """`checkpointing` is the trainer's; and copies of a task, as the average is one, share its settings and data."""
    data = catlip.open(labelled(), target="classes")
    task = MyTask(MyObjective(run.encoder, len(data.classes)))
    task.data = data
    copied = copy.deepcopy(task)
    assert copied.data is data
    assert copied.encoder is copied.objective.encoder
    assert copied.encoder is not task.encoder
    assert copied.state_dict().keys() == task.state_dict().keys()
    loop = dataclasses.replace(TINY["loop"], checkpointing=True)
    with mock.patch.object(type(task.encoder.backbone), "set_grad_checkpointing") as asked:
        catlip.train(task, data, catlip.TrainConfig(**{**TINY, "loop": loop}), tmp_path / "mine")
    asked.assert_called_once_with(True)
