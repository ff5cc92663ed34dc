"""Print the quality of both rules on the gold set, and with --reach how many ImageNet classes a caption can name.

uv run python -m tests.gold [--reach]
"""

import sys
from pathlib import Path

from catlip.labels.labeler import Labeler
from tests.gold import load, score


def quality() -> None:
    halves = {
        "development": load("development"),
        "held-out": load("held_out"),
        "held-out, Flickr30k": load("held_out", without=("alt-text",)),
        "held-out, alt-text": load("held_out", without=("flickr30k",)),
    }
    for rule in ("corenet", "nouns"):
        labeler = Labeler(rule)
        for name, golds in halves.items():
            print(f"{rule:<8} {name:<20} {len(golds):>4} captions  {score(labeler, golds)}")


def reach(labeler: Labeler) -> int:
    """Classes of ImageNet-1k that get their own synset from one of their lemmas, written in a caption."""
    import timm

    file = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    pairs = [
        (synset, f"a photo of a {lemma.replace('_', ' ')}")
        for synset in file.read_text(encoding="utf-8").split()
        for lemma in labeler.wordnet.synonyms[synset]
    ]
    found = labeler([caption for _, caption in pairs])
    return len({synset for (synset, _), labels in zip(pairs, found, strict=True) if synset in labels})


if __name__ == "__main__":
    quality()
    if "--reach" in sys.argv:
        for rule in ("corenet", "nouns"):
            print(f"{rule:<8} ImageNet-1k classes reached: {reach(Labeler(rule))}")
