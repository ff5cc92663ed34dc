"""The command line as a user meets it: what it says, with which exit code, and what it does not import."""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from unittest import mock

import pytest

from catlip import Labeler, Vocabulary, cli
from catlip.completion import flag_names, settings_of
from catlip.errors import UsageError
from catlip.labels import labeler
from tests.conftest import jpeg

ROOT = Path(__file__).parents[1]


def catlip(*args: str) -> subprocess.CompletedProcess[str]:
    """In this process: another one would import torch anew."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["catlip", *args]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.split(".")[0] for name in found.stdout.split("\n")[-2].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import catlip",
        "import catlip.labels",
        "from catlip import Labeler, Vocabulary; Labeler()(['a dog'])",
        "from catlip import cli; cli.run(['--help'])",
        "from catlip import cli; cli.run(['explain', 'a dog'])",
        "import catlip.data.open, catlip.data.corpus, catlip.data.pack",
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
    assert {"--hours", "--micro-batch", "--held-out", "--probe", "--patch-keep", "--scales", "--start"} <= flags


@pytest.mark.parametrize(
    ("budget", "is_"), [(["--hours", "2"], (0, 0, 2)), (["--epochs=3"], (0, 3, 0)), ([], (90_000, 0, 0))]
)
def test_a_given_budget_takes_the_recipes_place(budget: list[str], is_: tuple, tmp_path: Path, monkeypatch) -> None:
    from catlip.tasks import pretrain

    told = wraps(pretrain.pretrain)(lambda config: (config.samples, config.epochs, config.hours))
    monkeypatch.setattr(pretrain, "pretrain", told)
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["pretrain", "flickr8k_cpu", "--data", str(tmp_path), "--out", "o", *budget]) == is_


def test_explain() -> None:
    shown = catlip("explain", "a man riding a bike past a fire hydrant")
    assert shown.returncode == 0
    assert "n03346898 fireplug" in shown.stdout
    assert "3 labels: bicycle (n02834778), fireplug (n03346898), man (n10287213)" in shown.stdout


MISTAKES = (
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
        (["probe", "timm:resnet10t", "--train", "a.tar", "--test", "b.tar"], "no such file: a.tar"),
        (["detect", "runs/nope", "--recipe", "mask_rcnn_b16"], "--images is missing"),
        (["segment", "runs/nope", "--recipe", "ade20k"], "no recipe 'ade20k', did you mean 'ade20k_"),
        (["pack", "nope.csv", "--out", "x"], "no such file: nope.csv"),
        (["explain", "a dog", "--lexicon", "nope.tsv"], "--lexicon: no such file"),
        (["report", "nope.tar", "--vocab", "nope.tsv"], "no such vocabulary"),
        (["pretrain", "--recipe=flickr8k_gpu"], "did you mean 'flickr8k_cpu'"),
        (["pretrain", "--recipe"], "--recipe needs a name"),
        (["pretrain", "flickr8k_cpu", "--recipe=flickr8k_clip", "--data", "x"], "--recipe is given 2 times"),
        (["finetune", "runs/nope", "--recipe=flickr8k_cpu"], "there are imagenet_224"),
        (["finetune", "--train", "a", "--test", "b"], "--run is missing"),
        (["export", "runs/nope"], "runs/nope is no run"),
        (["align", "timm:resnet10t", "--data", "nope.tar", "--out", "x"], "no such file: nope.tar"),
        (["predict", "runs/mine"], "--photo is missing"),
        (["plan", "budget_16"], "did you mean 'budget_b16'"),
        (["detect", "timm:x", "--images", "tests", "--boxes=b.json", "--test_images", "t", "--test-boxes", "u",
          "--out", "x"], "--boxes: no such file: b.json"),
    ]
)  # fmt: skip


@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_mistakes_end_with_one_line_and_exit_code_2(args: list[str], says: str) -> None:
    shown = catlip(*args)
    assert shown.returncode == 2
    assert says in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert "Traceback" not in shown.stderr


def line_of(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What a command that is refused says: one line, exit code 2."""
    monkeypatch.setattr(sys, "argv", ["catlip", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("verb", ["pack", "vocab", "label", "report"])
@pytest.mark.parametrize("out", ["/proc/no/where", "FILE/below", "FILE"])
def test_an_out_that_cannot_be_written(
    verb: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if (verb, out) in (("vocab", "FILE"), ("report", "FILE")):
        return  # a file is what they write
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "t.csv").write_text("image,text\n1.jpg,a dog\n")
    (tmp_path / "file").write_text("mine")
    counted = Vocabulary.from_counts({"n02084071": 3}, Labeler(), samples=3, captions=3, source="")
    counted.save(tmp_path / "vocab.tsv")
    out = out.replace("FILE", str(tmp_path / "file"))
    args = [
        verb,
        str(tmp_path / "t.csv"),
        "--out",
        out,
        *(["--vocab", str(tmp_path / "vocab.tsv")] * (verb == "report")),
    ]
    assert line_of(args, monkeypatch, capsys).startswith(f"catlip: {Path(out).parent if verb != 'pack' else ''}")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jpg", "file", "t.csv", "vocab.tsv"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Files of more than 20 kB cannot be written: as on a full disk, some of the work is done when it fails."""
    rows = ["image,text"]
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(seed=i, size=(96, 96)))
        rows.append(f"{i}.jpg,a dog")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    (tmp_path / "v.tsv.part").symlink_to("/dev/full")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        said = line_of(["pack", str(tmp_path / "t.csv"), "--out", str(tmp_path / "s")], monkeypatch, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said == f"catlip: {tmp_path}/s/000000.tar: File too large\n"
    assert not (tmp_path / "s").exists()
    said = line_of(["vocab", str(tmp_path / "t.csv"), "--out", str(tmp_path / "v.tsv")], monkeypatch, capsys)
    assert said == f"catlip: {tmp_path}/v.tsv: No space left on device\n"
    assert not list(tmp_path.glob("v.tsv*"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (ConnectionError("the host is away\nand more"), "the host is away"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    @wraps(labeler.explain)
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr(labeler, "explain", fail)
    assert says in line_of(["explain", "a dog"], monkeypatch, capsys)


def test_other_errors_are_ours_and_show_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labeler, "explain", wraps(labeler.explain)(lambda config: {}["no"]))
    monkeypatch.setattr(sys, "argv", ["catlip", "explain", "a dog"])
    with pytest.raises(KeyError):
        cli.main()


def test_mistakes_are_told_before_torch_is_imported() -> None:
    tell = f"""
from catlip import cli
for args, says in {MISTAKES!r}:
    try:
        cli.run(args)
        raise SystemExit("not refused: " + repr(args))
    except ValueError as error:
        assert says in str(error), (args, error)
"""
    assert not imported_by(f"exec({tell!r})") & {"torch", "timm"}


@pytest.mark.parametrize("verb", cli.NEEDS)
def test_what_a_verb_needs_is_what_its_settings_have_no_default_for(verb: str) -> None:
    _, settings = cli.VERBS[verb].opened()
    needed = {f.name for f in fields(settings) if f.default is MISSING and f.default_factory is MISSING}
    assert set(cli.NEEDS[verb].split()) == needed - ({"vocab"} if verb == "pretrain" else set())


@pytest.mark.parametrize(
    "objective", [["--objective=clip"], ["--objective", "clip"], ["--objective=clip", "--lr=0.5"]], ids=str
)
@pytest.mark.parametrize("recipe", [["flickr8k_cpu"], ["--recipe=flickr8k_cpu"], ["--recipe", "flickr8k_cpu"]], ids=str)
def test_recipe_and_objective_are_understood_as_people_write_them(
    recipe: list[str], objective: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catlip.tasks import pretrain

    (tmp_path / "d.tar").touch()
    monkeypatch.setattr(pretrain, "pretrain", wraps(pretrain.pretrain)(lambda config: config))
    monkeypatch.setenv("RANK", "1")
    rest = ["--out", "o", "--batch_size", "7", "--data", str(tmp_path / "d.tar")]
    first = recipe if len(recipe) == 1 and recipe[0][0] != "-" else []
    found = cli.run(["pretrain", *first, *objective, *rest, *([] if first else recipe)])
    assert (found.objective.embed, found.batch_size, found.backbone) == (512, 7, "resnet10t")
    assert found.optim.lr == (0.5 if len(objective) == 2 and "=" in objective[1] else 3e-3)
    for twice in (["--objective", "clip", "--objective=siglip"], ["--objective"], ["--objective", "--lr", "1"]):
        with pytest.raises(UsageError, match="--objective"):
            cli.run(["pretrain", *first, *twice, *rest, *([] if first else recipe)])
    with pytest.raises(UsageError, match="no 'clap'"):
        cli.run(["pretrain", "flickr8k_cpu", "--objective=clap", *rest])


def test_an_unknown_flag_exits_with_2() -> None:
    shown = catlip("explain", "a dog", "--rul", "nouns")
    assert shown.returncode == 2
    assert "--rule" in shown.stdout + shown.stderr


def test_json_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Results as JSON, alone on stdout; nothing on the way where quiet is asked for."""
    (tmp_path / "t.csv").write_text("image,text\n1.jpg,a dog\n2.jpg,a dog and a cat\n")
    verb = ["vocab", str(tmp_path / "t.csv"), "--out", str(tmp_path / "v.tsv")]
    cli.run([*verb, "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["counts"] == [2, 1]
    assert "2 samples" in said.err
    cli.run([*verb, "--quiet", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["names"] == ["dog", "cat"]
    assert said.err == ""
    cli.run([*verb, "--quiet"])
    assert capsys.readouterr().out.startswith("Vocabulary of 2 labels")
    cli.run(["slurm", "--nodes", "2", "--", "vocab", "x"])
    assert capsys.readouterr().out.startswith("#!/bin/bash")


def test_results_as_json() -> None:
    from catlip.evaluation.retrieval import RetrievalResult
    from catlip.training.run import Run

    result = Run(out=Path("runs/a"), samples=7, result={"loss": float("nan"), "auc": [1.0, float("inf")]})
    told = {"out": "runs/a", "samples": 7, "seconds": 0.0, "stopped": "", "result": {"loss": None, "auc": [1.0, None]}}
    assert cli.as_json(result) == told
    assert cli.as_json(Path("a/b")) == "a/b"
    assert hasattr(RetrievalResult, "to_json")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.run(["--completion", shell])
    script = capsys.readouterr().out
    assert all(verb.split()[0] in script for verb in cli.VERBS)
    assert "flickr8k_cpu" in script
    with pytest.raises(UsageError, match="--completion bash"):
        cli.run(["--completion", "csh"])
    if shell == "bash":
        (tmp_path / "c.sh").write_text(script)
        ask = "source c.sh; COMP_WORDS=(catlip {}); COMP_CWORD={}; _catlip; echo ${{COMPREPLY[@]}}"
        asked = {"pretr": "pretrain", "pretrain flickr8k_cp": "flickr8k_cpu", "vocab c": "c.sh", "vocab --q": "--quiet"}
        asked |= {
            "embed runs/mine --tok": "--tokens",
            "pretrain x --micro": "--micro-batch",
            "bench data --b": "--batch-size --blur",
        }
        for words, answer in asked.items():
            command = ["bash", "-c", ask.format(words, len(words.split()))]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert done.stdout.strip() == answer


@pytest.mark.parametrize("verb", ["embed", "vocab", "zeroshot", "detect", "bench data"])
def test_completed_flags_are_those_of_help(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.run([*verb.split(), "--help"])
    shown = set(re.findall(r"^\W*--([a-z][\w-]*)", capsys.readouterr().out, flags=re.MULTILINE))
    assert set(flag_names(settings_of(cli.VERBS)[verb])) == shown - {"help"}


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("script")), reason="util-linux makes the terminal")
@pytest.mark.parametrize("colour", [True, False])
def test_no_color(colour: bool, tmp_path: Path) -> None:
    """--help on a terminal, as `script` makes one."""
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "" if colour else "1", "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m catlip.cli explain --help"
    done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, env=environment, cwd=tmp_path)
    assert (b"\x1b[" in done.stdout) == colour
