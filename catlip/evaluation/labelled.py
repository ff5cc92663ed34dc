"""Labelled pictures as an encoder sees them, in the classes of a training set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catlip.data.images import Unreadable
from catlip.data.labelled import LabelledDataset, open_labelled_dataset
from catlip.errors import UsageError
from catlip.evaluation.classified import accuracies, ranks
from catlip.evaluation.decoded import decoded
from catlip.evaluation.multilabel import Counted, exact_metrics
from catlip.models.encoder import Encoder

EXACT = 2**27  # scores of a multi-label set that are kept to be sorted


def open_labelled(data: str) -> LabelledDataset:
    """A set with one class a picture, in any form that `open_labelled_source` reads. Raises UsageError."""
    found = open_labelled_dataset(data)
    if found.multi:
        raise UsageError(f"{data!r}: its pictures have several labels, and one each is needed here")
    return found


def class_indices(train: LabelledDataset, test: LabelledDataset) -> tuple[list[str], Tensor, Tensor]:
    """(class names, int64 [train], int64 [test]). Raises UsageError for a test label that training never saw."""
    y_test = test.within(train.classes, "`test`").labels
    if len(train.classes) < 2:
        raise UsageError(f"`train` {train.name} has a single class, {train.classes[0]!r}; two or more are needed")
    return train.classes, torch.from_numpy(train.labels), torch.from_numpy(y_test)


@torch.no_grad()
def features(
    encoder: Encoder, data: LabelledDataset, device: torch.device, unreadable: Unreadable | None = None
) -> tuple[Tensor, Tensor]:
    """(float [N, D] pooled features, int64 [N] which pictures they belong to).

    Pictures that cannot be read are left out and added to `unreadable`. Raises UsageError if these are more than 1 %.
    """
    encoder.to(device).eval()
    rows, kept, left_out = [], [], Unreadable() if unreadable is None else unreadable
    for numbers, _, pixels in decoded(data, range(len(data)), encoder.pixels, left_out):
        rows.append(encoder.pooled(encoder.normalize(pixels.to(device))).float().cpu())
        kept += numbers
    return torch.cat(rows), torch.tensor(kept)


@torch.no_grad()
def evaluate(
    objective: Any, data: LabelledDataset, device: torch.device, unreadable: Unreadable | None = None
) -> dict[str, float]:
    """In percent: top-1, top-5 and mean per class; of multi-label sets mAP and F1. objective: a `ClassObjective`.

    Where all scores together would take over half a gigabyte, average precision is counted (see `Counted`), and its
    error stated. Pictures that cannot be read: as in `features`.
    """
    objective.eval()
    scores, kept, left_out = [], [], Unreadable() if unreadable is None else unreadable
    counted = Counted(len(data.classes)) if data.multi and len(data) * len(data.classes) > EXACT else None
    for numbers, _, pixels in decoded(data, range(len(data)), objective.encoder.pixels, left_out, batch_size=64):
        some = objective.logits(pixels.to(device)).float().cpu()
        if counted is None:
            scores.append(some)
            kept += numbers
        else:
            counted.update(some, positives(data, numbers))
    if counted is not None:
        return counted.metrics()
    if data.multi:
        return exact_metrics(torch.cat(scores), positives(data, kept))
    wanted = torch.from_numpy(data.labels)[kept]
    found = accuracies(ranks(torch.cat(scores), wanted), wanted)
    return found if len(data.classes) > 5 else {name: value for name, value in found.items() if name != "top5"}


def positives(data: LabelledDataset, numbers: Sequence[int]) -> Tensor:
    """bool [len(numbers), classes]: which classes these pictures have."""
    found = torch.zeros(len(numbers), len(data.classes), dtype=torch.bool)
    for row, number in enumerate(numbers):
        found[row, torch.from_numpy(data.labels[data.offsets[number] : data.offsets[number + 1]])] = True
    return found
