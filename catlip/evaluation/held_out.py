"""Captioned images that were not trained on: which of the nouns in their captions does a classifier name?"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from catlip.atomic import write_text
from catlip.data.dataset import Dataset, Sample
from catlip.data.images import Unreadable
from catlip.data.subsets import some_of
from catlip.errors import UsageError
from catlip.evaluation.features import decoded
from catlip.evaluation.multilabel import average_precision, top1
from catlip.labels.vocabulary import Vocabulary

FILE = "held_out.json"
SHEET = 48  # images whose predictions are kept for the report


@dataclass(slots=True)
class HeldOut:
    """N images with the classes that their captions name."""

    records: list[Sample]  # without the encoded images
    pixels: Tensor  # uint8 [N, 3, size, size]
    rows: Tensor  # int64 [L]: image of each label
    labels: Tensor  # int64 [L]: its class

    def __len__(self) -> int:
        return len(self.pixels)

    def positive(self, classes: Tensor) -> Tensor:
        """bool [N, len(classes)]: which images have each of the classes."""
        column = torch.full((int(max(self.labels.max(), classes.max())) + 1,), -1)
        column[classes] = torch.arange(len(classes))
        found = torch.zeros(len(self), len(classes), dtype=torch.bool)
        at = column[self.labels]
        found[self.rows[at >= 0], at[at >= 0]] = True
        return found


def open_held_out(source: Dataset, vocabulary: Vocabulary, view: Callable[[Any], Tensor], limit: int = 0) -> HeldOut:
    """Decode a captioned source, or a random `limit` of it. view: `Encoder.pixels` of the encoder that is to be scored.

    Raises UsageError if no caption names a known class.
    """
    source = some_of(source, limit, seed=0)
    unreadable, records, pixels = Unreadable(), list[Sample](), list[Tensor]()
    for _, some, squares in decoded(source, range(len(source)), view, unreadable):
        records += [Sample(record.key, b"", record.captions) for record in some]
        pixels.append(squares)
    labels, offsets = vocabulary.sparse(record.captions for record in records)
    if not len(labels):
        raise UsageError(f"{source.name}: not one caption names a label of the vocabulary")
    rows = np.repeat(np.arange(len(records)), np.diff(offsets))
    return HeldOut(records, torch.cat(pixels), torch.from_numpy(rows), torch.from_numpy(labels).long())


@dataclass(slots=True)
class Scores:
    """What a classifier makes of held-out images; only classes that occur are scored."""

    classes: Tensor  # int64 [C]
    average_precision: Tensor  # float [C], in [0, 1]
    positives: Tensor  # int64 [C]: images with the class
    top1: float  # share of images whose best-scored class, of the whole vocabulary, is one of theirs
    best: Tensor  # int64 [N, 5]: the best-scored classes of each image

    @property
    def mean_ap(self) -> float:
        return self.average_precision.mean().item()


@torch.no_grad()
def score(logits: Tensor, data: HeldOut) -> Scores:
    """logits [N, V] of the images, on the CPU."""
    classes, positives = data.labels.unique(return_counts=True)
    positive = data.positive(classes)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    everything = data.positive(torch.arange(logits.shape[1]))
    precisions = average_precision(logits[:, classes], positive)
    return Scores(classes, precisions, positives, top1(logits, everything), best)


def write(path: Path, scores: Scores, data: HeldOut, vocabulary: Vocabulary) -> None:
    """Per-label results and a sheet of images with predictions, for the run's report."""
    names = [name.replace("_", " ") for name in vocabulary.names]
    each = zip(scores.classes.tolist(), scores.positives.tolist(), scores.average_precision.tolist(), strict=True)
    labels = [
        {"name": names[v], "synset": vocabulary.synsets[v], "count": vocabulary.counts[v], "positives": n, "ap": ap}
        for v, n, ap in ((v, n, round(ap, 4)) for v, n, ap in each)
    ]
    sheet = [_card(row, data, scores, names) for row in range(min(SHEET, len(data)))]
    found = {"pictures": len(data), "map": scores.mean_ap, "top1": scores.top1, "labels": labels, "sheet": sheet}
    write_text(path, json.dumps(found))


def _card(row: int, data: HeldOut, scores: Scores, names: list[str]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(data.pixels[row].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=85)
    mine = data.labels[data.rows == row].tolist()
    return {
        "key": data.records[row].key,
        "captions": data.records[row].captions[:5],
        "labels": [names[v] for v in mine],
        "predicted": [names[v] for v in scores.best[row].tolist()],
        "jpeg": base64.b64encode(buffer.getvalue()).decode(),
    }


def held_out_evaluation(
    source: Dataset,
    vocabulary: Vocabulary,
    transform: Callable[[Image.Image], Tensor],
    limit: int,
    device: torch.device,
    out: Path | None,
) -> Callable[[Any], dict[str, float]]:
    """A function of a task whose objective has a `classifier`: mAP and top-1, in percent, of the labels of captions.

    out: the run folder, where what the report draws is written; None: nothing is.
    """
    data = open_held_out(source, vocabulary, transform, limit)

    def measure(task: Any) -> dict[str, float]:
        encoder, classifier = task.encoder, task.objective.classifier
        logits = [
            classifier(encoder.pooled(encoder.normalize(part.to(device)))).float().cpu()
            for part in data.pixels.split(64)
        ]
        scores = score(torch.cat(logits), data)
        if out is not None:
            write(out / FILE, scores, data, vocabulary)
        return {"mAP": 100 * scores.mean_ap, "top-1": 100 * scores.top1}

    return measure
