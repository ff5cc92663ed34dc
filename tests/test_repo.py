"""What the repository says of itself is true."""

import re
import subprocess
from pathlib import Path

import pytest

from catlip import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def package() -> set[str]:
    files = (path.relative_to(ROOT / "catlip") for path in (ROOT / "catlip").rglob("*.py"))
    return {str(file) for file in files if file.name != "__init__.py"}


def mapped() -> set[str]:
    """Files of README's map: lines are indented by room, several names may stand on one."""
    block = README.split("```\ncatlip/\n")[1].split("\ntools/")[0]
    found, room = set(), ""
    for line in block.splitlines():
        if folder := re.match(r"  (\w+)/", line):
            room = folder.group(1)
        elif line.startswith("    "):
            names = re.match(r"    ((?:[\w/]+\.py ?)+)", line)
            found |= {f"{room}/{name}" for name in names.group(1).split()} if names else set()
        elif files := re.match(r"  ((?:\w+\.py ?)+)", line):
            found |= set(files.group(1).split())
    return found


def test_the_map_is_the_package() -> None:
    assert mapped() == package()


def test_readme_is_short_and_its_verbs_exist() -> None:
    assert len(README.splitlines()) <= 150
    for text in (README, *(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md"))):
        assert set(re.findall(r"^catlip (\w+)", text, re.MULTILINE)) <= {verb.split()[0] for verb in cli.VERBS}


def test_every_file_opens_with_a_docstring() -> None:
    silent = [file for file in package() if not (ROOT / "catlip" / file).read_text(encoding="utf-8").startswith('"""')]
    assert silent == []


def test_the_demos_sample_is_small_and_as_indexed() -> None:
    import hashlib
    import json

    sample = ROOT / "catlip" / "demo" / "sample"
    index = json.loads((sample / "index.json").read_text())
    assert sum(file.stat().st_size for file in sample.iterdir()) <= 6_000_000
    for name, entry in index.items():
        assert hashlib.sha256((sample / name).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_nothing_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert not [name for name in tracked if name.endswith(("uv.lock", "package-lock.json", ".part", ".DS_Store"))]
