"""Compile WordNet 3.0 into the one file that catlip ships: catlip/labels/wordnet.txt.xz.

Why 3.0 and not newer: ImageNet's class ids are WordNet 3.0 noun offsets, and so are the labels of the
official CatLIP vocabulary. Why a file of our own: NLTK downloads its data at run time, which neither an
offline cluster nor a hospital allows, and reads it at 900 captions a second.

    apt-get install wordnet-base
    uv run tools/build_lexicon.py --wordnet /usr/share/wordnet --pictured imagenet21k_goog_synsets.txt

The second file is one that timm ships (timm/data/_info): the synsets of ImageNet-21k, that is, those for which
people could find pictures. It is the best list there is of which nouns can be seen.

Facts only (no glosses). Three blocks of tab-separated lines, with an empty line between the blocks:

    02084071  05*  @02083346 @01317541  dog    synset, lexicographer file (* pictured), parents (~ instance), head
    dog  02084071:42 10114209:2  b2            lemma, senses in order (:tag count, ^ capitalised), other readings
    men  man                                   irregular plural, its singulars

Other readings of a lemma's spelling: b = base form of a verb, i = inflected form of a verb, a = adjective,
r = adverb, each with the tag counts of that part of speech. The output is byte-identical on every run;
`tests/test_lexicon.py` holds its checksum.
"""

import argparse
import lzma
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

OUT = Path(__file__).parents[1] / "catlip" / "captions" / "wordnet.txt.xz"
# Part-of-speech digit in WordNet's sense keys; 5 is an adjective that hangs on a head adjective.
POS_OF_DIGIT = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
DOUBLED = "bdfgklmnprtz"


def rows(path: Path) -> Iterator[str]:
    """Lines of a WordNet data or index file without the licence, whose lines start with a space."""
    with path.open(encoding="utf-8") as lines:
        yield from (line for line in lines if not line.startswith(" "))


def tag_counts(path: Path) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """cntlist.rev -> (count of each sense key, {part of speech: {lemma: count over its senses}})."""
    by_key: dict[str, int] = {}
    by_lemma: dict[str, dict[str, int]] = {pos: defaultdict(int) for pos in set(POS_OF_DIGIT.values())}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        lemma, rest = key.split("%")
        by_key[key] = int(count)
        by_lemma[POS_OF_DIGIT[rest[0]]][lemma] += int(count)
    return by_key, by_lemma


def read_nouns(path: Path, counts: dict[str, int], pictured: set[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """data.noun -> (synset lines, {lemma: {offset: sense as written}})."""
    synsets, spelled = [], defaultdict(dict)
    for line in rows(path):
        fields = line.split("|")[0].split()
        offset, lexfile, n_words = fields[0], fields[1], int(fields[3], 16)
        words = fields[4 : 4 + 2 * n_words : 2]
        lex_ids = fields[5 : 5 + 2 * n_words : 2]
        for word, lex_id in zip(words, lex_ids, strict=True):
            count = counts.get(f"{word.lower()}%1:{lexfile}:{int(lex_id, 16):02d}::", 0)
            mark = "^" if word != word.lower() else ""
            spelled[word.lower()][offset] = f"{mark}{offset}" + (f":{count}" if count else "")
        start = 4 + 2 * n_words
        pointers = [fields[i : i + 4] for i in range(start + 1, start + 1 + 4 * int(fields[start]), 4)]
        parents = [("~" if p[0] == "@i" else "@") + p[1] for p in pointers if p[0] in ("@", "@i")]
        seen = "*" if f"n{offset}" in pictured else ""
        synsets.append(f"{offset}\t{lexfile}{seen}\t{' '.join(parents)}\t{words[0]}")
    return synsets, spelled


def exceptions(path: Path) -> dict[str, list[str]]:
    """An .exc file: {inflected form: [base forms]}."""
    split = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {form: bases for form, *bases in split}


def verb_forms(verb: str) -> set[str]:
    """Regular -s, -ed and -ing spellings of a verb, over-generated: a wrong one matches no noun."""
    stems = {verb, verb.removesuffix("e")}
    if verb[-1:] in DOUBLED:
        stems.add(verb + verb[-1])
    forms = {stem + ending for stem in stems for ending in ("ed", "ing")} | {verb + "s", verb + "es"}
    if verb.endswith("y"):
        forms |= {verb[:-1] + "ied", verb[:-1] + "ies"}
    if verb.endswith("ie"):
        forms.add(verb[:-2] + "ying")
    return forms - {verb}


def other_readings(folder: Path, by_lemma: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Spelling -> {'b', 'i', 'a', 'r': tag count}: what else than a noun a spelling can be."""
    readings: dict[str, dict[str, int]] = defaultdict(dict)

    def note(spelling: str, mark: str, count: int) -> None:
        readings[spelling][mark] = readings[spelling].get(mark, 0) + count

    irregular = defaultdict(set)
    for form, bases in exceptions(folder / "verb.exc").items():
        for base in bases:
            irregular[base].add(form)
    for line in rows(folder / "index.verb"):
        verb = line.split()[0]
        note(verb, "b", by_lemma["verb"].get(verb, 0))
        for form in verb_forms(verb) | irregular[verb]:
            note(form, "i", by_lemma["verb"].get(verb, 0))
    for pos, mark in (("adj", "a"), ("adv", "r")):
        for line in rows(folder / f"index.{pos}"):
            word = line.split()[0]
            note(word, mark, by_lemma[pos].get(word, 0))
    return readings


def compile_lexicon(folder: Path, pictured: set[str]) -> str:
    by_key, by_lemma = tag_counts(folder / "cntlist.rev")
    synsets, spelled = read_nouns(folder / "data.noun", by_key, pictured)
    readings = other_readings(folder, by_lemma)
    lemmas = []
    for line in rows(folder / "index.noun"):
        fields = line.split()
        lemma, n_senses = fields[0], int(fields[2])
        senses = " ".join(spelled[lemma][offset] for offset in fields[-n_senses:])
        others = " ".join(f"{mark}{count}" for mark, count in sorted(readings.get(lemma, {}).items()))
        lemmas.append(f"{lemma}\t{senses}\t{others}")
    plurals = [f"{form}\t{' '.join(bases)}" for form, bases in exceptions(folder / "noun.exc").items()]
    return "\n\n".join("\n".join(block) for block in (synsets, lemmas, plurals)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun, index.noun, ...")
    parser.add_argument("--pictured", type=Path, required=True, help="text file of wnids, one a line")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    text = compile_lexicon(args.wordnet, set(args.pictured.read_text(encoding="utf-8").split()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    packed = lzma.compress(text.encode(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
    args.out.write_bytes(packed)
    print(f"{args.out}: {len(text):,} characters, {len(packed):,} bytes packed")


if __name__ == "__main__":
    main()
