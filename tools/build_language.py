"""Compile the nouns of another language into a table that catlip ships: catlip/labels/languages/CODE.txt.xz.

    uv run tools/build_language.py de wn-wikt-deu.tab.gz --english train.en.gz
    uv run tools/build_language.py fr wn-data-fra.tab.gz --english train.en.gz

The input is a table of the open multilingual wordnets (github.com/omwn/omw-data), which share WordNet 3.0's offsets:
`02084071-n<TAB>deu:lemma<TAB>Hund`. A noun of several synsets gets the one that English captions would get: each
synset's English words are read by the rule "nouns", and what they are labelled with, weighted by how often WordNet's
tagged texts use the word in that sense and by how often English captions have the label, is what the noun stands for
(French "homme" is a man, not mankind). A noun that is rather nothing visible is left out.

The output is a line for each noun, sorted: lemma, offset of the synset, and of spellings that are other words too "a"
(an adjective) or "v" (a verb; in lower-case languages that write nouns like verbs). It is byte-identical on every run.
"""

import argparse
import gzip
import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from catlip.labels.labeler import Labeler
from catlip.labels.nouns.phrases import THRESHOLD, PhraseIndex
from catlip.labels.nouns.words import UNTAGGED, Reading, read
from catlip.labels.wordnet import open_lexicon

OUT = Path(__file__).parents[1] / "catlip" / "labels" / "languages"
INDIRECT = 0.3  # weight of an English word that is labelled in another sense than the one looked for
RARE = 0.05  # added to the mass of what is unseen, as in the English rule
LEAST_SEEN = 0.0  # log-odds, from which on a noun is something visible; stricter than in English, as links are noisy
ADJECTIVE = 0.5  # a spelling is an adjective too from so many adjective synsets for each of the noun on
MOST_WORDS = 6
# Forms of verbs that captions use most and that are spelled like nouns: "porte" of "porter".
INFINITIVES = {"fr": ("ir", "re"), "it": (), "es": (), "pt": ()}  # endings beside those below
VERB_FORMS = {
    "fr": (("er", "e"), ("er", "es"), ("er", "ent"), ("er", "é")),
    "it": (("are", "a"), ("are", "o"), ("ere", "e"), ("ire", "e")),
    "es": (("ar", "a"), ("ar", "o"), ("er", "e"), ("ir", "e")),
    "pt": (("ar", "a"), ("ar", "o"), ("er", "e"), ("ir", "e")),
}


def lemmas_of(paths: list[Path]) -> Iterator[tuple[str, str, str]]:
    """(lemma, offset, part of speech) of each line that gives a lemma."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                fields = line.rstrip("\n").split("\t")
                if len(fields) >= 3 and fields[1].split(":")[-1] == "lemma":
                    offset, pos = fields[0].split("-")
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


def label_uses(captions: Path) -> Counter[str]:
    """How often English captions have each label; every fifth is left out, for measuring."""
    lines = gzip.decompress(captions.read_bytes()).decode().splitlines()
    kept = [line for i, line in enumerate(lines) if i % 5]
    return Counter(label for labels in Labeler(heads=False)(kept) for label in labels)


def compile_language(paths: list[Path], code: str, uses: Counter[str]) -> str:
    """uses: of the labels in English captions."""
    nouns: dict[str, list[str]] = defaultdict(list)
    adjectives: Counter[str] = Counter()
    verbs: set[str] = set()
    forms = VERB_FORMS.get(code, ())
    for lemma, offset, pos in lemmas_of(paths):
        if pos == "n":
            nouns[lemma].append(f"n{offset}")
        elif pos == "v":  # the wordnets list nouns as verbs too
            verbs |= (
                {lemma.lower()} if lemma.endswith(tuple(old for old, _ in forms) + INFINITIVES.get(code, ())) else set()
            )
        else:
            adjectives[lemma.lower()] += 1
    conjugated = {verb.removesuffix(old) + new for old, new in forms for verb in verbs if verb.endswith(old)}
    english, rows = English(), []
    for lemma, synsets in sorted(nouns.items()):
        if not lemma[0].isalpha() or len(lemma) < 2 or lemma.count(" ") >= MOST_WORDS or lemma in verbs:
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
        flags = ("a" if adjective else "") + ("v" if lemma.lower() in conjugated else "")
        rows.append(f"{lemma}\t{best[1:]}\t{flags}".rstrip("\t"))
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("language", help="its code, e.g. de")
    parser.add_argument("tables", type=Path, nargs="+", help="tables of the open multilingual wordnets, .tab.gz")
    parser.add_argument("--english", type=Path, required=True, help="English captions, one a line, gzip")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    text = compile_language(args.tables, args.language, label_uses(args.english))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    packed = lzma.compress(text.encode(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
    out = args.out or OUT / f"{args.language}.txt.xz"
    out.write_bytes(packed)
    print(f"{out}: {text.count(chr(10)):,} nouns, {len(packed):,} bytes packed")


if __name__ == "__main__":
    main()
