"""The rule "corenet": the labels that the official CatLIP code gives, for whoever reproduces the paper with them.

Facts of that code (apple/corenet 1aa3acd, corenet/data/datasets/classification/wordnet_tagged_classification.py): a
caption is unquoted as a URL, cleaned of tags and repaired with ftfy, lower-cased and split into Penn Treebank tokens;
the part-of-speech tags it computes are never used. Every token is lemmatised as a noun and kept if it is the head lemma
of the first sense of its spelling. So "photo", "bike" and "men" are lost (not the head of their synset), "are" is a
unit of area, "white" a person; there are no multi-word nouns and no choice of sense.

Its vocabularies are pickles, which are read here without running what they may hold.

The tokeniser is written anew from the Treebank's conventions. Only what can change a noun is reproduced: brackets and
quotation marks never reach the lexicon, so how they are rewritten does not matter.
"""

import pickle
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ftfy
import numpy as np

from catlip.errors import UsageError, first_line
from catlip.labels.cleaning import MAX_CHARACTERS, as_text
from catlip.labels.wordnet import Lexicon

_TAG = re.compile(r"<.*?>")
_SPACES = re.compile(r" +")
# The lemmatiser's rules of detachment: WordNet's own and -ves -> -f, which is NLTK's.
_SUFFIXES = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip
# A full stop after these ends no sentence, so it stays with the word.
_ABBREVIATIONS = frozenset("mr mrs ms dr st jr sr vs etc e.g i.e u.s u.k a.m p.m no vol co inc ltd corp mt ft".split())
_OPENING = re.compile(r"([\[\](){}<>«»“”‘’„]|``|''|\")")
_MARKS = re.compile(r"(\.{2,}|[;@#$%&?!*…—]|--)")
_COMMA = re.compile(r"([:,])(?=\D|$)")
_CLITIC = re.compile(r"(?<=[^' ])('s|'m|'d|'ll|'re|'ve|n't|')(?= |$)")
_MERGED = re.compile(r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")


def clean(caption: Any) -> str:
    """The official code's preparation of a caption; None becomes "none", as it does there.

    Of what is longer than `MAX_CHARACTERS` only the beginning is read: there, all is, in quadratic time.
    """
    text = unquote(str(caption)[:MAX_CHARACTERS]).replace("+", " ")
    text = _SPACES.sub(" ", _TAG.sub("", text).strip("\n"))
    return ftfy.fix_text(text).strip().lower()


def tokenize(text: str) -> list[str]:
    """Penn Treebank tokens of a lower-case text, sentence by sentence."""
    text = _MARKS.sub(r" \1 ", _OPENING.sub(r" \1 ", text))
    text = _COMMA.sub(r" \1 ", text)
    words = text.split()
    tokens: list[str] = []
    last = max((i for i, word in enumerate(words) if any(c.isalnum() for c in word)), default=0)
    for position, word in enumerate(words):
        if word.endswith(".") and len(word) > 1 and (position >= last or _ends_sentence(word[:-1])):
            tokens += [word[:-1], "."]
        else:
            tokens.append(word)
    text = _CLITIC.sub(r" \1", " ".join(tokens))
    return _MERGED.sub(lambda match: " ".join(part for part in match.groups() if part), text).split()


def _ends_sentence(word: str) -> bool:
    return word not in _ABBREVIATIONS and not (len(word) == 1 and word.isalpha()) and "." not in word


class CorenetRule:
    """See the module."""

    tables_hash = ""

    def __init__(self, lexicon: Lexicon, index: dict[str, int]) -> None:
        self.lexicon = lexicon
        self.index = index
        self._judge = lru_cache(maxsize=300_000)(self._judge_token)

    def lemmatize(self, token: str) -> str:
        """The shortest noun that the token can be a form of, or the token itself."""
        irregular = self.lexicon.irregular(token)
        if irregular:
            return min((f for f in (token, *irregular) if f in self.lexicon), key=len, default=token)
        detached = [token[: len(token) - len(old)] + new for old, new in _SUFFIXES if token.endswith(old)]
        return min((form for form in (token, *detached) if form in self.lexicon), key=len, default=token)

    def _judge_token(self, token: str) -> tuple[int, str]:
        """(label or -1, why)."""
        lemma = self.lemmatize(token)
        senses = self.lexicon.senses(lemma)
        if not senses:
            return -1, "not a noun of WordNet"
        head = self.lexicon.synset(senses[0].synset).name.lower()
        if head != lemma:
            return -1, f"not the head of its first sense ({head})"
        return self.index[senses[0].synset], f"head of the first sense of {lemma!r}"

    def labels(self, captions: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(caption of each label, label). A missing caption has none, while the official code reads "none" or "nan"."""
        rows, labels = [], []
        for row, caption in enumerate(captions):
            for token in tokenize(clean(as_text(caption))):
                label = self._judge(token)[0]
                if label >= 0:
                    rows.append(row)
                    labels.append(label)
        return np.array(rows, np.int64), np.array(labels, np.int32)

    def foreign(self, captions: Sequence[Any]) -> int:
        """The official code does not look at the language, so neither does this rule."""
        return 0

    def spoken(self, captions: Sequence[Any]) -> Counter[tuple[str, str]]:
        """None: its vocabularies keep WordNet's names, as the official ones."""
        return Counter()

    def explain(self, caption: str) -> list[tuple[str, tuple[str, ...], str]]:
        tokens = tokenize(clean(caption))
        judged = [self._judge(token) for token in tokens]
        synsets = list(self.index)
        return [
            (t, (synsets[label],) if label >= 0 else (), why) for t, (label, why) in zip(tokens, judged, strict=True)
        ]


def read_counts(path: Path) -> dict[str, int]:
    """Synset -> count, in the order of the classes, of an official vocabulary: a pickle of {"n5928118": 12, ...}.

    Raises UsageError for a pickle that holds, or would run, anything else.
    """
    if not path.is_file():
        raise UsageError(f"no such vocabulary: {path}")
    with path.open("rb") as file:
        try:
            counts = _PlainUnpickler(file).load()
        except Exception as error:  # a damaged file fails anywhere in the unpickler
            raise UsageError(f"{path} is no official vocabulary: {first_line(error)}") from None
    plain = type(counts) is dict and all(type(k) is str and type(n) is int for k, n in counts.items())
    if not plain or not counts:
        raise UsageError(f"{path} is no official vocabulary: expected a dict of str -> int")
    return {f"n{key[1:].zfill(8)}": count for key, count in counts.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, strings and numbers; looks up no class or function, so nothing in the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which is neither dict, str nor int")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")
