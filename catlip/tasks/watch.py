"""Looking at a run while it trains: average precision on held-out captions, a vote of neighbours on a labelled set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation import held_out
from catlip.evaluation.features import class_indices, features, open_labelled
from catlip.evaluation.knn import knn
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.training.objective import synset_part


@dataclass(kw_only=True, slots=True)
class Watch:
    """What is measured during the run. None of it decides anything about the training."""

    held_out: str = ""  # captioned pictures, as --data: mean average precision of the labels in their captions
    held_out_limit: int = 2000  # pictures of it, drawn at random
    probe: str = ""  # labelled pictures (tars with KEY.cls, or a folder per class): a fifth is named by its neighbours
    watch_every: int = 0  # samples between looks; 0: ten looks a run
    track: tuple[str, ...] = ()  # beside TensorBoard: wandb, trackio


def make_watch(
    cfg: Watch, vocabulary: Vocabulary, encoder: Encoder, device: torch.device, out: Path, main: bool
) -> Callable[[nn.Module, int], dict[str, float]] | None:
    """A function of (task, samples seen) that measures, or None if there is nothing to measure.

    Raises UsageError for data that cannot be opened, before training starts.
    """
    data = (
        held_out.open_held_out(open_dataset(cfg.held_out), vocabulary, encoder.pixels, cfg.held_out_limit)
        if cfg.held_out
        else None
    )
    labelled = open_labelled(cfg.probe) if cfg.probe else None
    if data is None and labelled is None:
        return None
    if labelled is not None and len(labelled) < 10:
        raise UsageError(f"`probe` {cfg.probe}: {len(labelled)} pictures are too few to tell anything")

    @torch.no_grad()
    def watch(task: nn.Module, seen: int) -> dict[str, float]:
        task.eval()
        objective: Any = task.get_submodule("objective")
        synsets = synset_part(objective)
        found: dict[str, float] = {}
        if data is not None and synsets is not None:
            parts = [synsets.logits(p.to(device)).float().cpu() for p in data.pixels.split(64)]
            scores = held_out.score(torch.cat(parts), data)
            found |= {"mAP": 100 * scores.mean_ap, "top-1": 100 * scores.top1}
            if main:
                held_out.write(out / held_out.FILE, scores, data, vocabulary)
        if labelled is not None:
            found["kNN"] = _vote(objective.encoder, labelled, device)
        return found

    return watch


def _vote(encoder: Any, labelled: Any, device: torch.device) -> float:
    """Accuracy in percent of the neighbours among four fifths of a labelled set, on the last fifth."""
    everything, kept = features(encoder, labelled, device)
    _, y, _ = class_indices(labelled, labelled)
    y = y[kept]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return knn(everything[train], y[train], everything[test], y[test])
