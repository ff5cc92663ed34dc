"""The map of images: who is where, by whose labels, the same every time; looked at in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import catlip
from catlip.errors import UsageError
from catlip.models.encoder import Encoder
from catlip.report.atlas import COLUMNS, LARGEST, PIXELS, SCALE, _sheets, project, ranked, thumbnail_side
from tests.browser import CHROMIUM, Browser
from tests.conftest import COLOURS, jpeg
from tests.test_pages import BAD_NAMES, HTML, assert_right


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder.create("test_resnet", image_size=32)


def pairs(count: int) -> list[tuple[bytes, str]]:
    names = list(COLOURS)
    return [(jpeg(COLOURS[names[i % 4]], seed=i), f"one {names[i % 4]} and nothing else") for i in range(count)]


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="atlas">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=30))
@settings(deadline=None)
def test_labels_are_numbered_by_use_and_stay_with_their_image(labels: list[list[str]]) -> None:
    names, counts, numbers = ranked(labels)
    assert [{names[number] for number in some} for some in numbers] == [set(some) for some in labels]
    assert counts == sorted(counts, reverse=True) == [sum(name in some for some in labels) for name in names]
    assert all(some == sorted(some) for some in numbers)  # the first, which gives the colour, is the most used


@pytest.mark.parametrize("count", [1, 2, 4, 5, 60])
def test_any_number_of_images_has_a_place_in_the_square(count: int) -> None:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    found = project(x)
    assert found.shape == (count, 2)
    assert found.min() >= 0
    assert found.max() <= SCALE
    assert (found == project(x)).all()
    assert (project(torch.ones(count, 8)) == project(torch.ones(count, 8))).all()


def test_what_is_alike_is_near() -> None:
    groups = torch.arange(90) % 3
    x = 5 * torch.eye(3, 8)[groups] + 0.1 * torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    found = project(x).astype(float)
    far = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(far, np.inf)
    assert (groups[far.argmin(1)] == groups).all()
    with pytest.raises(UsageError, match="not finite"):
        project(torch.full((3, 2), torch.nan))


def test_thumbnails_lie_where_the_page_looks_for_them() -> None:
    count = COLUMNS * COLUMNS + 1
    shades = [Image.new("RGB", (8, 8), (i % 251, i % 251, i % 251)) for i in range(count)]
    found = re.findall(r'<img class="sheet" hidden alt="" src="data:image/jpeg;base64,([^"]*)">', _sheets(shades, 8))
    sheets = [np.array(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]
    assert [sheet.shape[:2] for sheet in sheets] == [(8 * COLUMNS, 8 * COLUMNS), (8, 8)]
    for i in (0, 1, COLUMNS, COLUMNS + 5, count - 1):
        sheet, cell = sheets[i // COLUMNS**2], i % COLUMNS**2
        assert abs(int(sheet[cell // COLUMNS * 8 + 4, cell % COLUMNS * 8 + 4, 0]) - i % 251) < 4
    assert thumbnail_side(10) == LARGEST
    assert all(n * thumbnail_side(n) ** 2 <= PIXELS for n in (1, 1600, 10_000, 123_456))


def test_order_labels_and_sample(encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = [*pairs(8), (b"no picture", "a lake"), *pairs(200)[9:]]
    first = data_of(catlip.atlas(encoder, some, out=str(tmp_path / "a"), device="cpu"))
    assert len(first["keys"]) == 199
    told = [[first["names"][label] for label in labels] for labels in first["labels"]]
    assert all(label in caption for [label], caption in zip(told, first["captions"], strict=True))
    assert first == data_of(catlip.atlas(encoder, some, out=str(tmp_path / "b"), device="cpu"))
    part = catlip.atlas(encoder, pairs(200), out=str(tmp_path / "c"), limit=50, device="cpu")
    assert "a random part of 200" in part.read_text()
    whole = dict(zip(first["keys"], first["captions"], strict=True))
    drawn = data_of(part)
    assert len(drawn["keys"]) == 50
    assert all(
        whole.get(key, caption) == caption for key, caption in zip(drawn["keys"], drawn["captions"], strict=True)
    )
    with pytest.raises(UsageError, match="already holds"):
        catlip.atlas(encoder, some, out=str(tmp_path / "a"))


def test_labels_are_of_classes_or_the_encoders_own(encoder: Encoder, tmp_path: Path) -> None:
    for i, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(jpeg(colour))
    by_class = data_of(catlip.atlas(encoder, tmp_path / "photos", out=str(tmp_path / "a"), device="cpu"))
    assert [by_class["names"][label] for [label] in by_class["labels"]] == list(COLOURS)
    encoder.save(tmp_path / "run" / "encoder", nn.Linear(encoder.width, 2), label_names=["lake", "lemon"])
    flat = [tmp_path / "photos" / name / f"{i}.jpg" for i, name in enumerate(COLOURS)]
    page = catlip.atlas(tmp_path / "run", flat, out=str(tmp_path / "b"), device="cpu")
    assert sorted(data_of(page)["names"]) == ["lake", "lemon"]
    assert "best labels" in page.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("profile")
    with Browser(folder) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


def test_the_page_in_a_browser(browser: Browser, encoder: Encoder, tmp_path: Path) -> None:
    page = catlip.atlas(encoder, pairs(48), out=str(tmp_path / "a"), device="cpu")
    assert_right(browser, page)
    assert browser.evaluate("document.querySelectorAll('#legend button').length") == 4
    told = "document.getElementById('count').textContent"
    assert browser.evaluate(told) == "48 of 48"
    browser.evaluate("(() => { const f = document.getElementById('find'); f.value = 'Lemon'; "
                     "f.dispatchEvent(new Event('input')) })()")  # fmt: skip
    assert browser.evaluate(told) == "12 of 48"
    assert browser.evaluate("document.querySelectorAll('#matches button').length") == 12
    browser.evaluate("document.getElementById('map').focus()")
    caption = "document.querySelector('#panel .caption')?.textContent"
    for key in ("ArrowRight", "ArrowLeft", "+"):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert "lemon" in browser.evaluate(caption)
    browser.evaluate("document.querySelector('#legend button').click()")
    assert browser.evaluate(told) == "12 of 48"
    browser.evaluate("document.querySelector('#matches button').click()")
    assert browser.evaluate(caption) == browser.evaluate(
        "document.querySelector('#matches canvas').getAttribute('aria-label')"
    )
    shown = browser.evaluate("(() => { const c = document.getElementById('map'); return c.getContext('2d')"
                             ".getImageData(0, 0, c.width, c.height).data.some(v => v) })()")  # fmt: skip
    assert shown


def test_names_that_nobody_would_choose(browser: Browser, encoder: Encoder, tmp_path: Path) -> None:
    bad = [*BAD_NAMES, HTML * 10_000, "</script><!-- <script>"]
    page = catlip.atlas(encoder, [(jpeg(seed=i), text) for i, text in enumerate(bad)], out=str(tmp_path / "a"))
    assert page.stat().st_size < 200_000
    assert_right(browser, page)
    assert_right(browser, catlip.atlas(encoder, [(jpeg(), "")], out=str(tmp_path / "b")))
