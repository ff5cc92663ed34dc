"""Names for objectives on the command line: `pretrain --objective NAME`, and those that `compare` sets side by side.

A name is one of the table, a sum of them (`clip+subwords` is SuperCLIP), or `mine.py:my_recipe`: the objective of a
recipe of your own.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from catlip.errors import UsageError
from catlip.objectives.base import needs_of
from catlip.objectives.clip import Clip, SigLip
from catlip.objectives.clip_lite import ClipLite
from catlip.objectives.hybrid import Hybrid
from catlip.objectives.subwords import Subwords
from catlip.objectives.synsets import Synsets
from catlip.objectives.text import Text
from catlip.recipes import load_recipe

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "synsets": Synsets,
    "synsets_softmax": partial(Synsets, loss="softmax", idf=True),
    "synsets_asymmetric": partial(Synsets, loss="asymmetric"),
    "subwords": Subwords,
    "clip": Clip,
    "siglip": SigLip,
    "clip_lite": ClipLite,
    "text": Text,
    "clip_frozen": partial(Clip, text="frozen"),
    "siglip_frozen": partial(SigLip, text="frozen"),
    "clip_lite_frozen": partial(ClipLite, text="frozen"),
}
TEACHER = 0.5  # share of the first part's gradient that each other one gets where one reads frozen sentences


def objective_named(name: str) -> Any:
    """The config, or the class, that a name stands for. Raises UsageError for a name that does not exist."""
    if ".py:" in name:
        return load_recipe(name).objective
    names = name.split("+")
    unknown = [part for part in names if part not in OBJECTIVES]
    if unknown:
        known = ", ".join(OBJECTIVES)
        raise UsageError(
            f"`objective` {name}: there is no {unknown[0]!r}; there are {known}, sums (a+b), and file.py:recipe"
        )
    parts = tuple(OBJECTIVES[part]() for part in names)
    if len(parts) == 1:
        return parts[0]
    teacher = any("sentences" in needs_of(part) for part in parts)
    weights = (1.0, *(len(parts) - 1) * [TEACHER if teacher else 1.0])
    return Hybrid(parts=parts, weights=weights, balance=teacher)


def label_of(name: str) -> str:
    """What folders and pages call an objective: the name, or for one's own its function and what its file is today."""
    if ".py:" not in name:
        return name
    file, _, function = name.rpartition(":")
    return f"{function}-{sha256(Path(file).read_bytes()).hexdigest()[:6]}"
