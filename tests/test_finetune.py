"""Fine-tuning for classification: mixing and losses against naive references, stopping and going on, what is learned,
and what is said of sets and settings that cannot be."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import catlip
from catlip import cli
from catlip.data.batches import Batch
from catlip.data.crops import CropConfig
from catlip.data.images import read_image
from catlip.data.open import open_dataset
from catlip.data.steps import CurriculumConfig
from catlip.errors import UsageError
from catlip.evaluation.classification import evaluate
from catlip.evaluation.multilabel import exact_metrics
from catlip.export.predict import predict
from catlip.models.encoder import Encoder
from catlip.models.weights import load, open_weights
from catlip.objectives.classes import Classes, ClassObjective, asymmetric, dense, mix
from catlip.objectives.linear import linear_asymmetric, linear_bce
from catlip.recipes import RECIPES, curves, load_recipe
from catlip.tasks.finetune import FinetuneConfig, finetune, interpolated, make_task, open_sets
from catlip.training import checkpoint
from catlip.training.log import append_json
from catlip.training.optim import OptimConfig, layer_scales
from catlip.training.runfolder import acquire
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from tests.conftest import COLOURS, jpeg
from tests.test_labelled import write_folders, write_table
from tests.test_zero_shot import FRUITS


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder to start from; its weights are random."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("start")
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(folder / "encoder", torch.nn.Linear(encoder.width, 2), label_names=["n02084071", "n02121620"])
    return str(folder)


def config(start: str, train: str, test: str, out: Path, **changes: object) -> FinetuneConfig:
    return FinetuneConfig(**{
        "run": start, "train": train, "test": test, "out": str(out), "samples": 480, "batch_size": 24, "workers": 1,
        "device": "cpu", "crop": CropConfig(scale=(0.5, 1.0)), "optim": OptimConfig(lr=5e-3, layer_decay=0.9),
        "loop": LoopConfig(ema=0.9, precision="fp32", save_every=1000), "watch_every": 240, **changes,
    })  # fmt: skip


@pytest.fixture
def sets(coloured_shards: Callable[..., str]) -> tuple[str, str]:
    return coloured_shards(80, 1, "train", cls=True), coloured_shards(40, 1, "test", cls=True)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is minimised


@given(st.integers(1, 6), st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.4, 0.7)]), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_mixed_pictures_are_what_their_shares_say(count: int, alphas: tuple[float, float], seed: int) -> None:
    """Picture by picture: either a blend, or a box of the next one; the share is measured from the pixels."""
    torch.manual_seed(seed)
    image = torch.rand(count, 3, 12, 16)
    mixed, share = mix(image, *alphas)
    assert mixed.shape == image.shape
    assert ((share >= 0) & (share <= 1)).all()
    for i in range(count):
        mine, other, s = image[i], image[(i + 1) % count], share[i].item()
        blend = torch.allclose(mixed[i], s * mine + (1 - s) * other, atol=1e-5)
        foreign = (mixed[i] == other).all(0) & (mine != other).any(0)
        assert blend or (mixed[i][:, ~foreign] == mine[:, ~foreign]).all()
        if not alphas[1]:
            assert blend
        if not blend:
            rows, columns = foreign.any(1), foreign.any(0)
            assert (foreign == rows[:, None] & columns[None]).all()  # a box, without holes
            assert s == pytest.approx(1 - foreign.sum().item() / (12 * 16), abs=1e-6)


def test_mixing_is_a_function_of_the_seed_and_its_shares_are_as_drawn() -> None:
    image = torch.rand(4000, 1, 8, 8)
    for alphas in ((0.5, 0.0), (0.0, 1.0), (1.0, 1.0)):
        torch.manual_seed(1)
        first = mix(image, *alphas)
        torch.manual_seed(1)
        again = mix(image, *alphas)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.manual_seed(0)
    share = mix(image, 0.5, 0.0)[1]
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / 8, abs=0.01)  # of Beta(.5, .5)
    share = mix(image, 0.0, 1.0)[1]
    assert 0.55 < share.mean().item() < 0.75  # boxes lose what is beyond the edge


def batch_of(image: torch.Tensor, labels: list[list[int]]) -> Batch:
    flat = torch.tensor([c for own in labels for c in own], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, labels)]).cumsum(0)
    keys = [str(i) for i in range(len(labels))]
    return Batch(image, torch.zeros(len(labels), dtype=torch.bool), flat, offsets, [[]] * len(labels), keys)


class Mean(torch.nn.Module):
    """An encoder that sees the mean colour."""

    width = 3

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("mixup", [0.0, 0.7])
def test_the_loss_is_the_sum_over_both_pictures_labels(multi: bool, mixup: float) -> None:
    torch.manual_seed(0)
    image, head = torch.rand(5, 3, 4, 4), torch.nn.Linear(3, 4)
    labels = [[0, 2], [], [1], [3], [0, 1, 3]] if multi else [[0], [1], [2], [3], [1]]
    cfg = Classes(smoothing=0.2, mixup=mixup)
    objective = ClassObjective(Mean(), head, cfg, multi=multi)  # type: ignore[arg-type]
    torch.manual_seed(3)
    found = objective(batch_of(image, labels))[0]
    torch.manual_seed(3)
    mixed, share = mix(image, mixup, 0.0) if mixup else (image, torch.ones(5))
    naive = 0.0
    for i in range(5):
        z = head(mixed[i].mean((1, 2)))
        for own, weight in ((labels[i], share[i]), (labels[(i + 1) % 5], 1 - share[i])):
            if multi:
                terms = [-F.logsigmoid(z[c] if c in own else -z[c]) for c in range(4)]
            else:
                p = F.log_softmax(z, 0)
                terms = [-0.8 * p[own[0]], -0.2 * p.mean()]
            naive += weight * sum(terms) / 5
    torch.testing.assert_close(found, naive)
    objective.eval()
    torch.manual_seed(4)
    assert torch.equal(objective(batch_of(image, labels))[0], objective(batch_of(image, labels))[0])


def test_dense_losses_equal_the_sparse_ones() -> None:
    torch.manual_seed(0)
    x, head = torch.randn(6, 5), torch.nn.Linear(5, 9)
    batch = batch_of(x, [[0, 8], [], [1], [2, 3, 4], [5], [6]])
    target = dense(batch.labels, batch.offsets, 9)
    sparse = linear_asymmetric(x, head.weight, head.bias, batch.labels, batch.offsets)
    torch.testing.assert_close(asymmetric(head(x), target).sum() / 6, sparse)
    objective = ClassObjective(Mean(), head, Classes(), multi=True)  # type: ignore[arg-type]
    sparse = linear_bce(x, head.weight, head.bias, batch.labels, batch.offsets)
    torch.testing.assert_close(objective.loss(head(x), target), sparse)


def test_measures_of_several_classes() -> None:
    scores = torch.tensor([[2.0, -1, 1], [1, 1, 0.5], [-1, 2, -3]])
    positive = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]]).bool()
    found = exact_metrics(scores, positive)
    # Class 0: named in 0, 1; there in 0, 2; AP = (1/1 + 2/3) / 2. Class 1: named and there in 1, 2. Class 2: never.
    assert found["mAP"] == pytest.approx(100 * (5 / 6 + 1) / 2)
    assert found["F1_macro"] == pytest.approx(100 * (0.5 + 1) / 2)
    assert found["F1_micro"] == pytest.approx(100 * 2 * 3 / (6 + 4))


def test_a_large_set_is_counted_and_says_how_far_off(start: str, tmp_path: Path, monkeypatch) -> None:
    found = many(tmp_path / "some", 80, 0)
    data = open_dataset(coco_of(tmp_path / "some", found), target="classes")
    torch.manual_seed(0)
    encoder = catlip.load(start)
    objective = ClassObjective(encoder, nn.Linear(encoder.width, 3), Classes(), multi=True)
    exact = evaluate(objective, data, torch.device("cpu"))
    monkeypatch.setattr("catlip.evaluation.classification.EXACT", 0)
    counted = evaluate(objective, data, torch.device("cpu"))
    for name, value in exact.items():
        assert abs(counted[name] - value) <= counted.get(f"{name}_error", 0) + 1e-3


def test_layers_of_the_official_vit_learn_as_the_official_code_has_it() -> None:
    """Patches and positions decay^(depth + 1), block i decay^(depth - i), the last norm as the last block, head 1."""
    encoder = Encoder.create("corenet_vit_tiny", image_size=64)
    task = Task(ClassObjective(encoder, torch.nn.Linear(encoder.width, 2), Classes(), multi=False))
    scales = layer_scales(task, 0.7)
    prefix = "objective.encoder.backbone."
    assert set(scales) == {name for name, _ in task.named_parameters() if name.startswith(prefix)}
    for name, scale in scales.items():
        part = name.removeprefix(prefix)
        power = 12 - int(part.split(".")[1]) if part.startswith("blocks.") else 1 if part.startswith("norm.") else 13
        assert scale == pytest.approx(0.7**power), name


# The verb


def test_it_learns_and_what_it_leaves_can_be_used(start: str, sets: tuple[str, str], tmp_path: Path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(COLOURS))
    out = tmp_path / "out"
    result = finetune(config=config(start, *sets, out, samples=960, classes=str(names))).result
    assert result is not None
    assert result.top1 > 90
    assert result.top5 is None
    assert lines(out / "results.jsonl") == [result.to_json()]
    watched = [line["top1"] for line in lines(out / "log.jsonl") if "top1" in line]
    assert len(watched) == 4
    encoder = catlip.load(out)
    assert encoder.labels == list(COLOURS)
    x = torch.stack([encoder.transform(read_image(jpeg(colour, seed=9))) for colour in COLOURS.values()])
    assert encoder.logits(x).argmax(1).tolist() == [0, 1, 2, 3]
    (tmp_path / "lemon.jpg").write_bytes(jpeg(COLOURS["lemon"], seed=1))
    best = predict(out, tmp_path / "lemon.jpg").labels
    assert best[0].name == "lemon"
    assert sum(p.probability for p in best) == pytest.approx(1)  # they exclude one another
    assert re.search(r"commonest class of `train` +25\.00 %", str(result))


def many(folder: Path, count: int, seed: int) -> dict[str, list[str]]:
    """Pictures of a red, a green, both or no half -> their labels."""
    folder.mkdir(exist_ok=True)
    found = {}
    for i in range(count):
        left, right = (i + seed) % 2, (i // 2) % 2
        colour = (220 if left else 20, 220 if right else 20, 20)
        (folder / f"{i}.jpg").write_bytes(jpeg(colour, seed=1000 * seed + i))
        found[f"{i}.jpg"] = ["red"] * left + ["green"] * right
    return found


def coco_of(folder: Path, found: dict[str, list[str]]) -> str:
    ids = {"red": 4, "green": 9, "nothing": 2}
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(found)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": [{"image_id": i, "category_id": ids[label]} for i, own in enumerate(found.values())
                        for label in own],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json")


@pytest.mark.parametrize(("form", "loss"), [("csv", "bce"), ("coco", "asymmetric")])
def test_several_classes_a_picture(start: str, form: str, loss: str, tmp_path: Path, capsys) -> None:
    data = []
    for number, name in enumerate(("train", "test")):
        found = many(tmp_path / name, 48, number)
        if form == "coco":
            data.append(coco_of(tmp_path / name, found))
        else:
            rows = [f"{file},{';'.join(own)}" for file, own in found.items()]
            (tmp_path / name / "list.csv").write_text("\n".join(["image,labels", *rows]))
            data.append(str(tmp_path / name / "list.csv"))
    objective = Classes(multi_loss=loss)  # type: ignore[arg-type]
    result = finetune(config=config(start, data[0], data[1], tmp_path / "out", samples=720, objective=objective)).result
    assert result is not None
    assert result.mAP > 95
    assert result.F1_micro > 85
    encoder = catlip.load(tmp_path / "out")
    assert encoder.labels == (["nothing", "red", "green"] if form == "coco" else ["green", "red"])
    said = capsys.readouterr().out
    assert ("`test` has no image of 1 of 3 classes, e.g. 'nothing': nothing is measured of them" in said) == (
        form == "coco"
    )
    both = predict(tmp_path / "out", tmp_path / "test" / "2.jpg").labels
    assert {p.name for p in both[:2]} == {"red", "green"}
    assert min(p.probability for p in both[:2]) > 0.5  # they do not exclude one another


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "resume" / "state.pt", weights_only=True)["average"]


def test_a_killed_run_goes_on_bit_for_bit(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    """With everything that is drawn at random: mixing, stochastic depth, scales, RangeAugment."""
    torch.set_num_threads(1)
    changes = {
        "objective": Classes(mixup=0.4, cutmix=1.0), "drop_path": 0.2,
        "curriculum": CurriculumConfig(scales=(24, 32, 40)),
        "fraction": 0.9,
    }  # fmt: skip
    finetune(config=config(start, *sets, tmp_path / "whole", **changes))
    save = checkpoint.save

    def save_and_die(folder: Path, state: dict) -> None:
        save(folder, state)
        if state["samples"] >= 200:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        torch.set_num_threads(1)
        loop = LoopConfig(ema=0.9, precision="fp32", save_every=100)
        with mock.patch.object(checkpoint, "save", save_and_die):
            finetune(config=config(start, *sets, tmp_path / "killed", loop=loop, **changes))

    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    finetune(config=config(start, *sets, tmp_path / "killed", **changes))
    mine, theirs = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    whole, killed_too = (lines(tmp_path / run / "results.jsonl")[-1] for run in ("whole", "killed"))
    assert {**whole, "seconds": 0} == {**killed_too, "seconds": 0}


def test_wise_goes_from_the_start_to_the_end(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    """A finished run, asked again with another `wise`, is not trained again: only mixed and measured."""
    cfg = config(start, *sets, tmp_path / "out")
    finetune(config=cfg)
    tuned = weights(tmp_path / "out")
    before = make_task(cfg, open_sets(cfg), open_weights(cfg.run, cfg.untrained)).state_dict()
    for wise in (0.0, 0.5, 1.0):
        finetune(config=replace(cfg, wise=wise))
        found = open_weights(str(tmp_path / "out"))
        found.state["head.weight"] = found.weight  # type: ignore[assignment]
        prefix = "objective.encoder.backbone."
        for name, value in tuned.items():
            mine = found.state.get(name.removeprefix(prefix) if name.startswith(prefix) else name[len("objective.") :])
            if mine is None or not value.is_floating_point():
                continue
            expected = {0.0: before[name], 1.0: value, 0.5: (before[name] + value) / 2}[wise]
            torch.testing.assert_close(mine, expected, rtol=0 if wise != 0.5 else 1e-6, atol=0 if wise != 0.5 else 1e-7)
    assert [line["wise"] for line in lines(tmp_path / "out" / "results.jsonl")] == [1.0, 0.0, 0.5, 1.0]
    assert lines(tmp_path / "out" / "log.jsonl")[-1]["samples"] == 480
    a, b = {"x": torch.tensor([1.0]), "n": torch.tensor(3)}, {"x": torch.tensor([2.0]), "n": torch.tensor(5)}
    assert {k: v.item() for k, v in interpolated(a, b, 0.25).items()} == {"x": 1.25, "n": 5}


def test_a_vit_at_another_size_keeps_what_it_knows(tmp_path: Path, sets: tuple[str, str]) -> None:
    torch.manual_seed(0)
    vit = Encoder.create("test_vit", image_size=64)
    vit.save(tmp_path / "vit")
    cfg = config(str(tmp_path / "vit"), *sets, tmp_path / "out", samples=48, image_size=96, drop_path=0.1, center=0.875)
    task = make_task(cfg, open_sets(cfg), open_weights(cfg.run, cfg.untrained))
    kept, old = task.encoder.backbone, vit.backbone
    assert torch.equal(kept.blocks[0].mlp.fc1.weight, old.blocks[0].mlp.fc1.weight)
    assert kept.pos_embed.shape[1] > old.pos_embed.shape[1]
    result = finetune(config=cfg).result
    assert result is not None
    assert result.image_size == 96
    found = catlip.load(tmp_path / "out")
    assert found.image_size == 96
    assert found.backbone.pretrained_cfg["crop_pct"] == 0.875


def test_what_the_start_was_made_with_stays(tmp_path: Path, sets: tuple[str, str]) -> None:
    """The official ViT interpolates its positions in one dimension; a fine-tuned one must go on doing so."""
    encoder = Encoder.create("corenet_vit_tiny", image_size=64, arguments={"positions": "1d"})
    encoder.save(tmp_path / "start")
    assert catlip.load(tmp_path / "start").backbone.positions == "1d"
    cfg = config(str(tmp_path / "start"), *sets, tmp_path / "out", samples=24, image_size=32)
    finetune(config=cfg)
    assert catlip.load(tmp_path / "out").backbone.positions == "1d"


def test_an_untrained_baseline_of_a_name_and_of_a_run(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    cfg = config(start, *sets, tmp_path / "out", untrained=True)
    of_run = make_task(cfg, open_sets(cfg), open_weights(cfg.run, cfg.untrained)).encoder
    first = (
        "backbone.conv1.weight" if "backbone.conv1.weight" in of_run.state_dict() else next(iter(of_run.state_dict()))
    )
    assert not torch.equal(of_run.state_dict()[first], catlip.load(start).state_dict()[first])
    with mock.patch("timm.models._builder.load_state_dict_from_hf", side_effect=AssertionError("a download")):
        result = finetune(config=replace(cfg, run="timm:test_resnet", image_size=32, samples=24)).result
    assert result is not None
    assert result.encoder == "timm:test_resnet untrained"


def test_a_finished_run_is_not_overwritten_by_another(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    cfg = config(start, *sets, tmp_path / "out", samples=24)
    finetune(config=cfg)
    with pytest.raises(UsageError, match=r"already holds another run \(optim.lr: 0.005 there, 0.1 here"):
        finetune(config=replace(cfg, optim=OptimConfig(lr=0.1, layer_decay=0.9)))
    with pytest.raises(UsageError, match="already holds another run"):
        finetune(config=replace(cfg, train=sets[1]))
    with pytest.raises(UsageError, match="init: random there, transfer here"):
        acquire(tmp_path / "out", replace(cfg, init="transfer"), {}, accept=False)
    with pytest.raises(UsageError, match="init"):
        finetune(config=replace(cfg, untrained=True))


# Mistakes


def test_mistakes_in_settings(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    cfg = config(start, *sets, tmp_path / "out")
    for change, message in (
        ({"run": ""}, "`run` is missing"),
        ({"fraction": 0.0}, "`fraction` is a share"),
        ({"wise": 1.5}, "`wise` is a share"),
        ({"epochs": 1.0}, "give the budget as `samples`, `epochs` or `hours`"),
        ({"objective": Classes(smoothing=1.0)}, "`smoothing`"),
        ({"run": "timm:resnt10t", "untrained": True}, "did you mean"),
        ({"run": str(tmp_path)}, "is no run and no model folder"),
        ({"curriculum": CurriculumConfig(scales=(32,), low_res=16)}, "two ways to vary the size"),
    ):
        with pytest.raises(UsageError, match=message):
            finetune(config=replace(cfg, **change))
    assert not (tmp_path / "out").exists()


def test_mistakes_in_sets(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    def told(train: str, test: str, match: str, **changes: object) -> None:
        with pytest.raises(UsageError, match=match):
            finetune(config=config(start, train, test, tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()

    three = tmp_path / "three.txt"
    three.write_text("red\ngreen\nblue\n")
    told(*sets, "names 3 classes; `train` .* has the label 3", classes=str(three))
    ab = str(write_folders(tmp_path / "ab", a=3, b=3))
    abc = str(write_folders(tmp_path / "abc", a=3, b=3, c=3))
    told(ab, abc, "`test` .*1 of its classes are not in `train`, e.g. 'c'")
    told(ab, abc, "2 labels of `train` .* are not in it, e.g. 'a'", classes=str(three))
    three.write_text("a\nb\nc\n")
    told(ab, abc, "`train` .* has no image of 1 classes that `test` has, e.g. 'c'", classes=str(three))
    one = str(write_folders(tmp_path / "one", a=3))
    told(one, one, "single class, 'a'; two or more")
    table = write_table(tmp_path, {"x.jpg": "a;b", "y.jpg": "a"})
    told(ab, table, "x.jpg has 2 labels, where each picture should have one")
    (tmp_path / "t").mkdir()
    none = write_table(tmp_path / "t", {"x.jpg": "", "y.jpg": ""})
    told(table, none, "`test` .* has not one label")
    (tmp_path / "u").mkdir()
    told(write_table(tmp_path / "u", {"x.jpg": "a;b"}), table, "`train` .* has a single image")
    (tmp_path / "v").mkdir()
    same = write_table(tmp_path / "v", {"x.jpg": "a", "y.jpg": "A", "z.jpg": "b"})
    told(same, ab, "'A' and 'a' are both 'a'", classes=str(three))


def test_unreadable_pictures_end_the_run_in_one_line(start: str, tmp_path: Path) -> None:
    train, test = write_folders(tmp_path / "train", a=30, b=30), write_folders(tmp_path / "test", a=3, b=3)
    cfg = config(start, str(train), str(test), tmp_path / "out", samples=120)
    for i in range(3):
        (train / "a" / f"a{i}.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="pictures cannot be read, more than 1%"):
        finetune(config=cfg)
    for i in range(3):
        (train / "a" / f"a{i}.jpg").write_bytes(jpeg(seed=i))
    (test / "a" / "a1.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="1 of 6 pictures cannot be read"):
        finetune(config=replace(cfg, out=str(tmp_path / "other")))


def test_a_test_set_of_one_picture_and_a_class_that_is_not_tested(start: str, tmp_path: Path, capsys) -> None:
    train, test = write_folders(tmp_path / "train", a=9, b=9), write_folders(tmp_path / "test", b=1)
    result = finetune(config=config(start, str(train), str(test), tmp_path / "out", samples=24)).result
    assert result is not None
    assert result.top1 in (0.0, 100.0)
    assert "`test` has no image of 1 of 2 classes, e.g. 'a'" in capsys.readouterr().out


def test_the_command_line(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    result = cli.run([
        "finetune", start, "--train", sets[0], "--test", sets[1], "--out", str(tmp_path / "out"), "--samples", "48",
        "--batch-size", "24", "--device", "cpu", "--mixup", "0.2", "--layer-decay", "0.8", "--scale", "0.5", "1",
    ])  # fmt: skip
    assert result.result.test == 40
    card = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (card["config"]["objective"]["mixup"], card["config"]["optim"]["layer_decay"]) == (0.2, 0.8)
    assert card["config"]["crop"]["scale"] == [0.5, 1.0]


@pytest.mark.parametrize("name", RECIPES["finetune"])
def test_recipes_are_documented_runs(name: str) -> None:
    recipe = load_recipe(name, "finetune")
    module = import_module(RECIPES["finetune"][name])
    assert "Expected" in getattr(module, name).__doc__
    assert name in str(module.__doc__)
    assert name in str(FinetuneConfig.__doc__)
    assert recipe.image_size in recipe.curriculum.scales
    assert recipe.optim.lr_end == pytest.approx(0.1)
    assert (recipe.labels == "multi") == ("coco" in name)


def test_a_recipe_gives_way_to_what_is_asked_for(start: str, sets: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe 'imagenet', did you mean 'imagenet_"):
        cli.run(["finetune", start, "--recipe", "imagenet"])
    with pytest.raises(UsageError, match="--train is missing"):
        cli.run(["finetune", start, "--recipe", "imagenet_224", "--out", str(tmp_path / "out")])
    result = cli.run([
        "finetune", start, "--recipe", "imagenet_224", "--train", sets[0], "--test", sets[1], "--out",
        str(tmp_path / "out"), "--image-size", "32", "--scales", "24", "32", "--samples", "48", "--batch-size", "24",
        "--device", "cpu",
    ])  # fmt: skip
    assert result.result.image_size == 32
    card = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert (card["samples"], card["epochs"], card["optim"]["lr"]) == (48, 0.0, 3e-5)


# Transfer Init


@pytest.fixture
def fruits(tmp_path: Path) -> tuple[str, str]:
    """(a run whose classifier has rows of the four fruits and lawns that are drawn, their names)."""
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "fruits" / "encoder", torch.nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    (tmp_path / "names.txt").write_text("\n".join(COLOURS) + "\n")
    return str(tmp_path / "fruits"), str(tmp_path / "names.txt")


def test_the_classifier_starts_from_rows_of_the_runs_own(
    fruits: tuple[str, str], sets: tuple[str, str], tmp_path: Path
) -> None:
    """Before the first step, logits are the old ones' up to a level and a scale of each class."""
    cfg = config(fruits[0], *sets, tmp_path / "out", classes=fruits[1], init="transfer")
    opened = open_sets(cfg)
    task = make_task(cfg, opened, open_weights(cfg.run, cfg.untrained)).eval()
    pictures = torch.rand(64, 3, 32, 32)
    old, new = load(fruits[0]), task.objective
    rows = [old.labels.index(FRUITS[name.name]) for name in opened.names]
    with torch.no_grad():
        theirs = old.backbone.get_classifier()(old.pooled(pictures))[:, rows]
        ours = new.head(new.encoder.pooled(pictures))
    centred = theirs - theirs.mean(1, keepdim=True)  # the mean row is taken off
    both = torch.stack([ours.T, centred.T], dim=1)
    assert min(torch.corrcoef(pair)[0, 1].item() for pair in both) > 0.99
    again = make_task(cfg, opened, open_weights(cfg.run, cfg.untrained))
    assert torch.equal(again.objective.head.weight, new.head.weight)
    result = finetune(config=cfg).result
    assert result is not None
    assert set(result.names) == set(COLOURS)


def test_a_curve_of_fine_tuned_parts_is_not_made_twice(
    fruits: tuple[str, str], sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(
        fruits[0], *sets, tmp_path / "out", classes=fruits[1], init="transfer", fractions="0.1,1", seeds=2, samples=48
    )
    result = curves.finetune(config=cfg)
    assert result is not None
    assert [entry["pictures"] for entry in result.curve] == [8, 80]
    assert all(len(entry[init]) == 2 for entry in result.curve for init in ("random", "transfer"))
    assert "<svg" in result.to_html()
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text()) == result.to_json()
    monkeypatch.setattr(curves, "fine_tune", lambda config: pytest.fail("trained again"))
    again = curves.finetune(config=cfg)
    assert again is not None
    assert again.curve == result.curve


def test_points_of_other_settings_or_sets_are_not_taken_up(
    start: str, sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made: list[str] = []

    def fine_tune(config: FinetuneConfig) -> Any:
        cfg = config
        made.append(cfg.out)
        result = {"task": "finetune", "top1": 50.0 + len(made), "train": 40, "test": 40, "classes": 4,
                  "image_size": 32, "data": [cfg.train, cfg.test], "encoder": cfg.run}  # fmt: skip
        Path(cfg.out).mkdir(parents=True)
        append_json(Path(cfg.out) / "results.jsonl", result)
        return SimpleNamespace(result=result)

    monkeypatch.setattr(curves, "fine_tune", fine_tune)

    def again(encoder: str = start, some: tuple[str, str] = sets, **changes: Any) -> list[float]:
        result = curves.finetune(config=config(encoder, *some, tmp_path / "out", **{"seeds": 2, **changes}))
        assert result is not None
        return result.curve[0]["random"]

    assert again() == [51.0, 52.0]
    assert again() == [51.0, 52.0]
    assert "not counted" not in capsys.readouterr().out
    assert again(epochs=3.0, samples=0) == [53.0, 54.0]
    assert "2 results of other settings or sets are left there and not counted" in capsys.readouterr().out
    assert again(wise=0.5) == [55.0, 56.0]  # decides the number, not the training
    assert again(some=(sets[1], sets[1])) == [57.0, 58.0]
    assert again(some=(sets[0], sets[0])) == [59.0, 60.0]
    Encoder.create("test_vit", image_size=32).save(tmp_path / "other" / "encoder")
    assert again(encoder=str(tmp_path / "other")) == [61.0, 62.0]
    assert again(seeds=3, workers=1) == [51.0, 52.0, 63.0]


def test_mistakes_of_transfer(fruits: tuple[str, str], sets: tuple[str, str], start: str, tmp_path: Path) -> None:
    for run, changes, message in (
        (fruits[0], {}, "labels are numbers; `init` transfer needs `classes`"),
        (fruits[0], {"classes": fruits[1], "untrained": True}, "`untrained` has none"),
        (fruits[0], {"classes": fruits[1], "alpha": 0.0}, "`alpha` 0"),
    ):
        with pytest.raises(UsageError, match=message):
            finetune(config=config(run, *sets, tmp_path / "out", init="transfer", **changes))
    with pytest.raises(UsageError, match="`fractions`"):
        curves.finetune(config=config(start, *sets, tmp_path / "out", fractions="a"))
    with pytest.raises(UsageError, match=r"`fractions` 0\.1,2"):
        curves.finetune(config=config(start, *sets, tmp_path / "out", fractions="0.1,2"))
    assert not (tmp_path / "out").exists()
