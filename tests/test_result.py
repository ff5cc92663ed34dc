"""Results are values: they print, save and draw themselves; and every evaluation takes what people have in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from catlip import page
from catlip.data.dataset import Dataset, Sample
from catlip.errors import UsageError
from catlip.evaluation.bias import bias
from catlip.evaluation.classification import ClassificationResult
from catlip.evaluation.detection import DetectionResult
from catlip.evaluation.grounding import ground
from catlip.evaluation.learning_curve import CurveResult
from catlip.evaluation.probe import ProbeResult, probe
from catlip.evaluation.result import NOT_SAVED, Result, Table, beside_encoder, in_run_folder
from catlip.evaluation.retrieval import RetrievalResult, retrieve
from catlip.evaluation.segmentation import Seen, SegmentationResult
from catlip.evaluation.svm_probe import MultiLabelProbeResult
from catlip.evaluation.zero_shot import ZeroShotResult, zero_shot
from catlip.models.encoder import Encoder
from catlip.models.weights import load
from tests.conftest import COLOURS
from tests.test_zero_shot import FRUITS

BAD = "<script>alert(1)</script>"


@dataclass(kw_only=True)
class Counted(Result):
    task: ClassVar[str] = "count"
    heading: ClassVar[str] = "Counted"
    page_name: ClassVar[str] = "count.html"

    number: int | None
    extra: int = 0
    inner: list[int] = field(default_factory=list, metadata=NOT_SAVED)

    def tables(self) -> list[Table]:
        rows = [["number", str(self.number)], ["a longer name", "1", "beside"]]
        return [Table(f"{self.encoder}: counted", rows, ["", "all"], "a note"), Table("parts", [[BAD, "2"]])]

    def drawings(self) -> list[page.Html]:
        return [page.paragraph("drawn")]


def test_a_table_is_aligned_and_a_page_is_safe() -> None:
    result = Counted(encoder=BAD, number=12)
    assert str(result) == "\n".join(
        [
            f"{BAD}: counted",
            "                 all",
            "  number          12",
            "  a longer name    1  beside",
            "  a note",
            "parts",
            f"  {BAD}  2",
        ]
    )
    for html in (result.to_html(), result._repr_html_()):
        assert "<script" not in html
        assert "http" not in html
        assert "a longer name" in html
    assert "drawn" in result.to_html()
    assert "<!doctype" not in result._repr_html_()


def test_the_json_has_what_is_always_there_and_what_says_something() -> None:
    result = Counted(encoder="e", number=None, inner=[1])
    assert result.to_json() == {"task": "count", "encoder": "e", "seconds": 0.0, "number": None}
    result = Counted(encoder="e", number=None, extra=3, unreadable={"data": 1})
    assert (result.to_json()["extra"], result.to_json()["unreadable"]) == (3, {"data": 1})


def test_results_are_saved_beside_a_run_but_not_beside_an_encoder_in_memory(tmp_path: Path) -> None:
    Encoder.create("test_resnet", image_size=32).save(tmp_path / "encoder")
    result = Counted(encoder="e", number=1)
    encoder = load(tmp_path)
    assert result.saved(encoder) is result
    assert not (tmp_path / "results.jsonl").exists()
    result.saved(str(tmp_path)).saved(SimpleNamespace(out=tmp_path, encoder=encoder))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [result.to_json()] * 2


def test_a_page_is_written_where_the_verb_says(tmp_path: Path) -> None:
    result, out = Counted(encoder="e", number=1), tmp_path / "run"
    settings = SimpleNamespace(run=str(tmp_path), out=None)
    assert beside_encoder(result, settings) == tmp_path / "count.html"
    assert beside_encoder(result, SimpleNamespace(run=str(tmp_path), out=str(out / "x.html"))) == out / "x.html"
    assert in_run_folder(SimpleNamespace(result=result), SimpleNamespace(out=str(out))) == out / "count.html"
    assert in_run_folder(SimpleNamespace(result=None), SimpleNamespace(out=str(out))) is None  # a run that was stopped
    assert (out / "x.html").read_text() == (out / "count.html").read_text() == result.to_html()


COUNTS = {"encoder": "runs/a", "classes": 2, "train": 9, "test": 9, "image_size": 64, "data": ["a", "b"]}


@pytest.mark.parametrize("result", [
    ProbeResult(linear_probe=50.0, knn=40.0, penalty=0.1, **COUNTS),
    MultiLabelProbeResult(mAP=50.0, mAP_voc07=51.0, mAP_micro=52.0, F1_macro=1.0, F1_micro=2.0, left_out=1,
                          costs=[1.0], per_class={BAD: 3.0}, **COUNTS),
    ClassificationResult(top1=50.0, mean_per_class=49.0, fraction=1.0, head="random", wise=1.0, backbone="vit",
                         names={BAD: BAD}, baseline=20.0, **COUNTS),
    ClassificationResult(mAP=50.0, mAP_error=0.25, fraction=1.0, head="random", wise=1.0, backbone="vit", **COUNTS),
    DetectionResult(box={"AP": 50.0, "small": None}, mask={"AP": 40.0, "small": None}, detections=3, **COUNTS),
    SegmentationResult(miou=50.0, mean_accuracy=40.0, pixel_accuracy=60.0, samples=None, epochs=1.0, head="linear",
                       stride=16, short_side=0, iou={BAD: 50.0, "b": None}, pixels={BAD: 9, "b": 0}, **COUNTS),
], ids=lambda result: type(result).__name__)  # fmt: skip
def test_every_result_prints_and_draws_itself(result: Result) -> None:
    assert json.loads(json.dumps(result.to_json())) == result.to_json()
    assert "50.00 %" in str(result)
    assert "<script" not in result.to_html()
    assert "50.00 %" in result._repr_html_()


def test_a_curve_draws_those_that_stand_beside_it() -> None:
    point = {"told": "10 %", "share": 0.1, "pictures": 5, "random": [20.0, 30.0]}
    probed = {"task": "probe", "encoder": "runs/a", "classes": 4, "curve": [point]}
    result = CurveResult(encoder="runs/a", classes=4, test=9, image_size=64, data=["a", "b"], curve=[point])
    assert set(result.to_json()) == {"task", "classes", "test", "image_size", "data", "encoder", "curve"}
    assert "25.00 ± 7.07 %" in str(result)
    assert result.to_html().count('<g id="series-') == 1
    result.beside = [probed]
    html = result.to_html()
    assert html.count('<g id="series-') == 2
    assert "probe, random start" in html


def test_masks_are_drawn_beside_the_image_and_void_is_not() -> None:
    pixels = np.full((4, 6, 3), 100, np.uint8)
    truth = np.array([[0, 1, 255, 0, 0, 0]] * 4, np.uint8)
    drawn = np.asarray(Seen("k", pixels, truth, np.zeros_like(truth), 50.0).drawn(np.array([[0, 0, 0], [250, 0, 0]])))
    assert drawn.shape == (4, 3 * 6 + 2 * 6, 3)
    left = drawn[0, 2 * (6 + 6) :]  # the truth stands on the right
    assert left[1].tolist() == [190, 40, 40]
    assert left[2].tolist() == [100, 100, 100]


# objects instead of paths


class Coloured(Dataset):
    """Images in memory, with captions and classes."""

    def __init__(self, count: int, seed: int) -> None:
        self.classes, self.multi, self.name = list(COLOURS), False, "coloured"
        self.labels, self.offsets = np.arange(count) % len(COLOURS), np.arange(count + 1)
        noise = np.random.default_rng(seed).integers(-25, 25, (count, 32, 32, 3))
        colours = np.array(list(COLOURS.values()))[self.labels][:, None, None]
        self.images = np.clip(colours + noise, 0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        return Sample(str(index), self.images[index], [f"one {self.classes[label]}"], (label,))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder.create("test_resnet", image_size=32).eval()
    made.backbone.reset_classifier(4)
    nn.init.normal_(made.backbone.get_classifier().weight)
    made.labels, made.names = list(FRUITS.values()), list(FRUITS)
    return made


def test_an_encoder_and_images_in_memory_are_enough(encoder: Encoder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = Coloured(80, 0), Coloured(40, 1)
    probed = probe(encoder, train, test, device="cpu")
    assert isinstance(probed, ProbeResult)
    assert probed.linear_probe > 90
    assert (probed.encoder, probed.data) == ("test_resnet", ["coloured", "coloured"])
    nouns = [test.classes[label] for label in test.labels]
    pairs = [(Image.fromarray(image), noun) for image, noun in zip(test.images, nouns, strict=True)]
    listed = probe(encoder, train, pairs, device="cpu")
    assert isinstance(listed, ProbeResult)
    assert listed.linear_probe == probed.linear_probe
    named = zero_shot(encoder, test, device="cpu")
    assert named.matched == {"exact": 4}
    assert zero_shot(encoder, test, classes=list(COLOURS), device="cpu").head == named.head
    assert retrieve(encoder, test, device="cpu").captions == 40
    leaning = bias(encoder, test, pairs=[("apple", "lemon")], targets=["lake", "lawn"], device="cpu")
    assert leaning.groups == [10, 10]
    found = ground(encoder, test, phrases=("apple",), show=2, device="cpu")
    assert (found.pictures, len(found.maps)) == (40, 2)
    assert found.maps[0].drawn().size == (32, 32)
    assert list(tmp_path.iterdir()) == []  # nothing is written for an encoder in memory


def test_the_callers_encoder_keeps_its_size(encoder: Encoder) -> None:
    assert zero_shot(encoder, Coloured(8, 0), image_size=64, device="cpu").image_size == 64
    assert encoder.image_size == 32


def test_settings_have_names(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="there is no setting `rute`, did you mean 'route'"):
        zero_shot(encoder, Coloured(8, 0), rute="head")
    with pytest.raises(UsageError, match="`data` is missing"):
        retrieve(encoder)


def test_the_command_line_prints_the_result_and_writes_the_page(
    encoder: Encoder, coloured_shards: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from catlip import cli

    head = encoder.backbone.get_classifier()
    encoder.save(tmp_path / "run" / "encoder", head, label_names=encoder.labels)
    train, test = coloured_shards(40, 1, "learn", cls=True), coloured_shards(12, 1, "test", cls=True)
    probing = ["probe", str(tmp_path / "run"), "--train", train, "--test", test, "--device", "cpu"]
    result = cli.run(probing)
    said = capsys.readouterr().out
    assert str(result) in said
    assert "efficiency.html" not in said
    cli.run([*probing, "--shots", "1,2", "--seeds", "2"])
    assert f"{tmp_path / 'run' / 'efficiency.html'}" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "run" / "efficiency.html").read_text()


def test_results_as_clip_benchmark_names_them() -> None:
    recalls = {"r@1": 10.0, "r@5": 50.0, "r@10": 100.0, "median_rank": 2.0}
    route = {"image_to_text": recalls, "text_to_image": recalls | {"r@1": 20.0}}
    told = {"encoder": "runs/a", "data": "test.tar", "image_size": 64, "pictures": 9}
    accuracies = {"top1": 25.0, "top5": 75.0, "mean_per_class": 12.5}
    zero = ZeroShotResult(head=accuracies, classes=9, calibrate="none", **told)
    found = {
        "zeroshot_classification": zero,
        "zeroshot_retrieval": RetrievalResult(head=recalls, text=route, captions=9, **told),
        "linear_probe": ProbeResult(
            encoder="runs/a", linear_probe=50.0, knn=1.0, penalty=1.0, classes=9, train=9, test=9, image_size=64,
            data=["train.tar", "test.tar"],
        ),
    }  # fmt: skip
    told = {task: result.to_clip_benchmark() for task, result in found.items()}
    for task, one in told.items():
        assert list(one) == ["dataset", "model", "pretrained", "task", "metrics", "language"]
        assert (one["dataset"], one["pretrained"], one["task"]) == ("test.tar", "runs/a", task)
    assert told["zeroshot_classification"]["metrics"] == {"acc1": 0.25, "acc5": 0.75, "mean_per_class_recall": 0.125}
    assert told["zeroshot_retrieval"]["metrics"] == {
        "image_retrieval_recall@1": 0.2, "text_retrieval_recall@1": 0.1, "image_retrieval_recall@5": 0.5,
        "text_retrieval_recall@5": 0.5, "image_retrieval_recall@10": 1.0, "text_retrieval_recall@10": 1.0,
    }  # fmt: skip
    assert told["zeroshot_retrieval"]["model"] == "catlip text"
    assert told["linear_probe"]["metrics"] == {"acc1": 0.5}
    assert replace(zero, classes=4).to_clip_benchmark()["metrics"]["acc5"] is None
    with pytest.raises(UsageError, match="no name"):
        Counted(encoder="a", number=1).to_clip_benchmark()
