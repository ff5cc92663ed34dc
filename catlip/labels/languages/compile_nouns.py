"""The nouns of a language from an open multilingual wordnet: writes nouns.tsv.xz beside words.tsv.

    python -m catlip.labels.languages.compile_nouns swedish/ wn-data-swe.tab.gz
    python -m catlip.labels.languages.compile_nouns catlip/labels/languages/fr wn-data-fra.tab.gz --english train.en.gz

The input is a table of the open multilingual wordnets (github.com/omwn/omw-data), which share WordNet 3.0's offsets:
`02084071-n<TAB>deu:lemma<TAB>Hund`. A noun of several synsets gets the one that English captions would get: each
synset's English words are read by the rule "nouns", and what they are labelled with, weighted by how often WordNet's
tagged texts use the word in that sense and by how often English captions have the label, is what the noun stands for
(French "homme" is a man, not mankind). A noun that is rather nothing visible is left out.

The output is a line for each noun, sorted: lemma, its synset, and of spellings that are other words too "a" (an
adjective) or "v" (a verb). It is byte-identical on every run.
"""

import argparse
import gzip
import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from catlip.atomic import whole
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.languages.language_files import ALONE, NOUNS, read_words
from catlip.labels.nouns.phrases import THRESHOLD, PhraseIndex
from catlip.labels.nouns.words import UNTAGGED, Reading, read
from catlip.labels.wordnet import open_lexicon
from catlip.notices import say

INDIRECT = 0.3  # weight of an English word that is labelled in another sense than the one looked for
RARE = 0.05  # added to the mass of what is unseen, as in the English rule
LEAST_SEEN = 0.0  # log-odds, from which on a noun is something visible; stricter than in English, as links are noisy
ADJECTIVE = 0.5  # a spelling is an adjective too from so many adjective synsets for each of the noun on
MOST_WORDS = 6
MOST_LETTERS = 4  # of a word that is no noun, in a language without spaces
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def compile_nouns(folder: Path, tables: Iterable[Path], english: Iterable[str] = ()) -> Path:
    """Write nouns.tsv.xz into a folder that has words.tsv, whose lines "infinitive" say which nouns are verbs too.

    english: captions, for how often each label occurs; without them WordNet's counts decide alone.

    Returns the path of the file. Raises UsageError for a table, or a words.tsv, that is none, naming the line.
    """
    lists = read_words(folder, open_lexicon())
    infinitives = {
        ending: [form.strip("-") for form in forms.split() if form != "-"]
        for ending, (forms,) in lists.get("infinitive", {}).items()
    }
    unspaced = lists["spelling"].get("unspaced") == ("yes",)
    uses = Counter(label for labels in Labeler(heads=False)(list(english)) for label in labels)
    lemmas = [line for path in tables for line in lemmas_of(path)]
    rows = list(_rows(lemmas, infinitives, uses, shortest=1 if unspaced else 2))
    if unspaced:
        nouns = {*(lemma for lemma, *_ in rows), *lists.get("sense", ())}
        rows = sorted([*rows, *_other_words({lemma for lemma, *_ in lemmas} - nouns, nouns)])
    out = folder / f"{NOUNS}.xz"
    text = "".join("\t".join(row).rstrip("\t") + "\n" for row in rows).encode()
    with whole(out) as part:
        part.write_bytes(lzma.compress(text, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=FILTERS))
    say(f"{out}: {len(rows):,} nouns, {out.stat().st_size:,} bytes")
    return out


def lemmas_of(path: Path) -> Iterator[tuple[str, str, str]]:
    """(lemma, offset, part of speech) of each line that gives a lemma."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) >= 3 and fields[1].split(":")[-1] == "lemma":
                offset, _, pos = fields[0].partition("-")
                if not (len(offset) == 8 and offset.isdigit() and pos):
                    raise UsageError(
                        f"{path}, line {number}: expected `02084071-n<TAB>lemma<TAB>WORD`, found {line[:60]!r}"
                    )
                yield " ".join(fields[2].replace("_", " ").split()), offset, pos


class English:
    """What English captions get for the words of a synset."""

    def __init__(self) -> None:
        self.wordnet = open_lexicon()
        self.phrases = PhraseIndex(self.wordnet, {})
        self._words: dict[str, tuple[str, ...]] = {}

    def labels(self, lemma: str) -> tuple[str, ...]:
        """The synsets that an English lemma can be labelled with, the usual first; none if it gets no label."""
        if lemma not in self._words:
            phrase = "_" in lemma or "-" in lemma
            text = lemma.replace("_", " ").replace("-", " ").replace(".", "")
            reading: Reading | None = self.phrases.read(text) if phrase else read(self.wordnet, lemma)
            seen = reading is not None and reading.score >= THRESHOLD
            cues = [synset for synset, _ in reading.cues] if reading else []
            self._words[lemma] = tuple(dict.fromkeys([*reading.synsets[:1], *cues])) if seen and reading else ()
        return self._words[lemma]

    def votes(self, synset: str) -> tuple[dict[str, float], float]:
        """(label -> weight, weight of what has no label) of the English words of a synset."""
        seen: dict[str, float] = defaultdict(float)
        unseen = 0.0
        for lemma in self.wordnet.synonyms.get(synset, ()):
            senses = [sense.synset for sense in self.wordnet.senses(lemma)]
            rank = senses.index(synset)
            mass = self.wordnet.senses(lemma)[rank].count + UNTAGGED / (1 + rank)
            labels = self.labels(lemma)
            if synset in labels:
                seen[synset] += mass
            elif labels:
                seen[labels[0]] += INDIRECT * mass
                unseen += INDIRECT * mass
            else:
                unseen += mass
        return seen, unseen


def _rows(
    lemmas: list[tuple[str, str, str]], infinitives: dict[str, list[str]], uses: Counter[str], *, shortest: int
) -> Iterator[tuple[str, str, str]]:
    """(noun, synset, what else it is) by noun. uses: of the labels in English captions."""
    nouns: dict[str, list[str]] = defaultdict(list)
    adjectives: Counter[str] = Counter()
    verbs: set[str] = set()
    for lemma, offset, pos in lemmas:
        if pos == "n":
            nouns[lemma].append(f"n{offset}")
        elif pos != "v":
            adjectives[lemma.lower()] += 1
        elif lemma.endswith(tuple(infinitives)):  # the wordnets list nouns as verbs too
            verbs.add(lemma.lower())
    conjugated = {
        verb.removesuffix(ending) + form
        for ending, forms in infinitives.items()
        for verb in verbs
        if verb.endswith(ending)
        for form in forms
    }
    english = English()
    for lemma, synsets in sorted(nouns.items()):
        if not lemma[:1].isalpha() or len(lemma) < shortest or lemma.count(" ") >= MOST_WORDS or lemma in verbs:
            continue
        seen: dict[str, float] = defaultdict(float)
        unseen = 0.0
        for synset in dict.fromkeys(synsets):
            found, rest = english.votes(synset)
            unseen += rest
            for label, weight in found.items():
                seen[label] += weight
        if not seen or math.log(sum(seen.values()) + 1e-6) - math.log(unseen + RARE) < LEAST_SEEN:
            continue
        best = max(seen, key=lambda label: (seen[label] * (1 + uses[label]), label))
        adjective = adjectives[lemma.lower()] >= ADJECTIVE * len(synsets)
        yield lemma, best, ("a" if adjective else "") + ("v" if lemma.lower() in conjugated else "")


def _other_words(words: Iterable[str], nouns: set[str]) -> Iterator[tuple[str, str, str]]:
    """Where a text without spaces has to be cut as well, lest a noun be found inside; what ends with a noun has it."""
    for word in words:
        ends, starts = range(1, len(word)), range(len(word) - 1)
        inside = any(word[i:j] in nouns for i in starts for j in range(i + 1, len(word)))
        if inside and word.isalpha() and len(word) <= MOST_LETTERS and not any(word[i:] in nouns for i in ends):
            yield word, ALONE, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="with words.tsv; nouns.tsv.xz is written there")
    parser.add_argument("tables", type=Path, nargs="+", help="of the open multilingual wordnets, .tab or .tab.gz")
    parser.add_argument("--english", type=Path, help="English captions, one a line, gzip")
    args = parser.parse_args()
    lines = gzip.decompress(args.english.read_bytes()).decode().splitlines() if args.english else []
    try:
        # Every fifth of the captions is left out, for measuring (benchmarks/languages.py).
        compile_nouns(args.folder, args.tables, [line for i, line in enumerate(lines) if i % 5])
    except (UsageError, OSError, UnicodeError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
