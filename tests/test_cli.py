"""The command line as a user meets it: what it says, with which exit code, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest

from catlip import cli

ROOT = Path(__file__).parents[1]


def catlip(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "catlip.cli", *args], capture_output=True, text=True, cwd=ROOT)


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.split(".")[0] for name in found.stdout.split("\n")[-2].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import catlip",
        "import catlip.captions",
        "from catlip import Labeler, Vocabulary; Labeler()(['a dog'])",
        "from catlip import cli; cli.run(['--help'])",
        "from catlip import cli; cli.run(['explain', 'a dog'])",
        "import catlip.data.sources, catlip.data.corpus, catlip.data.pack",
    ],
)
def test_no_torch_is_imported(statement: str) -> None:
    assert not imported_by(statement) & {"torch", "timm", "torchvision"}


def test_help_imports_next_to_nothing() -> None:
    found = imported_by("from catlip import cli; cli.run(['--help'])")
    assert not found & {"tyro", "numpy", "pyarrow", "daft", "PIL"}


def test_help_lists_every_verb() -> None:
    shown = catlip("--help")
    assert shown.returncode == 0
    assert all(verb in shown.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.run([*verb.split(), "--help"])
    assert "usage: catlip " + verb in capsys.readouterr().out


def test_pretrain_has_the_flags_that_scripts_rely_on(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.run(["pretrain", "flickr8k_cpu", "--help"])
    flags = set(capsys.readouterr().out.split())
    assert {"--samples", "--save-every", "--lr", "--batch-size", "--data", "--vocab", "--out"} <= flags
    assert {"--hours", "--micro-batch", "--held-out", "--probe", "--patch-keep", "--scales", "--init"} <= flags


@pytest.mark.parametrize(
    ("budget", "is_"), [(["--hours", "2"], (0, 0, 2)), (["--epochs=3"], (0, 3, 0)), ([], (90_000, 0, 0))]
)
def test_a_given_budget_takes_the_recipes_place(budget: list[str], is_: tuple, monkeypatch) -> None:
    from catlip.training import pretrain

    monkeypatch.setattr(pretrain, "pretrain", lambda cfg: (cfg.samples, cfg.epochs, cfg.hours))
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["pretrain", "flickr8k_cpu", "--data", "d", "--vocab", "v", "--out", "o", *budget]) == is_


def test_explain() -> None:
    shown = catlip("explain", "a man riding a bike past a fire hydrant")
    assert shown.returncode == 0
    assert "n03346898 fireplug" in shown.stdout
    assert "3 labels: bicycle (n02834778), fireplug (n03346898), man (n10287213)" in shown.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["vocb"], "no verb 'vocb', did you mean 'vocab'?"),
        (["vocab", "nope-*.tar"], "no file matches 'nope-*.tar'"),
        (["vocab", "--data", "nope.tar"], "no such file: nope.tar"),
        (["pretrain", "--data", "x.tar"], "name a recipe"),
        (["pretrain", "flickr8k_gpu"], "did you mean 'flickr8k_cpu'"),
        (["pretrain", "mine.py:run"], "no such recipe file: mine.py"),
        (["pretrain", "flickr8k_cpu", "--vocab", "v.tsv", "--out", "runs/x"], "--data is missing"),
        (
            ["pretrain", "flickr8k_cpu", "--data", "nope.tar", "--vocab", "nope.tsv", "--out", "x"],
            "no such vocabulary: nope.tsv",
        ),
        (["probe", "runs/nope", "--train", "a.tar", "--test", "b.tar"], "no such file: a.tar"),
        (["detect", "runs/nope", "--recipe", "mask_rcnn_b16"], "--images is missing"),
        (["segment", "runs/nope", "--recipe", "ade20k"], "no recipe 'ade20k', did you mean 'ade20k_"),
        (["pack", "nope.csv", "--out", "x"], "no such file: nope.csv"),
        (["explain", "a dog", "--lexicon", "nope.tsv"], "--lexicon: no such file"),
        (["report", "nope.tar", "--vocab", "nope.tsv"], "no such vocabulary"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(args: list[str], says: str) -> None:
    shown = catlip(*args)
    assert shown.returncode == 2
    assert says in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert "Traceback" not in shown.stderr


def test_an_unknown_flag_exits_with_2() -> None:
    shown = catlip("explain", "a dog", "--rul", "nouns")
    assert shown.returncode == 2
    assert "--rule" in shown.stdout + shown.stderr
