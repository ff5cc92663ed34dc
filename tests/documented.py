"""Code blocks of README.md and docs/, for the tests that run them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str, section: str = "") -> list[str]:
    """The blocks of a page, or of one of its sections."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(page: Path, section: str = "") -> list[list[str]]:
    """The arguments of every `catlip` command of a page, without comments and redirections."""
    found = []
    for block in blocks(page, "bash", section):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["catlip"]:
                found.append(words[1 : next((i for i, word in enumerate(words) if word[:1] == ">"), len(words))])
    return found
