"""What a rule says of a caption's words, for people."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of one word or phrase of a caption."""

    text: str
    labels: tuple[str, ...]  # empty: no label
    why: str
