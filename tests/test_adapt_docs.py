"""The worked examples of docs/adapt.md run as they are written, on pictures made for the purpose."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import catlip
from catlip import cli
from catlip.models.encoder import Encoder
from tests.documented import ROOT, blocks, commands

PAGE = ROOT / "docs" / "adapt.md"
FINDINGS = {"pleural effusion": 220, "consolidation": 160, "pneumothorax": 40, "enlarged heart": 100}
ITEMS = {"shirt": (200, 30, 30), "sofa": (30, 60, 200), "shoe": (30, 160, 40), "lamp": (230, 210, 40)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Encoder.create("test_resnet", image_size=32).save("START")
    return tmp_path


def picture(path: Path, colour, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 40, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def carried_out(args: list[str]) -> None:
    if args[0] in ("adapt", "head"):
        args = [*args, "--samples", "64", "--batch-size", "16", "--workers", "1", "--device", "cpu"]
    cli.run(args)


def test_reports(here: Path) -> None:
    names = list(FINDINGS)
    rows = ["image,report"]
    for i in range(120):
        there, absent = names[i % 4], names[(i + 1) % 4]
        picture(here / "scans" / f"{i}.png", (FINDINGS[there],) * 3, i)
        rows.append(f'scans/{i}.png,"{there.capitalize()}. No {absent}."')
    Path("reports.csv").write_text("\n".join(rows))
    Path("findings.tsv").write_text(blocks(PAGE, "", "Example: reports")[0])
    for args in commands(PAGE, "Example: reports"):
        carried_out(args)
    vocabulary = catlip.Vocabulary.load("findings-vocab.tsv")
    counts = dict(zip(vocabulary.synsets, vocabulary.counts, strict=True))
    assert {name: counts.get(name) for name in ("effusion", "consolidation", "pneumothorax", "cardiomegaly")} == {
        "effusion": 30, "consolidation": 30, "pneumothorax": 30, "cardiomegaly": 30,
    }  # fmt: skip  # what is denied does not count
    assert "cardiomegaly" in catlip.load("runs/chest").labels


def test_a_catalogue(here: Path) -> None:
    rows = ["image,title"]
    for i in range(120):
        name, colour = list(ITEMS.items())[i % 4]
        picture(here / "products" / f"{i}.png", colour, i)
        rows.append(f"products/{i}.png,a {name} for the home")
        picture(here / "general" / name / f"{i}.png", colour, 1000 + i)
    Path("products.csv").write_text("\n".join(rows))
    for args in commands(PAGE, "Example: a catalogue"):
        carried_out(args)
    assert Path("products.parquet").is_file()
    assert Path("runs/shop/adapt.html").is_file()
    assert set(ITEMS) <= set(catlip.load("runs/shop").names)
