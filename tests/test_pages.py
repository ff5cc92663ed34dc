"""Pages in a browser: no console error, no request that leaves them, readable at 400 pixels, names for screen readers.
Also with what nobody would write on purpose."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import catlip
from catlip import Vocabulary
from catlip.data.objects import Objects
from catlip.demo.demo import DemoConfig, demo
from catlip.evaluation.detection import DetectedImage, DetectionResult
from catlip.evaluation.grounding import GroundResult, RelevanceMap
from catlip.evaluation.learning_curve import CurveResult
from catlip.evaluation.segmentation import Seen, SegmentationResult
from catlip.evaluation.zero_shot import ZeroShotResult
from catlip.labels.labeler import Labeler
from catlip.models.encoder import Encoder
from catlip.report import comparison
from catlip.report.comparison import ComparedRun, summarise
from catlip.report.label_report import label_report
from tests.browser import CHROMIUM, Browser
from tests.conftest import COLOURS, jpeg

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
HTML = '<script>alert(1)</script><img src=//example.org/x.png onerror=alert(2)></table></details> a dog & "a cat" '


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("profile")
    with Browser(folder) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


def pairs(count: int = 60, text: str = "one {} and nothing else") -> list[tuple[bytes, str]]:
    colours = list(COLOURS.items())
    return [(jpeg(colours[i % 4][1], seed=i), text.format(colours[i % 4][0])) for i in range(count)]


def assert_right(browser: Browser, page: Path) -> None:
    for width in (400, 1300):
        assert browser.look(page, width).faults == [], f"{page.name} at {width} px"


def test_the_browser_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        '<!doctype html><html><body><img src="https://example.invalid/x.png"><div style="width:900px">x</div>'
        "<script>console.error('oh'); nothing.there</script></body></html>"
    )
    said = "\n".join(browser.look(tmp_path / "bad.html", 400).faults)
    for fault in ("oh", "nothing is not defined", "requests https://example.invalid", "sticks out", "no name", "title"):
        assert fault in said


def test_labels_of_a_corpus_and_their_search(browser: Browser, tmp_path: Path) -> None:
    data = catlip.open(pairs(), fingerprint="pairs")
    vocabulary = Vocabulary.count(data)
    page = label_report(vocabulary, data, tmp_path / "labels.html", min_count=2)
    assert_right(browser, page)
    first = browser.evaluate("document.querySelector('.grid').getBoundingClientRect().top")
    assert first < 300, "pictures are on the first screen"
    found = browser.evaluate(
        "(() => { const q = document.getElementById('search'); q.value = 'LEM'; q.dispatchEvent(new Event('input'));"
        "const rows = [...document.querySelectorAll('#searched tr')].slice(1).filter(row => !row.hidden);"
        "return [document.getElementById('shown').textContent, ...rows.map(row => row.cells[0].textContent)] })()"
    )
    assert found == ["1 of 4", "lemon"]
    assert_right(browser, vocabulary.report(tmp_path / "alone.html", min_count=2))


def test_captions_that_are_html_and_labels_by_the_thousand(browser: Browser, tmp_path: Path) -> None:
    data = catlip.open([*pairs(8), (jpeg(), HTML * 10_000), (jpeg(seed=1), "x" * 1_000_000)], fingerprint="bad")
    page = label_report(Vocabulary.count(data), data, tmp_path / "<b>bad.html")
    assert page.stat().st_size < 1_000_000
    assert_right(browser, page)
    labeler = Labeler()
    counts = {synset: 20_000 - i for i, synset in enumerate(labeler.synsets[:10_000])}
    many = Vocabulary.from_counts(counts, labeler, samples=20_000, captions=20_000, source=HTML)
    assert_right(browser, label_report(many, None, tmp_path / "many.html"))
    assert browser.evaluate("document.querySelectorAll('#searched tr').length") == 10_001


def test_labels_of_one_name_stand_together(tmp_path: Path) -> None:
    labeler = Labeler()
    two = {"n02012849": 5, "n03126707": 4, "n02084071": 3}  # the bird, the machine, a dog
    vocabulary = Vocabulary.from_counts(two, labeler, samples=9, captions=9, source="")
    assert len({name for name in vocabulary.names if "crane" in name}) >= 1
    text = label_report(vocabulary, None, tmp_path / "v.html").read_text()
    assert ("Labels of one name" in text) == (vocabulary.names.count("crane") == 2)


def test_pages_of_runs_and_of_what_is_measured(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Encoder.create("test_resnet", image_size=32)
    data = catlip.open(pairs(120), fingerprint="pairs")
    small = {"samples": 64, "batch_size": 16, "workers": 1, "device": "cpu"}
    words = Vocabulary.count(data, min_count=2)
    run = catlip.pretrain(
        data, words, backbone="test_resnet", image_size=32, out=str(tmp_path / "run"), held_out=data, **small
    )
    from catlip.report.run_report import write_report

    assert_right(browser, write_report(run.out))
    adapted = catlip.adapt(start, data, out=str(tmp_path / "adapted"), **small)
    for i, (name, colour) in enumerate(list(COLOURS.items()) * 6):
        path = tmp_path / "photos" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(-20, 20, (40, 40, 3))
        Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    photos = str(tmp_path / "photos")
    results = {
        "adapt": adapted.result,
        "probe": catlip.probe(run, photos, photos),
        "zero": catlip.zero_shot(run, photos),
    }
    for name, result in results.items():
        (tmp_path / f"{name}.html").write_text(result.to_html(), encoding="utf-8")
        assert_right(browser, tmp_path / f"{name}.html")


# What nobody would write on purpose: HTML, quotes, marks that turn the reading direction, a word without an end.
BAD_NAMES = [
    HTML,
    "\"double\" 'single' `back` &amp;",
    "\u202eright to left \u05d0\u05d1\u05d2",
    "x" * 5_000,
    "",
    "\ud800",
]


def test_detections(browser: Browser, tmp_path: Path) -> None:
    scores: dict[str, float | None] = dict.fromkeys(("AP", "AP50", "AP75", "small", "medium", "large"))
    told = {"classes": 3, "train": 1, "test": 1, "image_size": 64, "data": ["a", "b"], "detections": 0}
    pixels = np.zeros((40, 60, 3), np.uint8)
    boxes = np.array([[2, 2, 30, 30]], np.float32)
    one = np.zeros(1)
    shown = []
    for name in BAD_NAMES:
        truth = Objects(1, name, 60, 40, boxes, one.astype(int), one > 0, one + 784, [None])
        found = [{"score": 0.9, "bbox": [0.0, 0.0, 70.0, 0.0], "category_id": 7}, {"score": 0.1, "category_id": 7}]
        shown.append(DetectedImage(pixels, truth, found, {7: name}))
    result = DetectionResult(encoder=HTML, box=scores, mask=scores, shown=shown, **told)
    assert_right(browser, result.write_html(tmp_path / "many.html"))
    assert_right(browser, replace(result, shown=[]).write_html(tmp_path / "none.html"))


def test_masks(browser: Browser, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    names = [*BAD_NAMES, *(f"class {i}" for i in range(200))]
    masks = noise.integers(0, len(names), (2, 30, 400)).astype(np.uint8)
    pixels = noise.integers(0, 255, (30, 400, 3), dtype=np.uint8)
    seen = [Seen(name, pixels, masks[0], masks[1], float("nan")) for name in BAD_NAMES]
    told = {"miou": 1.0, "mean_accuracy": 2.0, "pixel_accuracy": 3.0, "classes": len(names), "train": 1, "test": 1}
    told |= {"samples": 1, "epochs": None, "head": "linear", "stride": 8, "image_size": 64, "short_side": 0}
    result = SegmentationResult(
        encoder=HTML, iou=dict.fromkeys(names), pixels=dict.fromkeys(names, 0), data=["a", "b"], seen=seen, **told
    )
    assert_right(browser, result.write_html(tmp_path / "many.html"))
    assert_right(browser, replace(result, seen=[]).write_html(tmp_path / "none.html"))


def test_maps_of_phrases(browser: Browser, tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    maps = [RelevanceMap(name, pixels, torch.zeros(1, 1), [(0.0, 0.0, 1.0, 1.0)], (0.5, 0.5)) for name in BAD_NAMES]
    lost = {f"noun {i}": "missing" for i in range(10_000)} | dict.fromkeys(BAD_NAMES, "missing")
    told = {"route": "head", "pictures": 1, "images": "a", "boxes": None, "image_size": 64}
    result = GroundResult(encoder=HTML, maps=maps, names=lost, **told)
    page = result.write_html(tmp_path / "many.html")
    assert page.stat().st_size < 500_000
    assert_right(browser, page)
    assert_right(browser, replace(result, maps=[], names={}).write_html(tmp_path / "none.html"))


def test_a_comparison(browser: Browser, tmp_path: Path) -> None:
    judges = {name: {"measure": "top-1", "value": 50.0, "each": [1.0, 0.0], "knn": None} for name in BAD_NAMES}
    runs = [
        ComparedRun(kind, name, 1e-3, batch_size, 64, seed=0, judges=judges)
        for name in BAD_NAMES
        for kind, batch_size in (("runs", 64), ("equal_time", 64), ("batch_sizes", 64), ("batch_sizes", 8))
    ]
    speeds = dict.fromkeys(BAD_NAMES, 100.0)
    page = comparison.write_report(tmp_path, runs, summarise(runs, speeds, HTML), HTML, HTML)
    assert_right(browser, page)
    alone = summarise(runs[:1], speeds, HTML)
    assert_right(browser, comparison.write_report(tmp_path, runs[:1], alone, "one run", HTML))


def test_the_demo(browser: Browser, tmp_path: Path) -> None:
    demo(DemoConfig(out=str(tmp_path / "demo"), samples=64))
    assert_right(browser, tmp_path / "demo" / "index.html")


def test_tables_of_10_000_classes_and_of_none(browser: Browser, tmp_path: Path) -> None:
    names = [*BAD_NAMES, *(f"class {i}" for i in range(10_000))]
    told = {"pictures": 1, "data": "a", "image_size": 64, "calibrate": "none"}
    accuracies = {"top1": 1.0, "top5": 2.0, "mean_per_class": 3.0}
    found = dict.fromkeys(names, f"exact: {HTML}")
    result = ZeroShotResult(encoder=HTML, head=accuracies, classes=len(names), names=found, alike=[names], **told)
    page = result.write_html(tmp_path / "many.html")
    assert page.stat().st_size < 5_000_000
    assert_right(browser, page)
    assert_right(browser, replace(result, names={}, classes=1).write_html(tmp_path / "none.html"))
    curve = [{"told": HTML, "share": 1.0, "pictures": 1, "random": [50.0]}]
    told = {"classes": 2, "test": 1, "image_size": 64, "data": ["a", "b"]}
    assert_right(browser, CurveResult(encoder=HTML, curve=curve, **told).write_html(tmp_path / "curve.html"))
