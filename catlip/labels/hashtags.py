"""Hashtags -> words: #GoldenRetriever, #golden_retriever and #goldenretriever are a golden retriever."""

import re
from collections.abc import Callable

_PARTS = re.compile(r"[A-Z]?[^\WA-Z\d_]+|[A-Z]+(?![^\WA-Z\d_])")
_MOST = 40  # letters of a tag that is cut by what the dictionary knows
_PLATFORMS = ("insta", "instagram")


def words_of(tag: str, known: Callable[[str], bool]) -> str:
    """The words of a tag (without its "#"), separated by spaces; what cannot be cut into known words is left out.

    known: whether a lower-case word is one.
    """
    return " ".join(word for part in _PARTS.findall(tag) for word in _cut(part.lower(), known))


def _cut(text: str, known: Callable[[str], bool]) -> list[str]:
    """As few known words as possible, of which the first is as long as possible; none if something is left over."""
    if len(text) > _MOST:
        return []
    if not text.isascii():
        return [text]  # accents go later, and other scripts are one word
    best: list[list[str] | None] = [[]]  # of the first i letters
    for end in range(1, len(text) + 1):
        ways: list[list[str]] = []
        for start in range(max(end - 20, 0), end - 1):
            word, before = text[start:end], best[start]
            if before is not None and (word in _PLATFORMS or known(word)):
                ways.append([*before, word])
        best.append(min(ways, key=lambda way: (len(way), -len(way[0])), default=None))
    return best[-1] or []
