"""Endings of an inflected language from a dictionary of forms: the lines "ending" of words.tsv, printed.

    python tools/build_endings.py catlip/labels/languages/pl forms.tsv > endings.tsv

The dictionary has a line `lemma<TAB>form` for each form of a noun; what follows is not read, so UniMorph's files fit.
Of the forms of the language's nouns, the differences from their lemmas are counted; a noun counts ten times if it is
common: if a line "sense" of this or a shipped language has its synset. Those that occur often become endings, the
longest first. A form of a common noun that they lead to another meaning, or to none, has a line of its own. What the
forms of all nouns then lead to is said at the end.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from catlip.labels.languages.language import Language, open_languages

COMMON = 10  # weight of a common noun


def difference(form: str, lemma: str) -> tuple[str, str]:
    """(end of the form, end of the lemma), without what they begin with alike."""
    same = next((i for i, (a, b) in enumerate(zip(form, lemma, strict=False)) if a != b), min(len(form), len(lemma)))
    return form[same:], lemma[same:]


def endings_of(forms: dict[str, set[str]], common: set[str], least: int) -> list[tuple[str, str]]:
    """(end of a form, end of a lemma) as they are to be tried. forms: of each lemma."""
    counts: Counter[tuple[str, str]] = Counter()
    for lemma, some in forms.items():
        for form in some - {lemma}:
            counts[difference(form, lemma)] += COMMON if lemma in common else 1
    often = [(pair, count) for pair, count in counts.items() if count >= least]
    return [pair for pair, _ in sorted(often, key=lambda one: (-len(one[0][0]), one[0][0], -one[1], one[0][1]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="with words.tsv and the nouns")
    parser.add_argument("forms", type=Path, help="lines lemma<TAB>form")
    parser.add_argument("--least", type=int, default=31, help="times that a difference has to occur")
    args = parser.parse_args()
    language = Language(args.folder)
    tables = [language, *open_languages("auto")]
    named = {field[0].split()[0] for table in tables for field in table.lists.get("sense", {}).values()}
    nouns = {lemma: noun for lemma in language.lemmas if (noun := language.entry(lemma))}
    common = {lemma for lemma, noun in nouns.items() if not named.isdisjoint(noun.synsets[:1])}
    forms: dict[str, set[str]] = defaultdict(set)
    for line in args.forms.read_text(encoding="utf-8").splitlines():
        lemma, form, *_ = [*line.split("\t"), ""]
        if form and " " not in form and lemma in nouns:
            forms[lemma].add(form)
    endings = endings_of(forms, common, args.least)
    language.set_endings(endings)
    lemmas: dict[str, list[str]] = defaultdict(list)
    for lemma, some in forms.items():
        for form in some:
            lemmas[form].append(lemma)
    told: Counter[str] = Counter()
    exceptions = []
    for form, own in lemmas.items():
        found = language.noun(form)
        meant = sorted(common & set(own), key=lambda lemma: (len(lemma), lemma)) or own
        right = found is not None and any(nouns[lemma].synsets == found.synsets for lemma in meant)
        told["right" if right else "another" if found else "none"] += 1
        if not right and not common.isdisjoint(own):
            exceptions.append((form, meant[0]))
    lines: dict[str, list[str]] = defaultdict(list)
    for old, new in [*sorted(exceptions), *endings]:
        lines[old].append(new or "-")
    for old, replacements in sorted(lines.items(), key=lambda line: -len(line[0])):
        print("ending", old, " ".join(replacements), sep="\t")
    print({kind: f"{count / len(lemmas):.1%}" for kind, count in told.items()}, len(lines), "lines", file=sys.stderr)


if __name__ == "__main__":
    main()
