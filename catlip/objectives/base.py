"""What an objective is, and how it is built. Your own needs no more than this (docs/python.md has an example).

An objective is a module on an encoder: `forward(batch) -> (loss, metrics)`, the loss averaged over the batch's images,
`batch.image` in the encoder's input space. What it may have besides:

- `needs_global_batch = True`: it compares the images of a step with one another, so a step cannot be split.
- `after_step()`: called after every step of the optimiser, on all processes.
- `loss(pooled, batch)`: the same from the encoder's pooled output [B, D], so that it can be part of a `Hybrid`.
- `classifier`: an nn.Linear over pooled features with a row a class of the vocabulary, shipped with the encoder.
- `save(out)`: write what is to be used later beside the encoder, such as a text tower.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from catlip.errors import UsageError
from catlip.labels.tokenizer import Tokenizer
from catlip.labels.vocabulary import Vocabulary
from catlip.models.text_tower import TextConfig

if TYPE_CHECKING:
    from catlip.models.sentences import Sentences

NEEDS = {"labels", "tokens", "sentences"}  # batch.labels and batch.offsets; batch.tokens; batch.sentences


@dataclass(frozen=True, slots=True)
class Context:
    """What an objective may ask of its surroundings."""

    vocabulary: Vocabulary  # of the labels; empty unless the objective needs labels
    tokenizer: Tokenizer | None = None  # the one that makes batch.tokens; None unless the objective needs tokens
    text: TextConfig = field(default_factory=TextConfig)  # the size that a text tower should have
    # Where training will take place; modules are moved there later.
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sentences: "Sentences | None" = None  # what makes batch.sentences; None unless the objective needs sentences

    def reader(self, text: str) -> "Tokenizer | Sentences":
        """What reads captions for a text side: "tower", or "frozen" sentence embeddings."""
        found = self.sentences if text == "frozen" else self.tokenizer
        assert found is not None
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Context":
        return self  # the same for every copy of a task


def needs_of(objective: Any) -> frozenset[str]:
    """What the loader has to make for an objective: some of `NEEDS`. objective: a config, or a class of one's own.

    Raises UsageError for a need that does not exist.
    """
    stated = getattr(objective, "needs", ())
    needs = frozenset([stated] if isinstance(stated, str) else stated)
    if unknown := needs - NEEDS:
        raise UsageError(f"`objective` needs {', '.join(sorted(unknown))}; there are {', '.join(sorted(NEEDS))}")
    return needs


def build_objective(objective: Any, encoder: nn.Module, context: Context) -> nn.Module:
    """A config's own `build(encoder, context)`, or a class called with the same two arguments."""
    make: Any = getattr(objective, "build", objective)
    if not callable(make) or isinstance(make, nn.Module):
        raise UsageError(f"`objective` {objective!r} is neither a config with `build` nor a class")
    built: Any = make(encoder, context)
    if not isinstance(built, nn.Module) or type(built).forward is nn.Module.forward:
        raise UsageError(f"`objective` {name_of(objective)} gives no module with a `forward(batch)`")
    return built


def name_of(objective: Any) -> str:
    """What metrics, folders and pages call it."""
    found = getattr(objective, "name", None)
    return found if isinstance(found, str) else getattr(objective, "__name__", type(objective).__name__)
