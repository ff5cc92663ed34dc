"""Code blocks of README.md and docs/, for the tests that run them.

A comment before a block, which no reader sees, says what of it is not run, and why:

    <!-- not run: there is one GPU for it in no CI -->            the whole block
    <!-- not run, catlip push: needs the Hub -->                  its lines that begin with `catlip push`
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = r"<!-- not run(?:, ([^:\n]+))?: ([^\n]+) -->\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code. `skipped`: beginnings of lines that are not run ("": all), with the reason."""

    language: str
    text: str
    skipped: dict[str, str]

    def runs(self, line: str) -> bool:
        return not any(line.startswith(beginning) for beginning in self.skipped)

    def commands(self, *, skipped: bool = True) -> list[list[str]]:
        """The arguments of every `catlip` command, without comments and redirections. skipped: those too."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines() if self.language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["catlip"] and (skipped or self.runs(" ".join(words))):
                found.append(words[1 : next((i for i, word in enumerate(words) if word[:1] == ">"), len(words))])
        return found

    @property
    def python(self) -> str:
        """What is run of a block of Python."""
        return "".join(line for line in self.text.splitlines(keepends=True) if self.runs(line))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    found = re.findall(rf"((?:^{MARK})*)^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    return [Block(language, text, dict(re.findall(MARK, marks))) for marks, *_, language, text in found]
