"""An installation without torch: what it does, what it says where it cannot, and what its wheel asks for."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from catlip import errors
from tests.conftest import jpeg

ROOT = Path(__file__).parents[1]


ABSENT = f"""
import sys

class Absent:  # not None in sys.modules: tyro looks there
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(errors.TORCH_SIDE)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(ROOT)!r})
"""


def without_torch(code: str, folder: Path) -> str:
    """The output of a program in an environment that lacks what catlip-labels leaves out."""
    done = subprocess.run([sys.executable, "-c", ABSENT + code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rows = ["image,text"]
    for i, caption in enumerate(["a dog on a lawn", "two cats and a lemon", "running fast", "a dog and a cat"]):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(seed=i))
        rows.append(f"{i}.jpg,{caption}")
    (tmp_path / "p.csv").write_text("\n".join(rows))
    return tmp_path


def test_the_labelling_verbs_run_without_torch(pictures: Path) -> None:
    verbs = [
        "explain 'a man riding a bike'",
        "explain 'a man riding a bike' --rule corenet",
        "pack p.csv --out shards --size 32",
        "vocab shards --out v.tsv --workers 1",
        "vocab p.csv --out w.tsv --rule corenet",
        "label p.csv --out labels --vocab v.tsv",
        "report shards --vocab v.tsv --out labels.html",
        "balance p.csv --vocab v.tsv --out balanced",
        "slurm --nodes 1 -- vocab shards --out v.tsv",
    ]
    code = f"import shlex\nfrom catlip import cli\nfor verb in {verbs!r}: cli.run(shlex.split(verb))"
    said = without_torch(code, pictures)
    assert "2 labels: bicycle" in said
    assert "Search labels" in (pictures / "labels.html").read_text()
    assert (pictures / "labels").is_dir()
    assert without_torch("from catlip import cli\ncli.run(['--help'])", pictures)


def test_python_labels_without_torch(pictures: Path) -> None:
    code = """
import catlip
data = catlip.open("p.csv")
vocabulary = catlip.Vocabulary.count(data)
vocabulary.report("labels.html", data)
print(vocabulary.names)
"""
    assert "['dog', 'cat', 'lemon', 'lawn']" in without_torch(code, pictures)


def test_what_needs_torch_says_what_to_install(pictures: Path) -> None:
    (pictures / "v.tsv").write_text("")
    code = """
import catlip
from catlip import cli
for verb in (["pretrain", "flickr8k_cpu", "--help"], ["demo"], ["bench", "data", "p.csv"], ["plan", "budget_b16"],
             ["probe", "p.csv", "--train", "p.csv", "--test", "p.csv"], ["convert", "p.csv", "--out", "o"]):
    try:
        cli.run(verb)
    except catlip.errors.UsageError as error:
        print(error)
try:
    catlip.pretrain
except catlip.errors.UsageError as error:
    print(error)
"""
    said = without_torch(code, pictures).splitlines()
    assert len(said) == 7
    for line in said:
        assert re.match(
            r"(catlip [a-z ]+|catlip\.pretrain) needs \w+, which is not installed: `pip install catlip` ", line
        )


def test_catlip_labels_asks_for_less_of_the_same() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "tools" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    text = build.with_version((ROOT / "pyproject.toml").read_text(encoding="utf-8"), "1.2.3")
    full, labels = tomllib.loads(text)["project"], tomllib.loads(build.labels_project(text))["project"]
    assert (full["name"], labels["name"]) == ("catlip", "catlip-labels")
    assert set(labels["dependencies"]) < set(full["dependencies"])
    assert set(labels["optional-dependencies"]) == {"ray"}
    left = {re.split(r"[>=<]", one)[0] for one in set(full["dependencies"]) - set(labels["dependencies"])}
    assert {name.replace("-", "_") for name in left} == errors.TORCH_SIDE
    for key in ("version", "scripts", "requires-python"):
        assert labels[key] == full[key]


def test_a_tree_that_is_not_installed_has_a_version() -> None:
    code = "import sys\nsys.path.insert(0, {!r})\nimport catlip\nprint(catlip.__version__)"
    done = subprocess.run([sys.executable, "-S", "-c", code.format(str(ROOT))], capture_output=True, text=True)
    assert done.stdout == "0+unknown\n"
