"""Captions as they come -> lower-case words, many captions at a time.

Captions are joined, cleaned and split as one long string, because a Python call per caption would cost more than
everything else together. A caption that needs care (markup, web addresses, accents) is cleaned on its own first.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from catlip.errors import UsageError

END = "\0"  # ends a caption; no white space to str.split, unlike the separators of ASCII
_GLUE = f" {END} "
BREAK = ","  # stands for every punctuation mark that ends a phrase
FREE = "'free"  # the end of "sugar-free", kept apart from the word "free"
MAX_CHARACTERS = 20_000  # of one caption: what comes after is a page of text, not a description of the picture

# Whether a text has any of these is found at memory speed; a regular expression costs more than all the rest.
_CARE = (*"<&@#", "://")
_CARE_WITH_DOT = ("www.", ".jp", ".png", ".gif", ".web", ".htm", ".php", ".pdf", ".com", ".net", ".org")
_TAG = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-zA-Z!][^<>]*>", re.DOTALL | re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:https?|ftp)\S*://\S+|\bwww\.\S+|(?<!\S)[^\s@]+@\S+\.\S+|@\w+", re.IGNORECASE)
_HASHTAG = re.compile(r"#(\w*)")
_FILE_NAME = re.compile(
    r"(?<!\S)\S+\.(?:jpe?g|png|gif|webp|svg|tiff?|bmp|html?|php|pdf|mp4|com|net|org)\b\S*", re.IGNORECASE
)
_DASHES = dict.fromkeys(map(ord, "_/\\‐‑‒–—―"), "-")
_QUOTES = dict.fromkeys(map(ord, "’‘ʼ´`"), "'")
_FREE = re.compile(r"-free\b")
_QUOTE = re.compile(r"'(?!(?:s|ll|re|ve|m|d|t|free)\b)")  # not the beginning of a clitic
# One for one, so that str.translate stays on its quick path for ASCII.
_ASCII = str.maketrans(
    {
        **dict.fromkeys('.,;:!?()[]{}"|*~=^$<>', BREAK),
        **dict.fromkeys("-_/\\%", " "),
        **dict.fromkeys(map(chr, range(1, 32)), " "),
    }
)


def _odd(texts: Sequence[str], joined: str) -> set[int]:
    """Which texts need `clean`. joined: all of them in lower case, searched at once and not text by text."""
    if joined.count(END) != len(texts) - 1 or len(joined) != sum(map(len, texts)) + len(_GLUE) * (len(texts) - 1):
        return set(range(len(texts)))  # somebody else's separator, or a letter that is longer in lower case
    odd: set[int] = set()
    if not joined.isascii():
        odd |= {i for i, text in enumerate(texts) if not text.isascii()}
    if max(map(len, texts)) > MAX_CHARACTERS:
        odd |= {i for i, text in enumerate(texts) if len(text) > MAX_CHARACTERS}
    # Nearly every full stop ends a sentence; only one inside a word can belong to a file name or an address.
    inside = joined.count(".") != joined.count(". ") + joined.endswith(".")
    ends: np.ndarray | None = None
    for mark in _CARE + _CARE_WITH_DOT if inside else _CARE:
        at = joined.find(mark)
        while at >= 0:
            if ends is None:
                ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + len(_GLUE))
            i = int(np.searchsorted(ends, at, side="right"))
            odd.add(i)
            at = joined.find(mark, int(ends[i]))
    return odd


def as_text(value: Any) -> str:
    """A caption as str; None and NaN are missing captions, so empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | np.floating) and value != value):
        return ""
    raise UsageError(
        f"a caption is {type(value).__name__} ({str(value)[:40]!r}), not text; is this the caption column?"
    )


def clean(caption: str, tag_words: Callable[[str], str] = str) -> str:
    """Remove markup, addresses, file names and accents; what is left is plain text, in any script.

    tag_words: the words of a hashtag.
    """
    text = caption[:MAX_CHARACTERS]
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" , ", text)
    if "://" in text or "@" in text or "www" in text:
        text = _ADDRESS.sub(" , ", text)
    if "#" in text:
        text = _HASHTAG.sub(lambda tag: f" , {tag_words(tag[1])} , ", text)
    if "." in text:
        text = _FILE_NAME.sub(" , ", text)
    text = unicodedata.normalize("NFKD", text.translate(_QUOTES)).translate(_DASHES)
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category != "Mn" and (category != "Cf" or character == "\u200b"):  # no accent, soft hyphen, joiner or BOM
            breaks = category[0] in "CZSP" and character not in " ,.'&-"
            kept.append(" , " if breaks else character)
    return "".join(kept)


def plain(captions: Iterable[Any], tag_words: Callable[[str], str] = str) -> str:
    """All words of all captions as one text, separated by spaces, `END` after each caption, `BREAK` for punctuation.

    "A man's T-shirt, isn't it?" -> "a man 's t shirt , is not it , END"
    tag_words: the words of a hashtag.
    """
    texts: Sequence[str] = [c if type(c) is str else as_text(c) for c in captions]
    if not texts:
        return ""
    joined = _GLUE.join(texts).lower()
    odd = _odd(texts, joined)
    if odd:
        texts = list(texts)
        for i in odd:
            texts[i] = clean(texts[i], tag_words)
        joined = _GLUE.join(texts).lower()
    if "-free" in joined:
        joined = _FREE.sub(f" {FREE}", joined)
    joined = joined.translate(_ASCII).replace(BREAK, f" {BREAK} ")
    if "'" in joined:
        joined = joined.replace("n't", " not").replace("s' ", "s 's ")
        joined = _QUOTE.sub(" ", joined).replace("'", " '")
    return f"{joined} {END}"


def split(captions: Iterable[Any], tag_words: Callable[[str], str] = str) -> list[str]:
    """The words of `plain`."""
    return plain(captions, tag_words).split()


def normal(phrase: str) -> list[str]:
    """The words of a dictionary entry, spelled as `split` spells them: "St._Bernard" -> ["st", "bernard"]."""
    return split([phrase.replace(".", "").replace("_", " ")])[:-1]
