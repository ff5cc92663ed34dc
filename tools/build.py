#!/usr/bin/env python3
"""Wheels and sdists of both distributions, into dist/: `catlip`, and `catlip-labels`, the same without torch.

catlip-labels is for machines that only label captions or pack pictures. It has its own name and not an extra, since an
extra can add dependencies and never take them away, and `pip install catlip` has to bring everything. Both install the
package `catlip`: an environment has one or the other.

    uv run --no-project tools/build.py [--out dist]
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BELOW = "    # What follows is not in catlip-labels"


def _replaced(text: str, pattern: str, by: str) -> str:
    """The text with its first match replaced; ^ and $ are the ends of lines."""
    text, found = re.subn(pattern, by, text, count=1, flags=re.MULTILINE)
    assert found == 1, f"pyproject.toml has changed its form: {pattern}"
    return text


def with_version(text: str, version: str) -> str:
    """pyproject.toml with its version written down, so that what is built from it needs no git."""
    return _replaced(text, r'^dynamic = \["version"\].*$', f'version = "{version}"')


def labels_project(text: str) -> str:
    """pyproject.toml of catlip-labels, from catlip's: fewer dependencies, no extras, no pictures of the demo."""
    said = "Captions to WordNet synsets, vocabularies and packed pictures: catlip without torch"
    text = _replaced(text, r'^name = "catlip"$', 'name = "catlip-labels"')
    text = _replaced(text, r'^description = "[^"]*"$', f'description = "{said}"')
    text = _replaced(text, rf"^{re.escape(BELOW)}(?s:.*?)^\]$", "]")
    extras = r"^\[project\.optional-dependencies\]$(?s:.*?)(?=^ray = )(^ray = [^\n]*\n)(?s:.*?)(?=^\[)"
    text = _replaced(text, extras, r"[project.optional-dependencies]\n\1\n")
    text = _replaced(text, r'^packages = \["catlip"\]$', 'packages = ["catlip"]\nexclude = ["catlip/demo/sample"]')
    return text.replace(', "catlip/demo/sample/LICENSES.md"', "")


def build(out: Path) -> None:
    """Build both from the committed files. Nothing of the clock or of the machine is in them: hatchling takes care."""
    out.mkdir(parents=True, exist_ok=True)
    ask = ["uv", "run", "--quiet", "--no-project", "--with", "hatchling", "--with", "hatch-vcs", "hatchling", "version"]
    version = subprocess.run(ask, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("catlip", "catlip-labels"):
            tree = Path(folder, name)
            tree.mkdir()
            archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x"], cwd=tree, input=archive.stdout, check=True)
            project = with_version((tree / "pyproject.toml").read_text(encoding="utf-8"), version)
            if name == "catlip-labels":
                project = labels_project(project)
                shutil.rmtree(tree / "catlip" / "demo" / "sample")
            (tree / "pyproject.toml").write_text(project, encoding="utf-8")
            subprocess.run(["uv", "build", "--quiet", "--out-dir", out.absolute()], cwd=tree, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    build(parser.parse_args().out)
