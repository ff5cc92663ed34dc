"""The demo: a budget in time, and the whole way on the pictures that come with catlip."""

from pathlib import Path

import pytest

from catlip.demo import demo as module
from catlip.demo.demo import DemoConfig, demo
from catlip.errors import UsageError


@pytest.mark.parametrize(
    ("rate", "minutes", "expected"), [(700.0, 1.75, 40_000), (150.0, 1.75, 15_750), (700.0, 0.5, 21_000)]
)
def test_samples_follow_from_the_speed(
    rate: float, minutes: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "speed_of", lambda recipe, seconds: rate)
    assert module._recipe(DemoConfig(minutes=minutes), "a.tar", Path("out")).samples == expected


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("this encoder", "untrained encoder", "most frequent label")
    found = demo(DemoConfig(out=str(tmp_path / "demo"), samples=320))
    assert set(found) == {f"{name} {what}" for name in names for what in ("top-1", "mAP")}
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<img") == module.SHEET
    assert "320 samples at 32 px" in capsys.readouterr().out
    with pytest.raises(UsageError, match="already holds a demo"):
        demo(DemoConfig(out=str(tmp_path / "demo")))
