"""Relevance maps are what they claim to be, the pointing game against cases by hand, and the page."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from catlip import cli
from catlip.data.coco import read_instances
from catlip.errors import UsageError
from catlip.evaluation.grounding import GroundConfig, Pointer, ground
from catlip.evaluation.relevance import Pointed, area, inside, peak, pointing_game, position_vectors
from catlip.labels.tokenizer import Tokenizer
from catlip.models.dual_encoder import DualEncoder
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.models.weights import load
from tests.conftest import jpeg, write_tar
from tests.test_zero_shot import FRUITS


@pytest.mark.parametrize(
    "name", ["test_resnet", "resnet10t", "test_vit", "convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_one_vector_a_place(name: str) -> None:
    size = 224 if name.startswith("swin") else 160 if name == "test_vit" else 64
    encoder = Encoder.create(name, image_size=size).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found, pooled = position_vectors(encoder, x), encoder.pooled(x)
    assert found.shape[0] == 2
    assert found.shape[1] == found.shape[2] > 1
    assert found.shape[3] == encoder.width
    if "resnet" in name:  # nothing but a mean lies between the places and the classifier
        assert torch.allclose(found.mean((1, 2)), pooled, atol=1e-4)


def test_the_map_is_the_class_activation_map(tmp_path: Path) -> None:
    encoder = Encoder.create("resnet10t", image_size=64)
    encoder.save(tmp_path / "m" / "encoder", nn.Linear(encoder.width, 3), label_names=list(FRUITS.values())[:3])
    encoder = load(tmp_path / "m")
    x, head = torch.randn(1, 3, 64, 64), encoder.backbone.get_classifier()
    with torch.no_grad():
        maps = position_vectors(encoder, x) @ head.weight.T
        assert torch.allclose(maps.mean((1, 2)) + head.bias, encoder.logits(x), atol=1e-4)


def test_a_text_route_goes_to_the_device_whole(tmp_path: Path) -> None:
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "encoder")
    tokenizer = Tokenizer.train(["a dog", "a cat"] * 2, size=520, context=8)
    dual = DualEncoder(encoder, tokenizer, TextConfig(text_width=64, text_layers=1), embed=64, scale=10.0)
    dual.save(tmp_path)
    pointer = Pointer(str(tmp_path), "text", None, ["dog"]).to("meta")
    assert {p.device.type for p in pointer.dual.parameters()} == {"meta"}
    assert {p.device.type for p in pointer.encoder.parameters()} == {"meta"}


def test_peak_inside_and_area() -> None:
    relevance = torch.zeros(4, 8)
    relevance[3, 6] = 1
    assert peak(relevance) == (6.5 / 8, 3.5 / 4)
    assert inside((0.5, 0.5), [(0.6, 0, 1, 1), (0.5, 0.5, 0.6, 0.6)])
    assert not inside((0.49, 0.5), [(0.5, 0.5, 0.6, 0.6)])
    assert area([(0, 0, 0.5, 1), (0.25, 0, 0.5, 1)]) == pytest.approx(0.5)


def test_the_pointing_game_is_a_mean_over_categories() -> None:
    rounds = [
        Pointed("dog", True, False, 0.1, 2), Pointed("dog", False, True, 0.5, 2), Pointed("dog", True, True, 0.1, 1),
        Pointed("cat", False, False, 0.2, 3),
    ]  # fmt: skip
    game = pointing_game(rounds)
    assert game["accuracy"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert game["centre"] == pytest.approx(100 * (2 / 3) / 2)
    assert game["anywhere"] == pytest.approx(100 * (0.7 / 3 + 0.2) / 2)
    assert (game["all"], game["hard"], game["hard_centre"]) == (50, 50, 0)
    assert np.isnan(pointing_game([])["accuracy"])


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "run" / "encoder", nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(jpeg(seed=i))
    table = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 48, "height": 40} for i in range(3)],
        "categories": [{"id": 0, "name": "lemon"}, {"id": 1, "name": "<b>zzxy</b>"}],
        "annotations": [
            {"image_id": 0, "category_id": 0, "bbox": [12, 10, 24, 20]},
            {"image_id": 1, "category_id": 0, "bbox": [0, 0, 48, 40], "iscrowd": 1},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 48, 40]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    return tmp_path


def test_boxes_are_shares_and_crowds_are_left_out(scene: Path) -> None:
    assert read_instances(scene / "boxes.json").boxes() == {
        "0.jpg": {"lemon": [(0.25, 0.25, 0.75, 0.75)]}, "1.jpg": {"<b>zzxy</b>": [(0, 0, 1, 1)]}, "2.jpg": {},
    }  # fmt: skip


def test_the_page(scene: Path) -> None:
    run, photos, boxes = str(scene / "run"), str(scene / "photos"), str(scene / "boxes.json")
    result = cli.run(["ground", run, "--images", photos, "--boxes", boxes])
    html = (scene / "run" / "grounding.html").read_text()
    assert html.count("data:image/jpeg") == 1
    assert "pointing game" in html
    assert json.loads((scene / "run" / "results.jsonl").read_text()) == result.to_json()
    assert result.rounds == 1
    cli.run(["ground", run, "--images", photos, "--phrases", "lemons", "<i>apple</i>"])
    html = (scene / "run" / "grounding.html").read_text()
    assert html.count("data:image/jpeg") == 6
    assert "<i>apple" not in html


def test_boxes_are_of_the_picture_of_the_same_name(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads((scene / "boxes.json").read_text())
    for image, name in zip(table["images"], ("v1/1.jpg", "v2/1.jpg", "1.crop.jpg"), strict=True):
        image["file_name"] = name
    (scene / "boxes.json").write_text(json.dumps(table))
    cfg = GroundConfig(run=str(scene / "run"), images="", boxes=str(scene / "boxes.json"), device="cpu")
    names = {"v2/1.jpg": jpeg(seed=2), "1.crop.jpg": jpeg(seed=3), "v1/1.jpg": jpeg(seed=1)}
    result = ground(config=replace(cfg, images=str(write_tar(scene / "x.tar", names))))
    assert result.rounds == 1
    assert np.array_equal(result.maps[0].pixels, np.asarray(Image.open(io.BytesIO(names["v1/1.jpg"]))))
    assert (
        "boxes.json: 2 boxes of 2 classes in 3 pictures (1 pictures without boxes, 1 crowds)" in capsys.readouterr().out
    )
    with pytest.raises(UsageError, match=r"`boxes` .*boxes\.json: '1' could be 'v1/1\.jpg' or 'v2/1\.jpg'"):
        ground(config=replace(cfg, images=str(write_tar(scene / "y.tar", {"1.jpg": jpeg()}))))
    table["annotations"] = [{**table["annotations"][0], "iscrowd": 1}]
    (scene / "boxes.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"holds no boxes: 0 boxes .* 1 crowds"):
        ground(config=replace(cfg, images=str(scene / "x.tar")))


@pytest.mark.parametrize(("extra", "says"), [
    (["--phrases", "lemon", "--limit", "-1"], "0 or more"), (["--phrases", "lemon", "--show", "-1"], "0 or more"),
    ([], "say what to look for"), (["--phrases", "zzxy"], "no phrase is near a synset"),
    (["--boxes", "nowhere.json"], "no such file"), (["--phrases", "lemon", "--route", "text"], "catlip align"),
])  # fmt: skip
def test_mistakes(extra: list[str], says: str, scene: Path) -> None:
    with pytest.raises(UsageError, match=says):
        cli.run(["ground", str(scene / "run"), "--images", str(scene / "photos"), *extra])
    (scene / "boxes.json").write_text('{"images": []}')
    with pytest.raises(UsageError, match="is no COCO file"):
        read_instances(scene / "boxes.json")
