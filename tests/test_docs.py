"""The documentation is true: its commands are understood, and every block of a page runs, from top to bottom.

As it is written but for sizes, in a folder with the files that pages speak of (tests/toy.py). What cannot run says so
in a comment before its block (tests/documented.py) and is listed here as skipped, with the reason.
"""

import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

import catlip
from catlip import cli
from tests.documented import PAGES, blocks
from tests.toy import NOUNS, make_world

SKIPPED = [(page, line, why) for page in PAGES for block in blocks(page) for line, why in block.skipped.items()]
TRAINING = "--samples 48 --batch-size 16 --workers 1 --device cpu"
# What is given instead of a verb's own sizes.
SMALL = {
    "doctor": "--seconds 0.01 --processes 0",
    "vocab": "--min-count 2 --workers 1",
    "label": "--workers 1",
    "balance": "--workers 1",
    "bench data": "--seconds 0.05 --image-size 32 --batch-size 16 --workers 1 --device cpu",
    "pretrain": f"{TRAINING} --backbone test_resnet --image-size 32 --patch-keep 1",
    "head": f"{TRAINING} --min-count 2",
    "adapt": f"{TRAINING} --min-count 2",
    "align": "--steps 2 --batch-size 8 --workers 1 --device cpu",
    "finetune": f"{TRAINING} --image-size 32",
    "detect": "--samples 4 --batch-size 2 --workers 1 --device cpu --image-size 64 --channels 16 --hidden 32 "
    "--mask-layers 1 --anchors 8 16 32 48 64 --proposals 30 --regions 16",
    "segment": f"{TRAINING} --image-size 32 --head linear --stride 8",
}
# And where one of these is given, with any verb.
FEWER = {"--fractions": "0.5,1", "--seeds": "1", "--shots": "1,2"}
BUDGETS = {"--samples", "--epochs", "--hours", "--steps"}
# The same for blocks of Python: text, and what stands there instead.
LESS = {
    "hours=6": "samples=8, batch_size=4, device='cpu'",
    "samples=1_000_000": "samples=8, batch_size=4, workers=1, device='cpu', image_size=32, backbone='test_resnet'",
    '"vit_small_patch16_224"': '"test_resnet"',
    '"resnet50"': '"test_resnet"',
    "min_count=500": "min_count=2",
    "range(1000)": "range(40)",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All verbs, settings and values of the documentation are those of the command line; nothing is carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_look", lambda *_: None)
    for verb in cli.VERBS.values():
        monkeypatch.setattr(f"{verb.module}.{verb.function}", wraps(verb.opened()[0])(lambda config: None))
    for args in [args for block in blocks(page) for args in block.commands()]:
        if "..." in args or any(".py:" in arg for arg in args):
            assert args[0] in {verb.split()[0] for verb in cli.VERBS}
            continue
        try:
            cli.run(args)
        except (SystemExit, catlip.errors.UsageError) as error:
            pytest.fail(f"{page.name}: catlip {' '.join(args)}: {error}")


def smaller(args: list[str]) -> list[str]:
    """A command with the sizes of tests: what is given twice is left out of the original."""
    verb = " ".join(args[:2]) if " ".join(args[:2]) in SMALL else args[0]
    fewer = [part for flag in set(FEWER) & set(args) for part in (flag, FEWER[flag])]
    instead = [*SMALL.get(verb, "").split(), *fewer]
    replaced = {word for word in instead if word.startswith("--")}
    replaced |= BUDGETS if replaced & BUDGETS else set()
    kept, leaving = [], False
    for word in args:
        leaving = word in replaced if word.startswith("--") else leaving
        kept += [] if leaving else [word]
    return kept + instead


def less(text: str) -> str:
    """A block of Python with the sizes of tests."""
    for word, instead in LESS.items():
        text = text.replace(word, instead)
    return text


def carry_out(args: list[str], made: set[str]) -> None:
    """A command; a folder that it is to make and that is there from the beginning goes first."""
    out = args[args.index("--out") + 1] if "--out" in args else ""
    if out and out not in made:
        shutil.rmtree(out, ignore_errors=True)
    made.add(out)
    cli.run(smaller(args))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = make_world(tmp_path, page.read_text(encoding="utf-8"))
    made: set[str] = set()
    for block in blocks(page):
        for args in block.commands(skipped=False):
            carry_out(args, made)
        if block.language == "python":
            exec(compile(less(block.python), f"<block of {page.name}>", "exec"), scope)
        elif block.language == "" and page.name == "adapt.md":
            Path("findings.tsv").write_text(block.text)
    CHECKS.get(page.name, lambda scope: None)(scope)


@pytest.mark.parametrize(("page", "line", "why"), SKIPPED, ids=lambda value: getattr(value, "name", value))
def test_what_is_not_run(page: Path, line: str, why: str) -> None:
    """For `pytest -rs`."""
    pytest.skip(f"{page.name}, {line or 'a block'}: {why}")


def tutorial(scope: dict[str, Any]) -> None:
    for made in ("labels.html", "runs/mine/adapt.html", "runs/fresh/report.html", "vectors.parquet"):
        assert Path(made).is_file()
    assert scope["vectors"].num_rows == 2


def adapt(scope: dict[str, Any]) -> None:
    vocabulary = catlip.Vocabulary.load("findings-vocab.tsv")
    counts = dict(zip(vocabulary.synsets, vocabulary.counts, strict=True))
    names = ("effusion", "consolidation", "pneumothorax", "cardiomegaly")
    assert [counts.get(name) for name in names] == [12, 12, 12, 12]  # what is denied does not count
    assert "cardiomegaly" in catlip.load("runs/chest").labels
    assert "cat" in catlip.load("runs/shop").names


def python(scope: dict[str, Any]) -> None:
    assert scope["model"].labels == list(NOUNS)
    assert any("spread" in line for line in catlip.Run(Path("runs/c"), 8).log)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {"tutorial.md": tutorial, "adapt.md": adapt, "python.md": python}
