"""The documentation is true: its commands are understood, its tutorial runs as written, its Python is Python."""

import ast
import csv
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import catlip
from catlip import cli
from catlip.models.encoder import Encoder
from tests.conftest import COLOURS, jpeg
from tests.documented import PAGES, ROOT, blocks, commands

TUTORIAL = ROOT / "docs" / "tutorial.md"
SMALL = ["--samples", "64", "--batch-size", "16", "--workers", "1", "--device", "cpu"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All verbs, settings and values of the documentation are those of the command line; nothing is carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_look", lambda *_: None)
    for verb in cli.VERBS.values():
        monkeypatch.setattr(import_module(verb.module), verb.function, lambda config: None)
    for args in commands(page):
        if "..." in args or any(".py:" in arg for arg in args):
            assert args[0] in {verb.split()[0] for verb in cli.VERBS}
            continue
        try:
            cli.run(args)
        except (SystemExit, catlip.errors.UsageError) as error:
            pytest.fail(f"{page.name}: catlip {' '.join(args)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word but for the size of the trainings, on pictures whose colour is their noun."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Encoder.create("test_resnet", image_size=32).save("START")
    (tmp_path / "photos").mkdir()
    with open("pictures.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i in range(120):
            noun, colour = list(COLOURS.items())[i % 4]
            Path("photos", f"{i}.jpg").write_bytes(jpeg(colour, seed=i))
            rows.writerow([f"photos/{i}.jpg", f"one {noun} and nothing else"])
    small: dict[str, list[str]] = {
        "doctor": ["--seconds", "0.01", "--processes", "0"],
        "adapt": SMALL,
        "pretrain": [*SMALL, "--image-size", "32", "--backbone", "test_resnet"],
    }
    for args in commands(TUTORIAL):
        cli.run([*args, *small.get(args[0], [])])
    for made in ("labels.html", "runs/mine/adapt.html", "runs/fresh/report.html", "vectors.parquet"):
        assert Path(made).is_file()
    scope: dict[str, Any] = {}
    for block in blocks(TUTORIAL, "python"):
        exec(compile(block, str(TUTORIAL), "exec"), scope)
    assert scope["vectors"].num_rows == 2
