"""Heads on every kind of encoder, loss and mIoU against their definitions, windows, and the verb from end to end."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import catlip
from catlip import cli
from catlip.data.mask_classes import VOID
from catlip.data.maskbatches import MaskBatch, Window
from catlip.errors import UsageError
from catlip.evaluation.result import in_run_folder
from catlip.evaluation.segmentation import confusion, file_names, fit_of, palette
from catlip.models import sliding_window as windows
from catlip.models.encoder import Encoder
from catlip.models.segmenter import (
    DecoderConfig,
    SegmentationCard,
    Segmenter,
    load_segmenter,
    open_encoder,
    save_segmenter,
)
from catlip.objectives.masks import MaskObjective
from catlip.recipes import RECIPES, load_recipe
from catlip.recipes.ade20k import PICTURES
from catlip.tasks.segment import SegmentConfig, segment
from catlip.training.optim import OptimConfig, layer_scales
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from tests.conftest import SHARED, cut_short, write_tar
from tests.test_masks import COLOURS, png, scene, write_folder, write_scenes


def make(name: str, head: DecoderConfig, size: int = 64, classes: int = 3) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(open_encoder(f"timm:{name}", image_size=size, stride=head.stride, untrained=True), classes, head)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "test_vit", "corenet_vit_tiny"])
def test_every_encoder_gives_a_map_at_the_stride(name: str, stride: int) -> None:
    model = make(name, DecoderConfig(stride=stride, head_width=8))  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, 3, 64, 64)
    size = 64 // (min(stride, 16) if "vit" in name else stride)  # a ViT's own map is never made coarser
    assert model.features(x).shape[2:] == (size, size)
    model.train()
    logits = model.logits(x)  # a batch of one, too
    assert logits.shape == (1, 3, 64, 64)
    logits.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())  # as DDP wants it


def test_dilated_and_plain_encoders_have_the_same_weights(tmp_path: Path) -> None:
    """A stride changes how weights are used, not what they are: stride 32 of the dilated model's folder is timm's."""
    torch.manual_seed(0)
    plain = Encoder.create("resnet10t", image_size=64)
    plain.save(tmp_path / "run" / "encoder", nn.Linear(plain.width, 2), label_names=["a", "b"])
    x = torch.randn(1, 3, 64, 64)
    dilated = open_encoder(str(tmp_path / "run"), image_size=64, stride=8)
    same = open_encoder(str(tmp_path / "run"), image_size=64, stride=32)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dilated.parameters(), strict=True))
    assert torch.equal(same.eval().pooled(x), plain.eval().pooled(x))
    assert dilated.eval().backbone.forward_features(x).shape[-1] == 8
    other = open_encoder(str(tmp_path / "run"), image_size=64, stride=32, untrained=True)
    assert not torch.equal(other.pooled(x), plain.pooled(x))


def test_the_official_vit_keeps_its_positions_and_takes_smaller_steps(tmp_path: Path) -> None:
    encoder = Encoder.create("corenet_vit_tiny", image_size=224, arguments={"positions": "1d"})
    encoder.save(tmp_path / "encoder")
    found = open_encoder(str(tmp_path), image_size=64, stride=8)
    assert found.backbone.positions == "1d"
    assert found.backbone.patch_embed.stride == 8
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), found.parameters(), strict=True))


def test_layers_of_the_encoder_learn_at_their_own_rates() -> None:
    task = Task(
        MaskObjective(open_encoder("timm:test_vit", image_size=32, stride=16, untrained=True), 3, DecoderConfig())
    )
    scales = layer_scales(task, 0.5)
    assert scales["objective.encoder.backbone.norm.weight"] == 0.5
    assert not [name for name in scales if ".head." in name]


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [("vit_tiny_patch16_224", 50, "`image_size` 50"), ("resnet10x", 64, "did you mean.*resnet10t")],
)
def test_encoders_that_cannot_be(name: str, size: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(name, DecoderConfig(), size)


def batch_of(masks: Tensor) -> MaskBatch:
    count, size = masks.shape[:2]
    none = torch.empty(0, dtype=torch.int64)
    image = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return MaskBatch(
        image, torch.zeros(count, dtype=torch.bool), none, torch.zeros(count + 1, dtype=torch.int64),
        [[]] * count, [str(i) for i in range(count)], mask=masks,
    )  # fmt: skip


def test_the_loss_and_its_gradient_do_not_depend_on_how_a_batch_is_divided() -> None:
    """Against a loop over pixels, and over shares of every size, void in some pictures, nothing but void in one."""
    encoder = open_encoder("timm:test_vit", image_size=32, stride=16, untrained=True)  # without BatchNorm
    objective = MaskObjective(encoder, 3, DecoderConfig(head="linear")).eval()
    masks = torch.randint(0, 3, (5, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    masks[0, :20], masks[3] = VOID, VOID
    batch = batch_of(masks)

    def gradient(size: int) -> tuple[float, Tensor]:
        objective.zero_grad()
        loss = torch.zeros(())
        for part in batch.split(size):
            share = objective(part)[0] * len(part) / len(batch)
            share.backward()
            loss += share.detach()
        assert isinstance(objective.head, nn.Conv2d)
        assert objective.head.weight.grad is not None
        return loss.item(), objective.head.weight.grad.clone()

    whole, expected = gradient(5)
    with torch.no_grad():
        logs = objective.logits(batch.image).log_softmax(1)
    by_hand = sum(
        -logs[b, int(masks[b, y, x]), y, x].item()
        for b in range(5) for y in range(32) for x in range(32) if masks[b, y, x] != VOID
    )  # fmt: skip
    assert whole == pytest.approx(by_hand / masks.numel(), rel=1e-4)
    for size in (1, 2, 3):
        loss, found = gradient(size)
        assert loss == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def scored(predicted: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """IoU of each class, pixel by pixel."""
    found = []
    for c in range(classes):
        both = either = 0
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != VOID:
                both += p == c and t == c
                either += p == c or t == c
        found.append(100 * both / either if either else math.nan)
    return found


def test_scores_by_hand() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, (20, 30)).astype(np.uint8)
    predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, 3, truth.shape)).astype(np.uint8)
    truth[:3] = VOID
    matrix = confusion(torch.from_numpy(predicted), torch.from_numpy(truth), 5)
    fit = fit_of(matrix)
    by_hand = scored(predicted, truth, 5)
    assert fit.iou == pytest.approx(by_hand, nan_ok=True)
    assert math.isnan(fit.iou[4])
    assert fit.miou == pytest.approx(np.nanmean(by_hand))
    valid = truth != VOID
    assert fit.pixel_accuracy == pytest.approx(100 * (predicted == truth)[valid].mean())
    assert fit.pixels == np.bincount(truth[valid], minlength=5).tolist()
    assert fit.mean_accuracy == pytest.approx(
        np.mean([100 * (predicted == truth)[truth == c].mean() for c in range(4)])
    )
    half = confusion(torch.tensor([[0, 0], [1, 1]]).byte(), torch.tensor([[0, 1], [1, 255]]).byte(), 2)
    assert half.tolist() == [[1, 0], [1, 1]]
    assert fit_of(half).miou == 50


class Colourist(nn.Module):
    """A network that knows the classes' colours, and notes which windows it was shown."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.classes, self.encoder, self.size = len(COLOURS), self, size
        self.colours = nn.Parameter(torch.from_numpy(COLOURS).float())
        self.windows = 0

    def normalize(self, image: Tensor) -> Tensor:
        return image.float()

    def logits(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (self.size, self.size)
        self.windows += len(x)
        return -(x[:, None] - self.colours[None, :, :, None, None]).abs().sum(2)


@pytest.mark.parametrize("shape", [(44, 60), (20, 90), (5, 7), (32, 32), (1, 1), (33, 97)])
def test_windows_cover_pictures_of_any_size(shape: tuple[int, int]) -> None:
    mask = scene(3)[: shape[0], : shape[1]] if shape[0] <= 44 and shape[1] <= 60 else scene(3, shape[1], shape[0])
    model = Colourist(32)
    assert np.array_equal(windows.segment(model, COLOURS[mask], window=32), mask)
    assert model.windows == len(windows.starts(max(shape[0], 32), 32)) * len(windows.starts(max(shape[1], 32), 32))


def test_windows_overlap_by_a_third_and_are_averaged() -> None:
    for length in range(32, 200):
        begins = windows.starts(length, 32)
        assert begins[0] == 0
        assert begins[-1] == length - 32
        assert all(0 < b - a <= 22 for a, b in pairwise(begins))

    class Numbered(Colourist):
        def logits(self, x: Tensor) -> Tensor:  # each window says its own number
            found = torch.arange(self.windows, self.windows + len(x)).float()
            self.windows += len(x)
            return found[:, None, None, None].expand(-1, 4, 32, 32)

    seen = windows.slide(Numbered(32), torch.zeros(3, 32, 70, dtype=torch.uint8), 32)[0, 0]
    by_hand = torch.tensor([
        float(np.mean([i for i, b in enumerate(windows.starts(70, 32)) if b <= x < b + 32])) for x in range(70)
    ])  # fmt: skip
    torch.testing.assert_close(seen, by_hand)


def test_enlarged_logits_are_torchs_own_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 9, 13, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], size=(31, 40), mode="bilinear", align_corners=False)[0].argmax(0)
    for rows in (1, 7, 100):
        monkeypatch.setattr(windows, "ROWS", rows * 4 * 40)
        assert torch.equal(windows._best(logits, 31, 40).long(), expected)


def test_pictures_are_seen_at_the_short_side_and_never_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert windows.seen_at(600, 400, 10, 0) == (600, 400)
    assert windows.seen_at(600, 400, 10, 200) == (300, 200)
    height, width = windows.seen_at(10, 1_000_000, 150, 512)
    assert height * width * 150 <= 1.1 * windows.MAX_LOGITS
    mask = np.repeat(np.repeat(scene(3), 3, 0), 3, 1)
    assert (windows.segment(Colourist(32), COLOURS[mask], window=32, short_side=44) == mask).mean() > 0.97
    monkeypatch.setattr(windows, "MAX_LOGITS", 4 * 44 * 60)
    assert (windows.segment(Colourist(32), COLOURS[mask], window=32) == mask).mean() > 0.97


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    settings = DecoderConfig(stride=8, head_width=8, rates=(1, 2))
    model = make("test_resnet", settings, 32).eval()
    card = SegmentationCard(names=["a", "b", "c"], image_size=32, head={
        "head": "deeplab", "stride": 8, "head_width": 8, "head_dropout": 0.5, "rates": [1, 2],
    })  # fmt: skip
    save_segmenter(tmp_path, model, card)
    trained = load_segmenter(tmp_path, "cpu")
    again, found = trained.model, trained.card
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert found.names == ["a", "b", "c"]
    lying, exif = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8)), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    lying.save(turned := tmp_path / "turned.png", exif=exif)
    masks = [trained(image) for image in (turned, Image.open(turned), np.rot90(lying, -1))]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert masks[0].shape == (40, 20)
    card_file = tmp_path / "segmentation.json"
    card_file.write_text(card_file.read_text().replace('"c"', '"c", "d"'))
    with pytest.raises(UsageError, match="does not fit"):
        load_segmenter(tmp_path)
    with pytest.raises(UsageError, match="holds no segmentation model"):
        load_segmenter(tmp_path / "nowhere")


def config(data: str, out: Path, **changes: object) -> SegmentConfig:
    return SegmentConfig(**{
        "run": "timm:test_resnet", "untrained": True, "train": data, "test": data, "out": str(out), "image_size": 32,
        "samples": 96, "batch_size": 8, "workers": 1, "device": "cpu", "head": DecoderConfig(stride=8, head_width=16),
        "optim": OptimConfig(lr=1e-2), "loop": LoopConfig(ema=0.9, precision="fp32", save_every=32), **changes,
    })  # fmt: skip


def test_the_whole_way_learns(tmp_path: Path) -> None:
    """Colours are classes: after 600 windows the pixels of unseen pictures are named, at their own size."""
    data = write_scenes(tmp_path)
    test = write_scenes(tmp_path, 5, "test", start=100)
    (tmp_path / "names.txt").write_text("street\n<b>red</b>\ngreen\nblue\n")
    cfg = config(
        data, tmp_path / "run", test=test, samples=600, classes=str(tmp_path / "names.txt"), save_masks=True,
        window=Window(scale=(0.8, 1.5)),
    )  # fmt: skip
    run = segment(config=cfg)
    result = run.result
    assert result.miou > 55  # at 32 px most of what is missing is edges
    assert json.loads((tmp_path / "run" / "results.jsonl").read_text()) == result.to_json()
    assert in_run_folder(run, cfg) == tmp_path / "run" / "segmentation.html"
    assert result.iou.keys() == {"street", "<b>red</b>", "green", "blue"}
    page = (tmp_path / "run" / "segmentation.html").read_text()
    assert "&lt;b&gt;red" in page
    assert "<b>red" not in page
    assert page.count("data:image/jpeg") == 5
    trained = catlip.load_segmenter(tmp_path / "run", "cpu")
    assert trained.names == ["street", "<b>red</b>", "green", "blue"]
    for i in range(100, 105):
        written = Image.open(tmp_path / "run" / "masks" / f"{i:04d}.png")
        assert written.mode == "P"
        found = trained(Image.fromarray(COLOURS[scene(i, 60 + i % 3)]))
        assert np.array_equal(np.asarray(written), found)
        assert (found == scene(i, 60 + i % 3)).mean() > 0.75
    (tmp_path / "photo.png").write_bytes(png(COLOURS[scene(1)]))
    assert trained(tmp_path / "photo.png").shape == (44, 60)
    assert catlip.load(tmp_path / "run").architecture == "test_resnet"  # and an encoder for the next task


@pytest.mark.parametrize("head", ["deeplab", "linear"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    data = write_scenes(tmp_path)
    changes = {"head": DecoderConfig(head=head, head_width=16)}  # pyright: ignore[reportArgumentType]
    whole = segment(config=config(data, tmp_path / "whole", **changes)).result
    with cut_short():
        segment(config=config(data, tmp_path / "cut", **changes))
    again = segment(config=config(data, tmp_path / "cut", **changes)).result
    assert whole is not None
    assert again is not None
    for name in ("encoder/model.safetensors", "segmentation.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert {**whole.to_json(), "seconds": 0} == {**again.to_json(), "seconds": 0}
    with pytest.raises(UsageError, match=r"another run.*optim.lr: 0.01 there, 0.5 here"):
        segment(config=config(data, tmp_path / "cut", optim=OptimConfig(lr=0.5), **changes))
    with pytest.raises(UsageError, match="cannot go on with objective"):
        segment(config=config(data, tmp_path / "cut", head=DecoderConfig(head_width=8), accept_changes=True))


def test_a_run_begins_with_the_encoder_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(5)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "run" / "encoder")
    data = write_scenes(tmp_path)
    cfg = config(
        data, tmp_path / "out", run=str(tmp_path / "run"), untrained=False, optim=OptimConfig(lr=0.0), samples=8
    )
    assert segment(config=replace(cfg, loop=LoopConfig(ema=0.0, precision="fp32"))).result is not None
    mine = catlip.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), encoder.parameters(), strict=True))


def test_ades_numbers_come_back_in_the_predictions(tmp_path: Path) -> None:
    """0 is void there, so class 0 is number 1; one picture a part is enough."""
    masks = {"training/a": scene(0) + 1, "validation/b": scene(1) + 1}
    masks["validation/b"][:5] = 0
    folder = write_folder(tmp_path / "ade", "ade", dict(masks))
    found = segment(
        config=config(str(folder), tmp_path / "out", samples=8, save_masks=True, window=Window(short_side=32))
    ).result
    assert found is not None
    assert found.classes == 4
    written = np.asarray(Image.open(tmp_path / "out" / "masks" / "b.png"))
    assert written.shape == (44, 60)
    assert set(np.unique(written)) <= {1, 2, 3, 4}
    assert sum(found.pixels.values()) == 39 * 60
    assert len(found.seen) == 1


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    data = write_scenes(tmp_path)
    more = scene(0)
    more[0, 0] = 9
    other = str(write_tar(tmp_path / "other.tar", {"k.png": png(COLOURS[scene(0)]), "k.seg.png": png(more)}))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    for changes, says in (
        ({"test": other}, r"`test` .*mask of k has the value 9, but the 4 classes are 0\.\.3"),
        ({"classes": str(tmp_path / "names.txt")}, r"has the value 3, but the 3 classes are 0\.\.2"),
        ({"samples": 0}, "`samples`, `epochs` or `hours`"),
        ({"out": ""}, "`out` is missing"), ({"run": "nowhere"}, "nowhere"),
        ({"loop": LoopConfig(compile=True)}, "`compile`"), ({"window": Window(scale=(1.0, 0.1))}, "`scale`"),
        ({"void": (0, 1, 2, 3)}, "not one pixel is of a class"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            segment(config=replace(config(data, tmp_path / "run"), **changes))
        assert not (tmp_path / "run").exists()


def test_classes_without_samples_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("street\nred\ngreen\nblue\nunicorn\n")
    cfg = config(write_scenes(tmp_path), tmp_path / "run", samples=8, classes=str(tmp_path / "names.txt"))
    found = segment(config=cfg).result
    assert "no pixel of 1 classes: unicorn" in capsys.readouterr().out
    assert found is not None
    assert found.classes == 5


def test_the_recipes_are_the_published_ones() -> None:
    for recipe in (load_recipe(name, "segment") for name in RECIPES["segment"]):
        assert (recipe.image_size, recipe.batch_size, recipe.epochs, recipe.loop.precision) == (512, 32, 50, "fp32")
        assert [side * recipe.window.short_side for side in recipe.window.scale] == [256, 768]
        assert (recipe.optim.lr, recipe.optim.lr * recipe.optim.lr_end) == (3e-5, pytest.approx(3e-6))
        assert recipe.optim.warmup * recipe.epochs * PICTURES / recipe.batch_size == pytest.approx(500)
        head = Segmenter(open_encoder("timm:test_vit", image_size=32, stride=8, untrained=True), 150, recipe.head).head
        kernels = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
        assert [(m.dilation[0], m.out_channels) for m in kernels] == [(12, 512), (24, 512), (36, 512)]
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.1]


def test_file_names_stay_in_their_folder() -> None:
    names = file_names(["../../etc/passwd", "a/b", "a_b", "c", "..", "A/B"])
    assert not [name for name in names if "/" in name or name.startswith(".") or not name]
    assert len({name.lower() for name in names}) == 6
    assert names[3] == "c"


def test_the_palette_tells_classes_apart() -> None:
    assert len(np.unique(palette(40)[:40], axis=0)) == 40
    assert palette(40)[VOID].tolist() == [0, 0, 0]


def test_processes_count_as_one(tmp_path: Path) -> None:
    """Three processes train, with shares of 3, 3 and 2 pictures; then 3, 1 and 2 test that model on 7 pictures."""
    data = write_scenes(tmp_path, 7)
    subprocess.run([sys.executable, "-m", "tests.segmenting", data, str(tmp_path)], check=True, timeout=600)
    found = {world: json.loads((tmp_path / str(world) / "results.jsonl").read_text()) for world in (1, 2, 3)}
    pixels = np.bincount(np.concatenate([scene(i, 60 + i % 3).ravel() for i in range(7)]), minlength=4).tolist()
    assert list(found[1]["pixels"].values()) == pixels
    assert min(found[1]["iou"].values()) > 0  # every class is told, so that a pixel counted elsewhere would show
    for world in (2, 3):
        assert {**found[world], "seconds": 0} == {**found[1], "seconds": 0}


def test_the_command_line(tmp_path: Path) -> None:
    data = write_scenes(tmp_path, 4)
    result = cli.run(
        ["segment", "timm:test_resnet", "--untrained", "--train", data, "--test", data, "--out",
         str(tmp_path / "run"), "--head", "linear", "--stride", "16", "--image-size", "32", "--scale", "0.5", "1.0",
         "--samples", "8", "--batch-size", "4", "--workers", "1", "--device", "cpu", "--precision", "fp32"]
    )  # fmt: skip
    assert result.result.head == "linear"
    assert (tmp_path / "run" / "segmentation.html").is_file()


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="shared data is absent")
def test_camvid_a_few_steps(tmp_path: Path) -> None:
    folder = SHARED / "camvid"
    cfg = config(
        str(folder / "val-*.tar"), tmp_path / "run", void=(11,), image_size=64, samples=8, show=2,
        window=Window(short_side=64),
    )  # fmt: skip
    found = segment(config=cfg).result
    assert found is not None
    assert found.classes == 11
    assert len(found.seen) == 2
