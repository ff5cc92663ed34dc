"""Which synsets name the same visible thing: catlip/labels/nouns/synonyms.tsv, from captions of the same pictures.

    uv run tools/build_synonyms.py --captions flickr30k.tsv.gz --tars 'train-*.tar' --without 'val-*.tar' 'test-*.tar'

Two synsets are one concept if the word that a caption uses says little about the word that another caption of the
picture uses: P(B in another caption | A) is nearly P(B in another caption | B), and the other way round. "Puppy" fails:
beside "puppy" other captions say dog, but beside "dog" they rarely say puppy. Candidates are near in WordNet,
do not stand together in one caption, and neither is a phrase that ends with the other's word (tennis racket).

Every other picture of the table of captions is used, and none whose id is in `--without`; the others are for measuring.
The rule finds candidates. A verdict "apart", written by hand into the table for a kind of its own (mule, donkey),
stays when the table is made anew.
"""

import argparse
import gzip
import tarfile
from collections import Counter
from collections.abc import Iterator
from glob import glob
from itertools import combinations
from pathlib import Path

from catlip.labels.labeler import Labeler
from catlip.labels.nouns.words import SYNONYMS_FILE
from catlip.labels.wordnet import Lexicon

LEAST_PAIRS = 15  # of captions of one picture, one with A and one with B
LEAST = 0.4  # of the smaller of the two ratios
MOST_TOGETHER = 0.1  # in one caption, of the pairs of captions
STEPS = 3  # in WordNet, by a common hypernym; more for two synsets that share a spelling


def from_tars(pattern: str) -> Iterator[tuple[str, list[str]]]:
    for path in sorted(glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".txt") and file:
                    yield member.name.split("_")[0], file.read().decode().splitlines()


def pictures(args: argparse.Namespace) -> list[list[str]]:
    found = dict(from_tars(args.tars))
    without = {key for pattern in args.without for key, _ in from_tars(pattern)} | set(found)
    table: dict[str, list[str]] = {}
    with gzip.open(args.captions, "rt", encoding="utf-8") as lines:
        for line in lines:
            key, _, caption = line.rstrip("\n").partition("\t")
            table.setdefault(key.removesuffix(".jpg"), []).append(caption)
    return [*found.values(), *(some for key, some in table.items() if key.isdigit() and int(key) % 2 == 0
                               and key not in without)]  # fmt: skip


def related(wordnet: Lexicon, a: str, b: str) -> bool:
    above_a, above_b = wordnet.above(a), wordnet.above(b)
    steps = min((above_a[s] + above_b[s] for s in above_a.keys() & above_b.keys()), default=99)
    lemmas_a, lemmas_b = wordnet.synonyms[a], wordnet.synonyms[b]
    head = any(x.endswith(f"_{y}") or y.endswith(f"_{x}") for x in lemmas_a for y in lemmas_b)
    shared = bool(set(lemmas_a) & set(lemmas_b))
    same_kind = wordnet.synset(a).lexfile == wordnet.synset(b).lexfile
    return same_kind and not head and (shared or steps <= STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--captions", type=Path, required=True, help="image<TAB>caption, gzip")
    parser.add_argument("--tars", required=True)
    parser.add_argument("--without", nargs="*", default=[])
    args = parser.parse_args()
    labeler = Labeler(canonical=False, heads=False)
    uses: Counter[str] = Counter()
    across: Counter[tuple[str, str]] = Counter()  # ordered pairs of captions of a picture, A in one and B in the other
    together: Counter[tuple[str, str]] = Counter()  # captions with both
    others: Counter[str] = Counter()  # captions beside one with A
    for captions in pictures(args):
        found = [set(labels) for labels in labeler(captions)]
        for i, labels in enumerate(found):
            uses.update(labels)
            together.update(combinations(sorted(labels), 2))
            others.update(dict.fromkeys(labels, len(found) - 1))
            for j, more in enumerate(found):
                if j != i:
                    across.update((a, b) for a in labels for b in more)
    verdicts = {}
    if SYNONYMS_FILE.is_file():
        lines = SYNONYMS_FILE.read_text(encoding="utf-8").splitlines()
        verdicts = {tuple(row[1:3]): row[0] for row in (line.split("\t") for line in lines) if len(row) > 2}
    wordnet, rows = labeler.wordnet, []
    for (a, b), pairs in across.items():
        if uses[a] > uses[b] or (uses[a] == uses[b] and a > b) or a == b or pairs < LEAST_PAIRS:
            continue
        if not (across[a, a] and across[b, b]):
            continue
        share = {(x, y): across[x, y] / others[x] for x in (a, b) for y in (a, b)}
        ratio = min(share[a, b] / share[b, b], share[b, a] / share[a, a])
        if ratio < LEAST or together[min(a, b), max(a, b)] / pairs > MOST_TOGETHER or not related(wordnet, a, b):
            continue
        names = f"{wordnet.synset(a).name}\t{wordnet.synset(b).name}"
        rows.append((ratio, f"{verdicts.get((a, b), 'same')}\t{a}\t{b}\t{ratio:.2f}\t{pairs}\t{names}"))
    for _, row in sorted(rows, reverse=True):
        print(row)


if __name__ == "__main__":
    main()
