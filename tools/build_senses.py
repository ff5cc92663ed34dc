"""What captions mean by a noun in another language: lines "sense" and "never" of languages/CODE/words.tsv.

    uv run tools/build_senses.py de --captions train.de.gz --english train.en.gz

From captions in two languages, line by line the same, of which every fifth is left out for measuring. Which label of
the English caption a word explains is found by IBM model 1 (Brown et al. 1993), a word for each noun or unknown word of
the caption, a target for each label. Lines are printed where that differs from what the tables say now: another sense;
a word that the wordnet lacks; a phrase that means more than its words ("junger Mann"); a noun that is something else in
captions ("never"). Each has its numbers: of the captions with the word, the share whose English caption has the label.

What is printed are candidates. A person reads them before they go into the table.
"""

import argparse
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from catlip.labels.labeler import Labeler
from catlip.labels.languages.language import Language, open_languages
from catlip.labels.nouns.words import Kind

LEAST_USES = 4  # captions with a word, for a sense
LEAST_PHRASE_USES = 8
LEAST_NEVER_USES = 6
LEAST_RATE = 0.3  # of the uses of a word that explain the label, by the model
LEAST_SHARE = 0.45  # of the captions with the word whose English caption has the label
MOST_NEVER = 0.1
MUCH_LESS = 0.05  # of a share: what the tables say now stays if it is not so much worse
NOUN_LIKE = 0.5  # of the uses that follow an article or preposition, in languages that do not capitalise nouns
ROUNDS = 10
NULL = ""


def align(sources: list[set[str]], targets: list[list[str]]) -> dict[str, dict[str, float]]:
    """IBM model 1 -> {word: {label: expected uses of the word that explain it}}."""
    words: dict[str, int] = {NULL: 0}
    labels: dict[str, int] = {}
    rows, columns, mentions, count = [], [], [], 0
    for source, target in zip(sources, targets, strict=True):
        for label in target:
            for word in (NULL, *source):
                rows.append(words.setdefault(word, len(words)))
                columns.append(labels.setdefault(label, len(labels)))
                mentions.append(count)
            count += 1
    pairs, pair_of = np.unique(np.array(rows, np.int64) * len(labels) + np.array(columns), return_inverse=True)
    mention, word_of = np.array(mentions), pairs // len(labels)
    chance = expected = np.ones(len(pairs))
    for _ in range(ROUNDS):
        each = chance[pair_of]
        expected = np.bincount(pair_of, each / np.bincount(mention, each, count)[mention], len(pairs))
        chance = expected / np.bincount(word_of, expected, len(words))[word_of]
    found: dict[str, dict[str, float]] = defaultdict(dict)
    word_names, label_names = list(words), list(labels)
    for pair, uses in zip(pairs.tolist(), expected.tolist(), strict=True):
        found[word_names[pair // len(labels)]][label_names[pair % len(labels)]] = uses
    return found


class Corpus:
    """The captions of both languages, word by word."""

    def __init__(self, language: Language, captions: list[str], english: list[str]) -> None:
        self.language, self.labeler = language, Labeler()
        self.labels = [set(labels) for labels in self.labeler(english)]
        self.mentions = Labeler(heads=False)(english)
        self.words = [language.normalize([caption]).split()[:-1] for caption in captions]
        self.uses: dict[str, list[int]] = defaultdict(list)  # noun, or phrase -> captions
        self.spelled: dict[str, Counter[str]] = defaultdict(Counter)
        self.after_article: Counter[str] = Counter()
        units: list[set[str]] = []
        for i, words in enumerate(self.words):
            nouns = {self.unit(word): word for word in words if self.may_be_noun(word)}
            for noun, word in nouns.items():
                self.uses[noun].append(i)
                self.spelled[noun][word] += 1
            for before, word in pairwise(words):
                kind = language.function.get(before.lower())
                if self.may_be_noun(word) and kind in (Kind.DETERMINER, Kind.NUMBER, Kind.PREPOSITION):
                    self.after_article[self.unit(word)] += 1
            for phrase in set(self.phrases(words)):
                key = " ".join(map(language.key, phrase.split(" ")))
                self.uses[key].append(i)
                self.spelled[key][phrase] += 1
            units.append(set(nouns))
        self.explained = align(units, self.mentions)

    def may_be_noun(self, word: str) -> bool:
        known = not word[0].isalpha() or len(word) < 2 or word.lower() in self.language.function
        return not known and (word[0].isupper() or not self.language.spelling.capitals)

    def unit(self, word: str) -> str:
        """The lemma of a noun, or a compound or unknown word as it is."""
        noun = self.language.noun(word)
        return noun.lemma if noun and "compound" not in noun.why else word

    def phrases(self, words: list[str]) -> Iterable[str]:
        """Two words that end with a noun; two nouns with a preposition between them."""
        for first, second in pairwise(words):
            if first[0].isalpha() and len(first) > 2 and self.may_be_noun(second):
                yield f"{first} {second}"
        for first, between, last in zip(words, words[1:], words[2:], strict=False):
            preposition = self.language.function.get(between.lower()) == Kind.PREPOSITION
            if (
                preposition
                and self.may_be_noun(first)
                and self.may_be_noun(last)
                and not self.language.spelling.capitals
            ):
                yield f"{first} {between} {last}"

    def share(self, label: str, captions: list[int]) -> float:
        return sum(label in self.labels[i] for i in captions) / max(len(captions), 1)

    def noun_like(self, unit: str) -> bool:
        return self.language.spelling.capitals or self.after_article[unit] >= NOUN_LIKE * len(self.uses[unit])

    def beside(self, label: str, captions: list[int]) -> list[str]:
        """The label with its hypernym that comes with it nearly always: a young man is a man."""
        both = [i for i in captions if label in self.labels[i]]
        others = Counter(other for i in both for other in self.labels[i] - {label})
        above = self.labeler.wordnet.above(label) if self.labeler.wordnet.has_synset(label) else {}
        found = [other for other, uses in others.items() if other in above and uses >= 0.6 * len(both) >= 2]
        return [label, *found[:1]]

    def now(self, unit: str) -> str:
        """The label that the tables give now, canonical; "" without."""
        noun = self.language.noun(self.spelled[unit].most_common(1)[0][0])
        return self.labeler.synonym(noun.synsets[0]) if noun and noun.synsets else ""

    def sense(self, unit: str) -> tuple[str, str, list[str], float] | None:
        """(kind of line, word, labels, share) of a word that the tables should know otherwise."""
        captions, now = self.uses[unit], self.now(unit)
        uses = self.explained.get(unit, {})
        best = max(uses, key=lambda label: uses[label], default="")
        of_now, of_best = self.share(now, captions), self.share(best, captions)
        if len(captions) < LEAST_USES or (
            now and (of_now >= LEAST_SHARE or of_now >= of_best - MUCH_LESS > MOST_NEVER)
        ):
            return None
        if best and uses[best] >= LEAST_RATE * len(captions) and of_best >= LEAST_SHARE and self.noun_like(unit):
            return "sense", unit, self.beside(best, captions), of_best
        if now and len(captions) >= LEAST_NEVER_USES and of_now < MOST_NEVER:
            return "never", unit, [now], of_now
        return None

    def phrase(self, key: str) -> tuple[str, str, list[str], float] | None:
        """As `sense`, of a phrase that means what none of its words does."""
        captions = self.uses[key]
        parts = [
            self.unit(word) for word in self.spelled[key].most_common(1)[0][0].split(" ") if self.may_be_noun(word)
        ]
        known = self.language.by_hand(self.spelled[key].most_common(1)[0][0])
        if known or len(captions) < LEAST_PHRASE_USES or not all(map(self.noun_like, parts)):
            return None
        of_parts = {self.now(part) for part in parts} - {""}
        mentioned = Counter(label for i in captions for label in self.mentions[i])
        for label, uses in mentioned.most_common(3):
            labels = self.beside(label, captions)
            lost = any(self.share(part, captions) > LEAST_SHARE for part in of_parts - set(labels))
            alone = max((self.share(label, self.uses[part]) for part in parts), default=0.0)
            if label not in of_parts and uses >= 0.5 * len(captions) and not lost and 2 * alone < uses / len(captions):
                return "sense", self.spelled[key].most_common(1)[0][0], labels, uses / len(captions)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("language")
    parser.add_argument("--captions", type=Path, required=True, help="in the language, one a line, gzip")
    parser.add_argument("--english", type=Path, required=True, help="the same captions in English")
    args = parser.parse_args()
    texts = [gzip.decompress(path.read_bytes()).decode().splitlines() for path in (args.captions, args.english)]
    kept = [pair for i, pair in enumerate(zip(*texts, strict=True)) if i % 5]
    corpus = Corpus(open_languages(args.language)[0], *map(list, zip(*kept, strict=True)))
    found = [corpus.phrase(unit) if " " in unit else corpus.sense(unit) for unit in list(corpus.uses)]
    lines = [(len(corpus.uses[unit]), line) for unit, line in zip(list(corpus.uses), found, strict=True) if line]
    for uses, (section, word, labels, share) in sorted(lines, key=lambda item: (item[1][0], -item[0], item[1][1])):
        names = " ".join(map(corpus.labeler.name, labels))
        meaning = f"in captions rarely {names}" if section == "never" else " ".join(labels)
        print(f"{section}\t{word}\t{meaning}\t{share:.2f} of {uses}" + (f"\t{names}" if section == "sense" else ""))


if __name__ == "__main__":
    main()
