"""Adaptation protects what an encoder knows, chooses on images it has not seen, and can be stopped anywhere."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import catlip
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.models.weights import fingerprint
from catlip.objectives.clip import Clip
from catlip.tasks import adapt as module
from catlip.tasks.adapt import AdaptConfig, adapt, freeze
from catlip.tasks.head import HeadConfig, head, is_linear
from catlip.tasks.pretrain import PretrainTask
from catlip.training import session
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig
from tests.conftest import COLOURS, jpeg, write_coloured

SMALL = {"samples": 64, "batch_size": 16, "workers": 1, "device": "cpu", "min_count": 5}


@pytest.fixture
def start() -> Encoder:
    torch.manual_seed(0)
    return Encoder.create("test_resnet", image_size=32).eval()


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_coloured(tmp_path, samples=120)


def settings(**changes) -> dict:
    return {**SMALL, "loop": LoopConfig(precision="fp32"), **changes}


def weights(encoder: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


# What stays as it is


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnetv2_50x1_bit", "test_efficientnet", "test_convnext"])
def test_the_last_layers_are_trained_and_batch_norm_rests(name: str) -> None:
    encoder = Encoder.create(name, image_size=32)
    resting = freeze(encoder, 0.5, norms=True)
    norms = [n for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(resting) == sorted(norms)
    moving = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert 0 < len(moving) < len(list(encoder.parameters()))
    assert not any(n.startswith(tuple(f"{norm}." for norm in norms)) for n in moving)
    first = next(iter(dict(encoder.named_parameters())))
    assert first not in moving  # the stem
    freeze(encoder, 1.0, norms=False)
    assert all(p.requires_grad for p in encoder.parameters())
    assert freeze(encoder, 0.0, norms=False) == norms
    assert not any(p.requires_grad for p in encoder.parameters())


def test_what_is_frozen_has_the_same_bits_afterwards(start: Encoder, data: str, tmp_path: Path) -> None:
    before = weights(start)
    run = adapt(start, data, out=str(tmp_path / "run"), wise=1.0, force=True, **settings(optim=OptimConfig(lr=1e-2)))
    after, copy = run.encoder.state_dict(), Encoder.create("test_resnet", image_size=32)
    freeze(copy, 0.5, norms=True)
    moving = {name for name, p in copy.named_parameters() if p.requires_grad}
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert changed
    assert changed <= moving
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())  # the caller's own


# The classifier


def test_the_classifier_on_standardised_features_is_the_one_on_the_encoders_own(
    start: Encoder, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    finish = PretrainTask.finish

    def spy(task, out, world) -> None:
        seen["head"] = (task.objective.head.weight.clone(), task.objective.head.bias.clone())
        finish(task, out, world)

    build = catlip.tasks.head.HeadTask.finish  # type: ignore[attr-defined]

    def before(task, out, world):
        seen["standard"] = (
            task.objective.head.weight.clone(),
            task.objective.head.bias.clone(),
            task.shift,
            task.scale,
        )
        return build(task, out, world)

    monkeypatch.setattr(catlip.tasks.head.HeadTask, "finish", before)  # type: ignore[attr-defined]
    monkeypatch.setattr(PretrainTask, "finish", spy)
    head(start, data, out=str(tmp_path / "head"), **settings(samples=512))
    (weight, bias), (w, b, shift, scale) = seen["head"], seen["standard"]
    x = torch.randn(5, start.width)
    torch.testing.assert_close(x @ weight.T + bias, (x - shift) / scale @ w.T + b, rtol=1e-4, atol=1e-4)


def test_a_head_names_what_it_sees_and_leaves_the_encoder_alone(start: Encoder, data: str, tmp_path: Path) -> None:
    run = head(start, data, out=str(tmp_path / "head"), **settings(samples=2048))
    assert run.result.mAP > 95
    assert run.result.test == 30  # a quarter of so few
    assert set(run.encoder.names) == set(COLOURS)
    for name, value in start.state_dict().items():
        assert torch.equal(run.encoder.state_dict()[name], value)
    best = catlip.predict(run, write_photo(tmp_path)).labels[0]
    assert best.name == "lemon"
    again = head(start, data, out=str(tmp_path / "head"), **settings(samples=2048))
    assert (again.samples, again.result.mAP) == (run.samples, run.result.mAP)


def write_photo(folder: Path) -> str:
    (folder / "photo.jpg").write_bytes(jpeg(COLOURS["lemon"], seed=7))
    return str(folder / "photo.jpg")


def test_transfer_and_zero_shot_work_on_a_head(start: Encoder, data: str, tmp_path: Path) -> None:
    labelled = write_coloured(tmp_path, samples=80, name="labelled", cls=True)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    run = head(start, data, out=str(tmp_path / "head"), **settings(samples=2048))
    assert catlip.zero_shot(run, labelled, classes=str(tmp_path / "names.txt")).head["top1"] > 90


def test_only_a_lone_linear_classifier_is_standardised(start: Encoder, data: str, tmp_path: Path) -> None:
    run = head(start, data, out=str(tmp_path / "clip"), objective=Clip(), **settings())
    assert run.result is None
    assert (Path(run.out) / "text").is_dir()
    assert not is_linear(Encoder.create("test_resnet", image_size=32))


# What is kept


def test_the_start_is_kept_with_its_bits_if_nothing_is_gained(start: Encoder, data: str, tmp_path: Path) -> None:
    run = adapt(start, data, out=str(tmp_path / "run"), **settings(optim=OptimConfig(lr=0.0)))
    result = run.result
    assert (result.kept, result.wise, result.drift, result.gain) == ("start", 0.0, 0.0, 0.0)
    assert "The start is kept" in str(result)
    found = run.encoder.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in start.state_dict().items())
    assert set(run.encoder.names) == set(COLOURS)


def test_hours_are_a_budget(start: Encoder, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SECONDS", 0.2)
    run = adapt(start, data, out=str(tmp_path / "run"), **{**settings(), "samples": 0, "hours": 1 / 3600})
    assert run.samples % SMALL["batch_size"] == 0
    assert run.samples > 0


def test_force_keeps_what_was_trained(start: Encoder, data: str, tmp_path: Path) -> None:
    run = adapt(start, data, out=str(tmp_path / "run"), force=True, **settings())
    assert (run.result.kept, run.result.forced) == ("adapted", True)
    assert run.result.wise > 0
    assert any(not torch.equal(v, run.encoder.state_dict()[n]) for n, v in start.state_dict().items())


def test_what_would_be_forgotten_is_measured_and_stated(start: Encoder, data: str, tmp_path: Path) -> None:
    keep = write_coloured(tmp_path, samples=60, name="keep", cls=True)
    run = adapt(start, data, out=str(tmp_path / "run"), keep=keep, **settings())
    result = run.result
    assert result.keep_before > 90  # four colours
    assert all({"mAP", "keep", "drift"} == set(point) for point in result.path.values())
    assert "cross-validated" in str(result)


def test_an_encoder_gets_better_at_what_it_could_not_see(tmp_path: Path) -> None:
    """End to end: an encoder that was trained on grey images learns colours, and is kept."""
    torch.manual_seed(0)
    start = Encoder.create("test_resnet", image_size=32)
    stem = next(p for p in start.parameters() if p.ndim == 4)
    stem.data = stem.data.mean(1, keepdim=True).expand_as(stem).contiguous()  # blind to colour
    random = np.random.default_rng(0)
    nouns = list(COLOURS.items())
    rows = []
    for i in range(600):
        noun, colour = nouns[i % 4]
        level = np.array(colour) / np.mean(colour) * 90  # of the same brightness
        pixels = np.clip(level + random.normal(0, 30, (32, 32, 1)), 0, 255).astype(np.uint8)
        rows.append((pixels, f"one {noun}"))
    dataset = open_dataset(rows, fingerprint="colours")
    own = {**settings(samples=3200), "depth": 1.0, "freeze_norm": False, "optim": OptimConfig(lr=3e-3)}
    run = adapt(start, dataset, out=str(tmp_path / "run"), **own)
    assert run.result.kept == "adapted"
    assert run.result.mAP > run.result.mAP_before + 10
    page = run.result.to_html()
    assert "The adapted encoder is kept" in page
    assert "<svg" in page
    line = json.loads((Path(run.out) / "results.jsonl").read_text().splitlines()[-1])
    assert (line["task"], line["kept"]) == ("adapt", "adapted")


# Starts of all kinds


@pytest.mark.parametrize("name", ["test_vit", "test_nfnet", "test_convnext"])
def test_starts_without_batch_norm(name: str, data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Encoder(timm.create_model(name, num_classes=0, **({"img_size": 32} if name == "test_vit" else {})))
    start.resize(32)
    run = adapt(start, data, out=str(tmp_path / "run"), force=True, distill=1.0, **settings(samples=32))
    assert torch.isfinite(torch.tensor(run.result.mAP))
    assert run.encoder.architecture == start.architecture
    log = [json.loads(line) for line in (Path(run.out) / "log.jsonl").read_text().splitlines()]
    assert any("apart" in line for line in log)


def test_the_starts_own_view_is_kept(data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    model.pretrained_cfg |= {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.7,
        "interpolation": "nearest",
    }
    start = catlip.load(model)
    start.resize(32)
    run = adapt(start, data, out=str(tmp_path / "run"), **settings())
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in run.encoder.view.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in start.view.items()
    }
    torch.testing.assert_close(run.encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_a_file_of_weights_by_two_flags_is_the_same_start(data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "w.pth"
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), file)
    one = head(f"test_resnet={file}", data, out=str(tmp_path / "a"), image_size=32, **settings())
    two = head(
        data=data, weights=str(file), backbone="test_resnet", out=str(tmp_path / "b"), image_size=32, **settings()
    )
    assert fingerprint(one.encoder) == fingerprint(two.encoder)
    with pytest.raises(UsageError, match="`backbone` is missing"):
        head(data=data, weights=str(file), out=str(tmp_path / "c"), **settings())
    with pytest.raises(UsageError, match="not both"):
        head("x", data, weights=str(file), backbone="test_resnet", out=str(tmp_path / "c"), **settings())


# Stopped, and gone on


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    start: Encoder, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(samples=96, loop=LoopConfig(precision="fp32", save_every=16, ema=0.9), force=True)
    whole = adapt(start, data, out=str(tmp_path / "whole"), **own)

    class Stop(Exception):
        pass

    loss, calls = module.AdaptTask.loss, []

    def stops(task, batch):
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return loss(task, batch)

    monkeypatch.setattr(module.AdaptTask, "loss", stops)
    with pytest.raises(Stop):
        adapt(start, data, out=str(tmp_path / "parts"), **own)
    monkeypatch.setattr(module.AdaptTask, "loss", loss)
    parts = adapt(start, data, out=str(tmp_path / "parts"), **own)
    assert all(torch.equal(v, parts.encoder.state_dict()[n]) for n, v in whole.encoder.state_dict().items())
    assert whole.result.to_json() | {"seconds": 0} == parts.result.to_json() | {"seconds": 0}


# Mistakes


def other_captions(kind: str) -> Callable[[int], str]:
    return {"alike": lambda i: "a lemon", "silent": lambda i: "hm", "rare": lambda i: f"word{i}"}[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [("alike", r"every image has every label \(lemon\)"), ("silent", "no label occurs"), ("rare", "no label occurs")],
)
def test_captions_from_which_nothing_can_be_learned(start: Encoder, tmp_path: Path, kind: str, says: str) -> None:
    caption = other_captions(kind)
    rows = [(np.full((32, 32, 3), i, np.uint8), caption(i)) for i in range(40)]
    with pytest.raises(UsageError, match=says):
        adapt(start, open_dataset(rows, fingerprint=kind), out=str(tmp_path / "run"), **settings())
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_labels(start: Encoder, tmp_path: Path) -> None:
    nouns = ["lemon", "apple", "dog", "cat", "boat", "car", "tree", "house", "ball", "hat", "man", "girl"]
    rows = [(np.full((32, 32, 3), 9 * i, np.uint8), ", ".join(nouns[i % 3 :: 2])) for i in range(8)]
    own = settings() | {"min_count": 1}
    run = adapt(start, open_dataset(rows, fingerprint="few"), out=str(tmp_path / "run"), **own)
    assert run.result.kept == "start"
    with pytest.raises(UsageError, match="too few"):
        adapt(start, open_dataset(rows[:1], fingerprint="one"), out=str(tmp_path / "one"), **own)


def test_mistakes_are_told_before_anything_is_written(start: Encoder, data: str, tmp_path: Path) -> None:
    one_class = open_dataset([(np.zeros((8, 8, 3), np.uint8), "cat")] * 3, target="classes", fingerprint="one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    for changes, says in (
        ({"keep": one_class}, "has a single class, 'cat'"),
        ({"depth": 1.5}, "`depth` and `wise` are shares"),
        ({"out": str(tmp_path / "full")}, "is not empty and holds no adaptation"),
        ({"held_out": "nowhere/*.tar"}, "nowhere"),
    ):
        with pytest.raises(UsageError, match=says):
            adapt(start, data, **{**settings(), "out": str(tmp_path / "run"), **changes})
        assert not (tmp_path / "run").exists()


def test_configs_share_their_first_stage() -> None:
    """Every setting that the head has and the adaptation does not decide itself reaches the head."""
    config = AdaptConfig(run="r", data="d", out="o", seed=7, image_size=64, min_count=9)
    material = type("Material", (), {"start": "s", "context": type("C", (), {"vocabulary": "v"})})()
    made = module.head_config(replace(config, text_col="t"), material)
    assert isinstance(made, HeadConfig)
    assert (made.seed, made.image_size, made.min_count, made.text_col, made.run) == (7, 64, 9, "t", "s")
