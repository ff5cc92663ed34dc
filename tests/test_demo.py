"""The demo: a budget in time, and the whole way on the pictures that come with catlip."""

from pathlib import Path

import pytest

from catlip.demo import demo as module
from catlip.demo.demo import Demo, demo
from catlip.errors import UsageError


@pytest.mark.parametrize(
    ("rates", "minutes", "expected"),
    [
        ({48: 400.0}, 1.75, (48, 40_000)),  # a CPU with bf16
        ({48: 300.0}, 1.75, (48, 31_500)),
        ({48: 100.0, 32: 220.0}, 1.75, (32, 23_100)),  # one without, and ten years old
        ({48: 400.0, 32: 900.0}, 0.5, (32, 27_000)),
    ],
)
def test_samples_and_size_follow_from_the_speed(
    rates: dict[int, float], minutes: float, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "speed_of", lambda recipe, seconds: rates[recipe.image_size])
    recipe = module._recipe(Demo(minutes=minutes), "a.tar", Path("out"))
    assert (recipe.image_size, recipe.samples) == expected


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("this encoder", "untrained encoder", "most frequent label")
    found = demo(Demo(out=str(tmp_path / "demo"), samples=320))
    assert set(found) == {f"{name} {what}" for name in names for what in ("top-1", "mAP")}
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<img") == module.SHEET
    assert "320 samples at 48 px" in capsys.readouterr().out
    with pytest.raises(UsageError, match="already holds a demo"):
        demo(Demo(out=str(tmp_path / "demo")))
