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
NAME = "`"  # ends a word of somebody's name; in captions themselves it is a quotation mark
FREE = "'free"  # the end of "sugar-free", kept apart from the word "free"
MAX_CHARACTERS = 20_000  # of one caption: what comes after is a page of text, not a description of the picture

# Whether a text has any of these is found at memory speed; a regular expression costs more than all the rest.
_CARE = ("<", "&", "@", "#", "://", NAME)
_CARE_WITH_DOT = ("www.", ".jp", ".png", ".gif", ".web", ".htm", ".php", ".pdf", ".com", ".net", ".org")
_TAG = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-zA-Z!][^<>]*>", re.DOTALL | re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:https?|ftp)\S*://\S+|\bwww\.\S+|(?<!\S)[^\s@]+@\S+\.\S+|@\w+", re.IGNORECASE)
_HASHTAG = re.compile(r"#(\w*)")
_HASHTAG_PARTS = re.compile(r"[A-Z]?[^\WA-Z\d_]+|[A-Z]+(?![^\WA-Z\d_])")
_MAX_HASHTAG = 40  # letters of a hashtag that is cut by what the dictionary knows
_FILE_NAME = re.compile(
    r"(?<!\S)\S+\.(?:jpe?g|png|gif|webp|svg|tiff?|bmp|html?|php|pdf|mp4|com|net|org)\b\S*", re.IGNORECASE
)
_DASHES = dict.fromkeys(map(ord, "_/\\‐‑‒–—―"), "-")
_QUOTES = dict.fromkeys(map(ord, "’‘ʼ´`"), "'")
_FREE = re.compile(r"-free\b")
_OWNERS = re.compile(rf"s' (?!{END})")  # boys' shoes; at the end of a caption it is a quote
_QUOTE = re.compile(r"'(?!(?:s|ll|re|ve|m|d|t|free)\b)")  # not the beginning of a clitic
# One for one, so that str.translate stays on its quick path for ASCII.
ASCII = str.maketrans(
    {
        **dict.fromkeys('.,;:!?()[]{}"|*~=^$<>', BREAK),
        **dict.fromkeys("-_/\\%", " "),
        **dict.fromkeys(map(chr, range(1, 32)), " "),
    }
)


def as_text(value: Any) -> str:
    """A caption as str; None and NaN are missing captions, so empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | np.floating) and value != value):
        return ""
    raise UsageError(
        f"a caption is {type(value).__name__} ({str(value)[:40]!r}), not text; is this the caption column?"
    )


def clean(caption: str, tag_words: Callable[[str], str] = str, *, accents: bool = False) -> str:
    """Remove markup, addresses, file names and accents; what is left is plain text, in any script.

    tag_words: the words of a hashtag. accents: letters keep them, and what is no letter stays too.
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
    if accents:
        return text.replace(END, " ")
    text = unicodedata.normalize("NFKD", text.translate(_QUOTES)).translate(_DASHES)
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category != "Mn" and (category != "Cf" or character == "\u200b"):  # no accent, soft hyphen, joiner or BOM
            breaks = category[0] in "CZSP" and character not in " ,.'&-"
            kept.append(" , " if breaks else character)
    return "".join(kept)


def split_hashtag(tag: str, known: Callable[[str], bool]) -> str:
    """The words of a tag (without its "#"), separated by spaces; what cannot be cut into known words is left out.

    known: whether a lower-case word is one.
    """
    return " ".join(word for part in _HASHTAG_PARTS.findall(tag) for word in _cut(part.lower(), known))


def _cut(text: str, known: Callable[[str], bool]) -> list[str]:
    """As few known words as possible, without a plural before the last, the first as long as possible; none if
    something is left over."""
    if len(text) > _MAX_HASHTAG:
        return []
    if not text.isascii():
        return [text]  # accents go later, and other scripts are one word
    best: list[list[str] | None] = [[]]  # of the first i letters
    for end in range(1, len(text) + 1):
        ways: list[list[str]] = []
        for start in range(max(end - 20, 0), end - 1):
            word, before = text[start:end], best[start]
            if before is not None and (word in ("insta", "instagram") or known(word)):
                ways.append([*before, word])
        best.append(
            min(ways, key=lambda way: (len(way), *(word[-1] == "s" for word in way[:1]), -len(way[0])), default=None)
        )
    return best[-1] or []


def normalize(
    captions: Iterable[Any], tag_words: Callable[[str], str] = str, mark_names: Callable[[str], str] | None = None
) -> str:
    """All words of all captions as one text, separated by spaces, `END` after each caption, `BREAK` for punctuation.

    "A man's T-shirt, isn't it?" -> "a man 's t shirt , is not it , END"
    tag_words: the words of a hashtag. mark_names: puts `NAME` behind names, in captions with two neighbouring words
    that begin with a capital; what has none it hands back.
    """
    texts = [caption if type(caption) is str else as_text(caption) for caption in captions]
    if not texts:
        return ""
    as_written = _GLUE.join(texts)
    if as_written.count(END) != len(texts) - 1:  # somebody else's separator
        texts = [text.replace(END, f" {BREAK} ") for text in texts]
        as_written = _GLUE.join(texts)
    joined = as_written.lower()
    odd = _odd(texts, joined)
    changed = {i: clean(texts[i], tag_words) for i in odd}
    if mark_names:
        for i in _capitals(f" {as_written}"):
            text = changed.get(i, texts[i])
            if (marked := mark_names(text)) is not text:
                changed[i] = marked
    if changed:
        for i, text in changed.items():
            texts[i] = text
        joined = _GLUE.join(texts).lower()
    if "-free" in joined:
        joined = _FREE.sub(f" {FREE}", joined)
    joined = joined.replace(" / ", BREAK).translate(ASCII).replace(BREAK, f" {BREAK} ")
    if "'" in joined:
        joined = _OWNERS.sub("s 's ", joined.replace("n't", " not"))
        joined = _QUOTE.sub(" ", joined).replace("'", " '")
    return f"{joined} {END}"


def plain(captions: Iterable[Any], tag_words: Callable[[str], str] = str) -> str:
    """Captions as one text, with `END` between them, without what `clean` removes; letters keep accents and case."""
    texts = [caption if type(caption) is str else as_text(caption) for caption in captions]
    joined = _GLUE.join(texts)
    for i in _odd(texts, joined.lower(), accents=True):
        texts[i] = clean(texts[i], tag_words, accents=True)
        joined = ""
    return joined or _GLUE.join(texts)


def _capitals(joined: str) -> list[int]:
    """Which texts have two neighbouring words that begin with a capital."""
    data = np.frombuffer(joined.encode("utf-8", "replace"), np.uint8)
    spaces = np.flatnonzero(data[:-1] == ord(" "))
    capital = data[spaces + 1] - np.uint8(ord("A")) < 26
    pairs = spaces[:-1][capital[:-1] & capital[1:]]
    return np.unique(np.searchsorted(np.flatnonzero(data == 0), pairs)).tolist() if len(pairs) else []


def _odd(texts: Sequence[str], joined: str, *, accents: bool = False) -> set[int]:
    """Which texts need `clean`. joined: all of them in lower case, as they are searched together first."""
    if joined.count(END) != len(texts) - 1:
        return set(range(len(texts)))  # somebody else's separator
    odd: set[int] = set()
    if not (accents or joined.isascii()) or max(map(len, texts), default=0) > MAX_CHARACTERS:
        odd = {i for i, text in enumerate(texts) if not (accents or text.isascii()) or len(text) > MAX_CHARACTERS}
    # Nearly every full stop ends a sentence; only one inside a word can belong to a file name or an address.
    dot_inside = joined.count(".") != joined.count(". ") + joined.endswith(".")
    marks = [mark for mark in (_CARE + _CARE_WITH_DOT if dot_inside else _CARE) if mark in joined]
    if marks:
        lowered = joined.split(_GLUE)
        odd.update(i for mark in marks for i, text in enumerate(lowered) if mark in text)
    return odd


def phrase_words(phrase: str) -> list[str]:
    """The words of a dictionary entry, spelled as in captions: "St._Bernard" -> ["st", "bernard"]."""
    return normalize([phrase.replace(".", "").replace("_", " ")]).split()[:-1]
