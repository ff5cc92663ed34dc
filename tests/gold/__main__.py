"""Print the quality of both rules on the gold set, with --reach how many ImageNet classes a name can mean and a caption
gets as its label, with --consistency how often captions of one picture agree.

--languages: the quality in languages without parallel captions, and captions a second of one core, words known.

uv run python -m tests.gold [--reach] [--consistency] [--languages]
"""

import statistics
import sys
import time
from pathlib import Path

from catlip.labels.labeler import Labeler
from tests.gold import captions, consistency, load, score


def quality() -> None:
    halves = {
        "development": load("development"),
        "held-out": load("held_out"),
        "held-out, Flickr30k": load("held_out", without=("alt-text",)),
        "held-out, alt-text": load("held_out", without=("flickr30k",)),
    }
    for name in ("web_development", "web_held_out", "web_held_out_2"):
        golds = load(name)
        for kind in dict.fromkeys(gold.source for gold in golds):
            halves[f"{name} {kind}"] = [gold for gold in golds if gold.source == kind]
        halves[name] = golds
    for rule in ("corenet", "nouns"):
        labeler = Labeler(rule)
        for name, golds in halves.items():
            print(f"{rule:<8} {name:<24} {len(golds):>4} captions  {score(labeler, golds)}")


def consistent() -> None:
    """On pictures that synonyms.tsv was not made from."""
    flickr30k = captions("flickr30k")
    pictures = {"Flickr8k val": captions("flickr8k-val"), "Flickr30k, odd ids": {}}
    known = {key.split("_")[0] for split in ("train", "val", "test") for key in captions(f"flickr8k-{split}")}
    odd = [key for key in flickr30k if key.isdigit() and int(key) % 2 and key not in known]
    pictures["Flickr30k, odd ids"] = {key: flickr30k[key] for key in odd[:6000]}
    for settings in ({"canonical": False, "heads": False}, {"heads": False}, {}):
        for name, some in pictures.items():
            print(f"{consistency(Labeler(**settings), some.values()):.4f}  {name}, {len(some):,} pictures  {settings}")


def languages(copies: int = 400, rounds: int = 5) -> None:
    halves = [load(f"languages_{half}") for half in ("development", "held_out")]
    codes = list(dict.fromkeys(gold.language for golds in halves for gold in golds))
    rates: dict[str, list[float]] = {code: [] for code in codes}
    labelers = {code: Labeler(language=code) for code in codes}
    for _ in range(rounds + 1):
        for code in codes:
            some = [gold.caption for golds in halves for gold in golds if gold.language == code] * copies
            began = time.process_time()
            labelers[code].sparse(some)
            rates[code].append(len(some) / (time.process_time() - began))
    for code in codes:
        scores = "   ".join(str(score(labelers[code], [g for g in golds if g.language == code])) for golds in halves)
        rate, english = (statistics.median(rates[key][1:]) for key in (code, "en"))
        print(f"{code}   {scores}   {rate:,.0f} captions/s, {rate / english:.0%} of English")


def reach(labeler: Labeler) -> int:
    """Classes of ImageNet-1k whose synset is among the meanings of one of their lemmas, as a class name."""
    import timm

    file = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    pairs = [
        (synset, lemma.replace("_", " "))
        for synset in file.read_text(encoding="utf-8").split()
        for lemma in labeler.wordnet.synonyms[synset]
    ]
    return len({synset for synset, name in pairs if any(synset in word.labels for word in labeler.meanings(name))})


def reach_by_captions(labeler: Labeler) -> dict[str, int]:
    """Classes of ImageNet-1k that are a training label of a caption with their lemma, alone and beside their gloss.

    A caption is "a photo of a crane", or "a crane, large long-necked wading bird of marshes and plains ...": the first
    clause of WordNet's gloss, whatever the rule makes of it.
    """
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    found = dict.fromkeys(("first lemma", "any lemma", "first lemma and gloss", "any lemma and gloss"), 0)
    for number, synset in enumerate(info.label_names()):
        lemmas, _, gloss = info.index_to_description(number, detailed=True).partition(": ")
        names, gloss = [name.strip() for name in lemmas.split(",")], gloss.split(";")[0]
        alone, beside = ([f"a photo of a {name}" for name in names], [f"a {name}, {gloss}" for name in names])
        for kind, some in zip(found, (alone[:1], alone, beside[:1], beside), strict=True):
            found[kind] += any(labeler.synonym(synset) in labels for labels in labeler(some))
    return found


if __name__ == "__main__":
    if "--languages" not in sys.argv:
        quality()
    if "--consistency" in sys.argv:
        consistent()
    if "--languages" in sys.argv:
        languages()
    if "--reach" in sys.argv:
        for rule in ("corenet", "nouns"):
            print(f"{rule:<8} ImageNet-1k classes reached: {reach(Labeler(rule))}; {reach_by_captions(Labeler(rule))}")
