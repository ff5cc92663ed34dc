"""catlip from Python: people's own objects train, resume and are measured (test_docs.py runs docs/python.md)."""

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import catlip
from catlip import cli
from catlip.errors import UsageError
from catlip.labels.vocabulary import Vocabulary
from catlip.recipes.compare import CompareConfig, compare
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig
from tests.conftest import COLOURS, cut_short, jpeg

SMALL: dict[str, Any] = {
    "backbone": "test_resnet", "image_size": 32, "samples": 96, "batch_size": 24, "workers": 1, "device": "cpu",
    "loop": LoopConfig(ema=0.9, precision="fp32", save_every=24),
}  # fmt: skip
NOUNS = list(COLOURS)


def pairs(count: int = 48) -> list[tuple[Any, str]]:
    """(image, caption), in every form that an image may have."""
    made = []
    for i in range(count):
        noun = NOUNS[i % 4]
        data = jpeg(COLOURS[noun], seed=i)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        made.append(([data, image, np.asarray(image)][i % 3], f"one {noun} and nothing else"))
    return made


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return catlip.Vocabulary.count(catlip.open(pairs(), fingerprint="pairs"), min_count=2)


def weights(run: catlip.Run) -> dict[str, torch.Tensor]:
    return run.encoder.state_dict()


class Torch(torch.utils.data.Dataset):
    """A torch map-style dataset of (image, caption)."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Any, str]:
        return pairs()[index]


class Mine(catlip.Dataset):
    """The protocol itself."""

    name = "mine"

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> catlip.Sample:
        image, caption = pairs()[index]
        return catlip.Sample(str(index), image, [caption])

    def fingerprint(self) -> list[Any]:
        return ["mine"]


@pytest.mark.parametrize("kind", ["list", "torch", "mine"])
def test_datasets_of_ones_own_train_and_resume(kind: str, vocab: Vocabulary, tmp_path: Path, monkeypatch) -> None:

    data = {
        "list": lambda: catlip.open(pairs(), fingerprint="pairs"),
        "torch": lambda: catlip.open(Torch(), fingerprint="pairs"),
        "mine": Mine,
    }[kind]
    whole = catlip.pretrain(data(), vocab, out=tmp_path / "whole", **SMALL)
    with cut_short():
        catlip.pretrain(data(), vocab, out=tmp_path / "cut", **SMALL)
    again = catlip.pretrain(data(), vocab, out=tmp_path / "cut", **SMALL)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    assert (again.samples, again.stopped) == (96, "")
    assert "96 samples" in again._repr_html_()


class Squared(torch.nn.Module):
    """An own objective, which needs neither labels nor tokens: features shall be small."""

    needs: frozenset[str] = frozenset()

    def __init__(self, encoder: Any, context: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = self.encoder.pooled(batch.image).square().mean()
        return loss, {"loss": loss.detach()}


class Other(Squared):
    """The same by another name."""


def test_an_objective_of_ones_own_learns_without_a_vocabulary(tmp_path: Path) -> None:
    settings = {**SMALL, "samples": 480, "optim": OptimConfig(lr=3e-2)}
    run = catlip.pretrain(Mine(), objective=Squared, out=tmp_path / "run", **settings)
    assert run.log[-1]["loss"] < 0.1  # of .4 at the start
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    assert card["config"]["objective"].endswith("test_python.Squared")
    with pytest.raises(UsageError, match="another run"):
        catlip.pretrain(Mine(), objective=Other, out=tmp_path / "run", **settings)


def test_it_works_outside_the_main_thread(vocab: Vocabulary, tmp_path: Path) -> None:
    found: list[catlip.Run] = []
    thread = threading.Thread(
        target=lambda: found.append(catlip.pretrain(Mine(), vocab, out=tmp_path / "run", **SMALL))
    )
    thread.start()
    thread.join(120)
    assert found[0].samples == 96


def test_fields_are_named_in_errors(vocab: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no setting `image_sise`, did you mean 'image_size'\?"):
        catlip.pretrain(Mine(), vocab, out=tmp_path / "run", image_sise=32)
    with pytest.raises(UsageError, match="`out` is missing"):
        catlip.pretrain(Mine(), vocab)
    with pytest.raises(UsageError, match="`vocab` is missing"):
        catlip.pretrain(Mine(), out=tmp_path / "run")
    with pytest.raises(UsageError, match="`fingerprint`"):
        catlip.pretrain(Torch(), vocab, out=tmp_path / "run", **SMALL)


RECIPE = """
import torch
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.optim import OptimConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

class Mine(torch.nn.Module):
    def __init__(self, encoder, context):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch):
        loss = self.encoder.pooled(batch.image).square().mean()
        return loss, {"loss": loss.detach()}

def tiny():
    return PretrainConfig(
        data="", out="", backbone="test_resnet", image_size=32, samples=48, batch_size=24, workers=1, device="cpu",
        objective=Mine, loop=LoopConfig(ema=0.9, precision="fp32"),
    )
"""


def test_an_objective_of_ones_own_from_the_command_line_and_compared(
    flow, coloured_shards, tmp_path: Path, monkeypatch
):
    from catlip.recipes import compare as comparing

    (tmp_path / "mine.py").write_text(RECIPE)
    mine = f"{tmp_path / 'mine.py'}:tiny"
    run = cli.run(["pretrain", mine, "--data", flow[0], "--out", str(tmp_path / "run")])
    assert run.encoder.architecture == "test_resnet"
    monkeypatch.setattr(comparing, "SECONDS", 0.2)
    sets = [coloured_shards(40, 1, name, cls=True) for name in ("train", "test")]
    page = compare(
        CompareConfig(
            out=str(tmp_path / "compared"), objectives=("synsets", mine), data=flow[0], vocab=str(flow[1]),
            train=sets[0], test=sets[1], recipe=mine, seeds=1, device="cpu",
        )
    )  # fmt: skip
    found = {one["objective"] for one in json.loads(page.with_name("compare.json").read_text())["summaries"]}
    assert {name.split("-")[0] for name in found} == {"start", "synsets", "tiny"}


def test_an_encoder_in_memory_is_a_start(vocab: Vocabulary, tmp_path: Path) -> None:
    run = catlip.pretrain(Mine(), vocab, out=tmp_path / "run", **SMALL)
    labelled = [(image, caption.split()[1]) for image, caption in pairs()]
    rest = {name: SMALL[name] for name in ("samples", "batch_size", "workers", "device", "loop")}
    tuned = catlip.finetune(
        run.encoder, catlip.open(labelled, target="classes", fingerprint="l"),
        catlip.open(labelled, target="classes", fingerprint="l"),
        init="transfer", out=tmp_path / "tuned", **{**rest, "samples": 480},
    )  # fmt: skip
    assert tuned.result.top1 > 50
    assert tuned.results[-1]["top1"] == tuned.result.top1
    aligned = catlip.align(run, Mine(), out=tmp_path / "text", steps=4, batch_size=8, workers=1, device="cpu")
    found = catlip.retrieve(aligned, Mine(), device="cpu")
    assert "R@1" in str(found) or found.to_json()


def test_text_alignment_resumes_with_the_same_bits(vocab: Vocabulary, tmp_path: Path, monkeypatch) -> None:

    run = catlip.pretrain(Mine(), vocab, out=tmp_path / "run", **SMALL)
    settings: dict[str, Any] = {
        "steps": 6, "batch_size": 16, "workers": 1, "device": "cpu",
        "loop": LoopConfig(ema=0.0, precision="fp32", save_every=32),
    }  # fmt: skip
    catlip.align(run, Mine(), out=tmp_path / "whole", **settings)
    with cut_short():
        catlip.align(run, Mine(), out=tmp_path / "cut", **settings)
    catlip.align(run, Mine(), out=tmp_path / "cut", **settings)
    files = [(tmp_path / name / "text" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
