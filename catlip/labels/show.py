"""`catlip explain`: a caption's labels, word by word, in the terminal."""

from dataclasses import dataclass
from typing import Literal

from catlip.labels.labeler import Labeler
from catlip.notices import say


@dataclass(kw_only=True, slots=True)
class ExplainConfig:
    """Show what becomes of each word of a caption, and why."""

    caption: str
    rule: Literal["nouns", "corenet"] = "nouns"
    ancestors: int = 0  # also show the labels with hypernyms up to so many levels
    lexicon: str | None = None  # TSV of your own terms: phrase, label


def explain(cfg: ExplainConfig) -> None:
    labeler = Labeler(cfg.rule, ancestors=cfg.ancestors, lexicon=cfg.lexicon)
    told = labeler.explain(cfg.caption)
    width = max((len(word.text) for word in told), default=0)
    for word in told:
        labels = ", ".join(f"{label} {labeler.name(label)}" for label in word.labels) or "-"
        say(f"{word.text:<{width}}  {labels:<28}  {word.why}")
    found = labeler([cfg.caption])[0]
    say(f"{len(found)} labels: " + ", ".join(f"{labeler.name(label)} ({label})" for label in found))
