"""Captions as they come -> lower-case words, many captions at a time.

Captions are joined, cleaned and split as one long string, because a Python call per caption would cost more than
everything else together. A caption that needs care (markup, web addresses, accents) is cleaned on its own first.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from catlip.errors import UsageError

END = "\0"  # ends a caption; no white space to str.split, unlike the separators of ASCII
BREAK = ","  # stands for every punctuation mark that ends a phrase
MAX_CHARACTERS = 20_000  # of one caption: what comes after is a page of text, not a description of the picture

# Whether a text has any of these is found at memory speed; a regular expression costs more than all the rest.
_CARE = (
    *"<&@#",
    "://",
    "www.",
    ".jp",
    ".png",
    ".gif",
    ".web",
    ".htm",
    ".php",
    ".pdf",
    ".com",
    ".net",
    ".org",
)
_TAG = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-zA-Z!][^<>]*>", re.DOTALL | re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:https?|ftp)\S*://\S+|\bwww\.\S+|\S+@\S+\.\S+|[@#]\w+", re.IGNORECASE)
_FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|svg|tiff?|bmp|html?|php|pdf|mp4|com|net|org)\b\S*", re.IGNORECASE)
_DASHES = dict.fromkeys(map(ord, "-_/\\‐‑‒–—―"), " ")
_QUOTES = dict.fromkeys(map(ord, "’‘ʼ´`"), "'")
# One for one, so that str.translate stays on its quick path for ASCII.
_ASCII = str.maketrans({**dict.fromkeys('.,;:!?()[]{}"|*~=^$<>', BREAK), **dict.fromkeys("-_/\\%", " "),
                        **dict.fromkeys(map(chr, range(1, 32)), " ")})  # fmt: skip


def _needs_care(text: str, marks: list[str]) -> bool:
    if not text.isascii() or END in text or len(text) > MAX_CHARACTERS:
        return True
    lowered = text.lower()
    return any(mark in lowered for mark in marks)


def as_text(value: Any) -> str:
    """A caption as str; None and NaN are missing captions, so empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    raise UsageError(
        f"a caption is {type(value).__name__} ({str(value)[:40]!r}), not text; is this the caption column?"
    )


def clean(caption: str) -> str:
    """Remove markup, addresses, file names and accents; what is left is plain text, in any script."""
    text = caption[:MAX_CHARACTERS]
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" , ", text)
    if "://" in text or "@" in text or "#" in text or "www" in text:
        text = _ADDRESS.sub(" , ", text)
    if "." in text:
        text = _FILE_NAME.sub(" , ", text)
    text = unicodedata.normalize("NFKD", text.translate(_QUOTES)).translate(_DASHES)
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category != "Mn":  # a combining mark: the accent of the letter before it
            breaks = category[0] in "CZSP" and character not in " ,.'&"
            kept.append(" , " if breaks else character)
    return "".join(kept)


def split(captions: Iterable[Any]) -> list[str]:
    """All words of all captions, `END` after each caption, `BREAK` for punctuation.

    "A man's T-shirt, isn't it?" -> ["a", "man", "'s", "t", "shirt", ",", "is", "not", "it", ",", END]
    """
    texts: Sequence[str] = [c if type(c) is str else as_text(c) for c in captions]
    if not texts:
        return []
    joined = f" {END} ".join(texts).lower()
    # What a batch has none of, no caption of it needs to be searched for: most batches have next to nothing.
    marks = [mark for mark in _CARE if mark in joined]
    if marks or not joined.isascii() or joined.count(END) != len(texts) - 1 or len(joined) > MAX_CHARACTERS:
        texts = [clean(text) if _needs_care(text, marks) else text for text in texts]
        joined = f" {END} ".join(texts).lower()
    joined = joined.translate(_ASCII).replace(BREAK, f" {BREAK} ")
    if "'" in joined:
        joined = joined.replace("n't", " not").replace("s' ", "s 's ").replace("'", " '")
    words = joined.split()
    words.append(END)
    return words


def normal(phrase: str) -> list[str]:
    """The words of a dictionary entry, spelled as `split` spells them: "St._Bernard" -> ["st", "bernard"]."""
    return split([phrase.replace(".", "").replace("_", " ")])[:-1]
