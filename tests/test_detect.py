"""The detector learns, stops and goes on; its pyramids have the maps they promise."""

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import catlip
from catlip import cli
from catlip.data.boxes import BoxBatch, Placed
from catlip.data.objects import Objects
from catlip.errors import UsageError
from catlip.evaluation.detection import NAMES
from catlip.evaluation.result import in_run_folder
from catlip.models.detector import DetectorConfig
from catlip.models.encoder import Encoder
from catlip.models.pyramid import Pyramid, SimplePyramid, freeze_unused
from catlip.models.weights import load
from catlip.objectives.boxes import BoxObjective, targets
from catlip.recipes import RECIPES, load_recipe
from catlip.tasks.detect import DetectConfig, as_coco, detect
from catlip.training import checkpoint
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

SMALL = DetectorConfig(
    channels=16, hidden=32, mask_layers=1, anchors=(8, 16, 32, 48, 64), proposals=30, regions=16, freeze_norm=False
)


@pytest.mark.parametrize(("name", "size", "levels"), [
    ("test_vit", 160, 4), ("resnet10t", 64, 4), ("convnext_atto", 64, 4), ("test_efficientnet", 64, 4),
])  # fmt: skip
def test_maps_of_a_pyramid(name: str, size: int, levels: int) -> None:
    pyramid = Pyramid(Encoder.create(name, image_size=size), 24).eval()
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, size, size))
    assert list(maps) == [*pyramid.names, "pool"] == [*map(str, range(levels)), "pool"]
    for level, found in enumerate(maps.values()):
        assert found.shape == (1, 24, *[-(-size // 2 ** (2 + level))] * 2)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_the_simple_pyramid_makes_all_scales_of_one(stride: int) -> None:
    maps = SimplePyramid(32, stride, 8)(torch.randn(2, 32, 256 // stride, 256 // stride))
    assert [found.shape[-1] for found in maps] == [64, 32, 16, 8]


def test_what_no_map_depends_on_does_not_train() -> None:
    pyramid = Pyramid(Encoder.create("convnext_atto", image_size=64), 8)
    freeze_unused(pyramid, pyramid.encoder.image_size, lambda module, x: list(module(x).values()))
    still = [name for name, parameter in pyramid.named_parameters() if not parameter.requires_grad]
    assert still == ["encoder.backbone.head.norm.weight", "encoder.backbone.head.norm.bias"]
    with pytest.raises(UsageError, match="patches of 14 pixels"):
        Pyramid(Encoder.create("eva02_tiny_patch14_224", image_size=224), 8)


def batch_of(boxes: list[list[float]], counts: list[int]) -> BoxBatch:
    n, keys = len(counts), [str(i) for i in range(len(counts))]
    return BoxBatch(
        torch.rand(n, 3, 64, 64), torch.zeros(n, dtype=torch.bool), torch.zeros(len(boxes), dtype=torch.int64),
        torch.tensor([0, *counts]).cumsum(0), [[] for _ in keys], keys,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        masks=torch.full((len(boxes), 64, 8), 255, dtype=torch.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("counts", [[2, 0, 0], [0, 0, 2], [0, 0, 0]])
def test_pictures_without_boxes(counts: list[int]) -> None:
    torch.manual_seed(0)
    objective = BoxObjective(Encoder.create("test_resnet", image_size=64), 3, SMALL)
    batch = batch_of([[4, 4, 40, 40], [20, 8, 60, 50]][: sum(counts)], counts)
    assert [len(target["masks"]) for target in targets(batch, masks=True)] == counts
    loss, metrics = objective.train()(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert metrics["loss"] == pytest.approx(sum(float(v) for name, v in metrics.items() if name != "loss"), rel=1e-5)
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_a_trained_detector_sees_images_of_any_size(tmp_path: Path) -> None:
    """An image of the canvas' size goes to the network as it is; others are brought to that size, and boxes back."""
    torch.manual_seed(0)
    cfg = replace(SMALL, min_score=0.0, detections=5)
    objective = BoxObjective(Encoder.create("test_resnet", image_size=64), 2, cfg).eval()
    objective.encoder.save(tmp_path / "encoder")
    save_file({name: v.contiguous() for name, v in objective.own_state().items()}, tmp_path / "objective.safetensors")
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    (tmp_path / "config.json").write_text(json.dumps({"config": {"image_size": 64, "objective": asdict(cfg)}}))
    detector = catlip.load_detector(tmp_path, "cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    found = detector(pixels, min_score=0.0)
    x = objective.encoder.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    wanted = objective.detect(x)[0]
    torch.testing.assert_close(torch.tensor([one.box for one in found]), wanted["boxes"])
    torch.testing.assert_close(torch.tensor([one.score for one in found]), wanted["scores"])
    assert [one.name for one in found] == [["cat", "dog"][label - 1] for label in wanted["labels"].tolist()]
    plain, large = (detector(np.full((size, size, 3), 90, np.uint8), min_score=0.0) for size in (64, 128))
    torch.testing.assert_close(torch.tensor([one.box for one in large]) / 2, torch.tensor([one.box for one in plain]))
    assert large[0].mask is not None
    assert large[0].mask.shape == (128, 128)
    (tmp_path / "classes.json").write_text('["cat", "dog", "cow"]')
    with pytest.raises(UsageError, match="does not fit"):
        catlip.load_detector(tmp_path)
    with pytest.raises(UsageError, match="holds no detector"):
        catlip.load_detector(tmp_path / "encoder")


def test_anchors_do_not_lose_their_place_in_bf16() -> None:
    objective = BoxObjective(Encoder.create("test_resnet", image_size=64), 3, SMALL).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(batch_of([[4, 4, 40, 40]], [1]))
        maps = objective.detector.backbone(torch.rand(1, 3, 64, 64))
    loss.backward()
    assert torch.isfinite(loss)
    assert {found.dtype for found in maps.values()} == {torch.float32}


def test_the_lowest_layers_can_stay() -> None:
    cfg = DetectorConfig(**{**{f: getattr(SMALL, f) for f in DetectorConfig.__slots__}, "freeze": 2})
    encoder = BoxObjective(Encoder.create("test_resnet", image_size=64), 3, cfg).encoder
    still = {name.split(".")[1] for name, p in encoder.named_parameters() if not p.requires_grad}
    assert still == {"conv1", "bn1", "layer1"}
    assert encoder.backbone.layer2[0].conv1.weight.requires_grad


def test_frozen_norms_keep_their_statistics() -> None:
    cfg = DetectorConfig(**{**{f: getattr(SMALL, f) for f in DetectorConfig.__slots__}, "freeze_norm": True})
    objective = BoxObjective(Encoder.create("test_resnet", image_size=64), 3, cfg).train()
    before = {name: value.clone() for name, value in objective.encoder.named_buffers()}
    objective(batch_of([[4, 4, 40, 40]], [1]))
    assert all(torch.equal(value, before[name]) for name, value in objective.encoder.named_buffers())
    assert objective.detector.training


def test_detections_go_back_to_the_pixels_of_the_picture() -> None:
    """The whole picture, 100 x 50, lies on a canvas of 64 pixels as 64 x 32."""
    nothing = np.empty((0, 4), np.float32)
    truth = Objects("x", "x.jpg", 100, 50, nothing, np.empty(0, np.int64), np.empty(0, bool), np.empty(0), [])
    result = {
        "boxes": torch.tensor([[16.0, 8, 48, 24], [0, 40, 64, 60], [-5, -5, 90, 90]]),
        "labels": torch.tensor([2, 2, 1]), "scores": torch.tensor([0.5, 0.9, 0.8]),
        "masks": torch.ones(3, 1, 28, 28),
    }  # fmt: skip
    found = as_coco(result, truth, Placed((0, 0, 100, 50), 64, 32), [None, 7])
    assert len(found) == 1  # the second lies beside the picture, the third is of a class that the file does not have
    assert (found[0]["image_id"], found[0]["category_id"]) == ("x", 7)
    assert found[0]["bbox"] == pytest.approx([25, 12.5, 50, 25], abs=0.01)
    assert found[0]["segmentation"]["size"] == [50, 100]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[str, str]]:
    """Pictures of red and blue squares on grey, and the file that says where: (folder, file). Ids have gaps, one
    category has no boxes, the last picture shows nothing."""

    def make(name: str, count: int) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp(name)
        random = np.random.default_rng(count)
        images, annotations = [], []
        for number in range(count):
            pixels = np.full((48, 64, 3), 110, np.uint8) + random.integers(-9, 9, (48, 64, 3)).astype(np.uint8)
            for _ in range(0 if number and number == count - 1 else 2):
                side = int(random.integers(14, 26))
                x, y, red = (
                    int(random.integers(0, 64 - side)),
                    int(random.integers(0, 48 - side)),
                    random.random() < 0.5,
                )
                pixels[y : y + side, x : x + side] = (220, 30, 30) if red else (30, 30, 220)
                corners = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append({
                    "id": len(annotations), "image_id": 10 * number, "category_id": 4 if red else 40,
                    "bbox": [x, y, side, side], "area": side**2, "segmentation": [corners], "iscrowd": 0,
                })  # fmt: skip
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (folder / f"{number}.png").write_bytes(buffer.getvalue())
            images.append({"id": 10 * number, "file_name": f"{number}.png", "width": 64, "height": 48})
        categories = [{"id": 4, "name": "red"}, {"id": 7, "name": "<b>green"}, {"id": 40, "name": "blue"}]
        table = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "boxes.json").write_text(json.dumps(table))
        return str(folder), str(folder / "boxes.json")

    return make


def config(train: tuple[str, str], test: tuple[str, str], out: Path, **changes: object) -> DetectConfig:
    return DetectConfig(**{
        "run": "timm:test_resnet", "untrained": True, "images": train[0], "boxes": train[1],
        "test_images": test[0], "test_boxes": test[1], "out": str(out), "image_size": 64, "samples": 48,
        "batch_size": 4, "scale": (0.8, 1.2), "workers": 1, "device": "cpu", "objective": SMALL,
        "optim": OptimConfig(lr=3e-3, schedule="wsd", betas=(0.9, 0.99), clip=5.0), 
        "loop": LoopConfig(ema=0.9, precision="fp32"),
        **changes,
    })  # fmt: skip


def test_it_learns_to_find_squares(squares, tmp_path: Path) -> None:
    train, test = squares("train", 40), squares("test", 9)
    cfg, out = config(train, test, tmp_path / "run", samples=480, show=3), tmp_path / "run"
    run = detect(config=cfg)
    result = run.result
    assert json.loads((out / "results.jsonl").read_text()) == result.to_json()
    assert list(result.box) == list(NAMES)
    assert result.box["AP50"] > 40
    assert result.mask["AP50"] > 40
    assert in_run_folder(run, cfg) == out / "detections.html"
    found = json.loads((out / "detections.json").read_text())
    assert {one["category_id"] for one in found} <= {4, 40, 7}
    assert {one["image_id"] for one in found} <= {10 * i for i in range(9)}
    html = (out / "detections.html").read_text()
    assert html.count("data:image/jpeg") == 3
    assert "<b>green" not in html
    assert load(out).image_size == 64
    assert json.loads((out / "classes.json").read_text()) == ["red", "<b>green", "blue"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "resume" / "state.pt", weights_only=True)["average"]


def test_a_killed_run_goes_on_bit_for_bit(squares, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train, test = squares("few", 5), squares("one", 1)
    whole = config(train, test, tmp_path / "whole")
    assert detect(config=whole).result is not None
    save = checkpoint.save

    def save_and_die(folder: Path, state: dict) -> None:
        save(folder, state)
        if state["samples"] >= 24:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        torch.set_num_threads(1)
        with mock.patch.object(checkpoint, "save", save_and_die):
            detect(
                config=config(
                    train, test, tmp_path / "killed", loop=LoopConfig(ema=0.9, precision="fp32", save_every=12)
                )
            )

    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert detect(config=config(train, test, tmp_path / "killed")).result is not None
    pairs = zip(weights(tmp_path / "whole").values(), weights(tmp_path / "killed").values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("change", "says"), [
    ({"run": "nowhere"}, "nowhere"), ({"image_size": 100}, "a multiple of 64"),
    ({"scale": (1.0, 0.5)}, "`scale` 1.0 0.5"),
    ({"samples": 0}, "give the budget as `samples`, `epochs` or `hours`"), 
    ({"loop": LoopConfig(compile=True)}, "`compile` does not"),
    ({"objective": DetectorConfig(anchors=(8, 16))}, "`anchors` names 2 sizes"),
    ({"boxes": "nowhere.json"}, "no such file"),
])  # fmt: skip
def test_mistakes(change: dict[str, object], says: str, squares, tmp_path: Path) -> None:
    data = squares("bad", 1)
    with pytest.raises(UsageError, match=says):
        detect(config=config(data, data, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_mistakes_in_the_data(squares, tmp_path: Path) -> None:
    data, other = squares("data", 2), squares("other", 2)
    table = json.loads(Path(other[1]).read_text())
    Path(other[1]).write_text(json.dumps({**table, "annotations": []}))
    with pytest.raises(UsageError, match=r"`test_boxes` .* holds no boxes"):
        detect(config=config(data, other, tmp_path / "run"))
    del table["annotations"][0]["segmentation"]
    Path(other[1]).write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"1 of 2 boxes have no mask, e.g. in 0.png; `no_masks`"):
        detect(config=config(data, other, tmp_path / "run"))
    for category in table["categories"]:
        category["name"] += "?"
    table["annotations"] = table["annotations"][1:]
    Path(other[1]).write_text(json.dumps(table))
    with pytest.raises(UsageError, match="has no category of"):
        detect(config=config(data, other, tmp_path / "run"))


def test_the_verb_without_masks(squares, tmp_path: Path) -> None:
    images, boxes = squares("plain", 3)
    result = cli.run([
        "detect", "timm:test_vit", "--untrained", "--images", images, "--boxes", boxes,
        "--test-images", images, "--test-boxes", boxes, "--out", str(tmp_path / "run"), "--image-size", "64",
        "--samples", "4", "--batch-size", "2", "--no-masks", "--channels", "8", "--hidden", "16",
        "--device", "cpu",
    ])  # fmt: skip
    assert "mask" not in json.loads((tmp_path / "run" / "results.jsonl").read_text())
    assert "COCO's average precision" in str(result)
    assert (tmp_path / "run" / "detections.html").is_file()


def test_recipes() -> None:
    made = [load_recipe(name, "detect") for name in RECIPES["detect"]]
    assert [(cfg.optim.layer_decay, cfg.drop_path, cfg.epochs) for cfg in made] == [
        (0.7, 0.1, 100), (0.8, 0.4, 100), (0.9, 0.5, 80),
    ]  # fmt: skip
    assert {(cfg.optim.lr, cfg.batch_size, cfg.image_size, cfg.scale) for cfg in made} == {
        (3e-4, 128, 1024, (0.5, 1.25))
    }
