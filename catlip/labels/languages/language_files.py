"""The two files that a language is: words.tsv, by hand, and nouns.tsv, or nouns.tsv.xz, with the synset of each noun.

They may come from strangers: their size is bounded, and every line is checked.
"""

import lzma
import math
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from catlip.errors import UsageError
from catlip.labels.nouns.words import Form, Kind
from catlip.labels.wordnet import Lexicon

WORDS, NOUNS = "words.tsv", "nouns.tsv"
ALONE = "-"  # in place of a second synset: the first carries no other; of the only one: a word that is no noun to see
OTHERS = ("", "a", "v", "av")  # what the spelling of a noun is too: an adjective, a verb
FLAGS = ("capitals", "compounds", "apostrophes", "unspaced")
MAX_BYTES = 64 << 20  # of a file, unpacked
MAX_MEMORY = 256 << 20  # of unpacking it
Lists = dict[str, dict[str, tuple[str, ...]]]  # section -> word -> fields

# What a line of words.tsv looks like; de/words.tsv says what each is for.
LINES = {
    "spelling": f"spelling<TAB>name<TAB>NAME` or `spelling<TAB>{'|'.join(FLAGS)}<TAB>yes|no",
    "function": f"function<TAB>{'|'.join(kind.name.lower() for kind in Kind)}<TAB>WORDS",
    "deny": "deny<TAB>NAME<TAB>WORDS",
    "deny-through": "deny-through<TAB>NAME<TAB>WORDS",
    "deny-before": "deny-before<TAB>WORD NEEDED BEFORE, or all<TAB>WORDS",
    "abbreviation": "abbreviation<TAB>SHORT<TAB>WORDS",
    "join": "join<TAB>NAME<TAB>WORDS",
    "adjective": "adjective<TAB>NAME<TAB>WORDS",
    "common": "common<TAB>NAME<TAB>WORDS",
    "word": "word<TAB>NAME<TAB>WORDS",
    "letter": "letter<TAB>LETTERS<TAB>WHAT EACH STANDS FOR",
    "charset": "charset<TAB>own|other<TAB>CODECS",
    "foreign": "foreign<TAB>NAME<TAB>WORDS",
    "infinitive": "infinitive<TAB>ENDING<TAB>ENDINGS OF ITS FORMS, - for none",
    "ending": "ending<TAB>ENDING<TAB>REPLACEMENTS, - for none",
    "adjective-ending": "adjective-ending<TAB>ENDING<TAB>",
    "before": f"before<TAB>KIND<TAB>{len(Form)} NUMBERS",
    "after": f"after<TAB>KIND<TAB>{len(Form)} NUMBERS",
    "never": "never<TAB>NOUN<TAB>REASON",
    "sense": "sense<TAB>NOUN<TAB>SYNSET[ SYNSET]",
}


def read_words(folder: Path, lexicon: Lexicon) -> Lists:
    """What a person wrote of a language. Raises UsageError, naming the line, for what is none of `LINES`."""
    path = folder / WORDS
    if not path.is_file():
        raise UsageError(f"`language` {folder}: a language is a folder with {WORDS} and {NOUNS}; {path} is missing")
    lists: Lists = {}
    for where, line in _lines(path):
        section, word, field, *_ = [*line.split("\t"), "", ""]
        if section not in LINES:
            raise UsageError(f"{where}: {section[:40]!r} is none of {', '.join(LINES)}")
        if not _is_right(section, word, field, lexicon):
            raise UsageError(f"{where}: expected `{LINES[section]}`, found {line[:80]!r}")
        if word in lists.setdefault(section, {}):
            raise UsageError(f"{where}: there is a line `{section}` for {word!r} already")
        lists[section][word] = (field,)
    for section, word in (("spelling", "name"), ("function", "")):
        if not lists.get(section) or (word and word not in lists[section]):
            raise UsageError(f"{path}: there is no line `{LINES[section]}`")
    return lists


def _is_right(section: str, word: str, field: str, lexicon: Lexicon) -> bool:
    if section == "spelling":
        return bool(field) if word == "name" else word in FLAGS and field in ("yes", "no")
    if section in ("function", "before", "after") and word.upper() not in Kind.__members__:
        return False
    if section in ("before", "after"):
        return len(field.split()) == len(Form) and all(map(_is_number, field.split()))
    if section == "charset":
        return word in ("own", "other") and all(map(_is_codec, field.split()))
    if section == "letter":
        return len(word) == len(field) > 0
    if section == "sense":
        first, *more = field.split() or [""]
        return bool(word) and lexicon.has_synset(first) and all(s == ALONE or lexicon.has_synset(s) for s in more[:1])
    return bool(word) or section == "ending"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_codec(name: str) -> bool:
    try:
        return bool("a".encode(name))
    except LookupError:
        return False


def read_nouns(folder: Path, lexicon: Lexicon) -> dict[str, tuple[str, str]]:
    """Noun -> (synset, one of `OTHERS`); none without the file. Raises UsageError, naming the line, for other lines."""
    path = nouns_file(folder)
    nouns: dict[str, tuple[str, str]] = {}
    for where, line in _lines(path) if path else ():
        lemma, synset, other, *_ = [*line.split("\t"), "", ""]
        if not lemma.strip() or other not in OTHERS:
            raise UsageError(f"{where}: expected `NOUN<TAB>n02084071[<TAB>a|v|av]`, found {line[:80]!r}")
        if synset == ALONE:
            synset = ""
        elif not lexicon.has_synset(synset):
            raise UsageError(f"{where}: {synset[:40]!r} is no noun synset of WordNet 3.0")
        nouns[lemma] = synset, other
    return nouns


def nouns_file(folder: Path) -> Path | None:
    return next((path for name in (NOUNS, f"{NOUNS}.xz") if (path := folder / name).is_file()), None)


def tables_hash(folder: Path) -> str:
    """Identifies a language by what its files say."""
    nouns = nouns_file(folder)
    return sha256(_content(folder / WORDS) + (_content(nouns) if nouns else b"")).hexdigest()[:12]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and number, line) of the lines that say something."""
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not in UTF-8 (byte {error.start}); save it again with this encoding") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}, line {number}", line.removesuffix("\r")


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if path.suffix == ".xz":
        try:
            data = lzma.LZMADecompressor(memlimit=MAX_MEMORY).decompress(data, MAX_BYTES + 1)
        except lzma.LZMAError as error:
            raise UsageError(f"{path} cannot be unpacked: {error}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES >> 20} MiB, which is no language's table")
    return data
