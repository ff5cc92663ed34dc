"""Pages and charts: one safe file, the same bytes every time, in the colours of the reader's screen."""

import re

from PIL import Image

from catlip import page
from catlip.page import Series, chart

BAD = "<script>alert(1)</script> $x^2$"


def test_a_chart_is_safe_and_the_same_every_time() -> None:
    series = [
        Series(BAD, [(1.0, 2.0), (10.0, 4.0)], spread=[0.5, 0.1]),
        Series("dots", [(2.0, 3.0), (5.0, 1.0)], dots=True, titles=[BAD, "two"]),
        Series("chance", [(1.0, 1.0), (10.0, 1.0)], soft=True),
    ]
    found = chart(series, BAD, "accuracy, %", log_x=True, zero=True, cut=(5.0, BAD)).text
    assert found == chart(series, BAD, "accuracy, %", log_x=True, zero=True, cut=(5.0, BAD)).text
    assert "<script" not in found
    assert "&lt;script" in found
    assert "x^2" in found  # as it is, not as a formula
    assert len(re.findall(r"<title>", found)) == 2
    assert len(set(re.findall(r'<g id="(series-\d)"', found))) == 3


def test_a_chart_follows_the_page_and_reaches_nothing_outside() -> None:
    found = chart([Series("loss", [(0, 2.0), (1, 1.0)])], "samples", "loss").text
    assert found.startswith('<div class="scroll"><svg')
    assert "var(--c0)" in found
    assert not re.search(r"#0[12]01", found)  # no stand-in colour is left
    for outside in ("http", "<style", "font-family", "DOCTYPE"):
        assert outside not in found
    assert "</svg>" in page.page("t", page.Html(found))


def test_without_points_there_is_no_chart() -> None:
    assert chart([Series("loss", [])], "samples", "loss").text == ""


def test_a_single_point_and_numbers_of_any_size() -> None:
    found = chart([Series("lr", [(5_000_000, 3e-5)])], "samples", "learning rate", zero=True).text
    assert "e-5" in found
    assert ">5M<" in found


def test_a_drawing_is_a_picture_in_the_page() -> None:
    found = page.drawing(Image.new("RGB", (4, 4)), '"quoted"').text
    assert found.startswith('<img alt="&quot;quoted&quot;" src="data:image/jpeg;base64,/9j/')
