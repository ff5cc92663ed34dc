"""kNN evaluation: what the nearest neighbours of an image say it is. Nothing is fitted, so it is quick during a run."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.errors import UsageError
from catlip.evaluation.features import class_indices, features, open_labelled

FEWEST = 10  # images, below which the number says nothing


def knn(
    x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy in percent of the vote of the k most similar training images, weighted as Wu et al. (2018) do."""
    x_train, x_test = F.normalize(x_train, dim=1), F.normalize(x_test, dim=1)
    n_classes, right = int(y_train.max()) + 1, 0
    for part, wanted in zip(x_test.split(1024), y_test.split(1024), strict=True):
        similarity, nearest = (part @ x_train.T).topk(min(k, len(x_train)), dim=1)
        votes = torch.zeros(len(part), n_classes)
        votes.scatter_add_(1, y_train[nearest], (similarity / temperature).exp())
        right += int(votes.argmax(1).eq(wanted).sum())
    return 100 * right / len(x_test)


def knn_evaluation(data: Any, device: torch.device) -> Callable[[Any], dict[str, float]]:
    """A function of a task: accuracy in percent on a fifth of labelled images, by the vote of the other four.

    Raises UsageError for fewer than 10 images.
    """
    labelled = open_labelled(data)
    if len(labelled) < FEWEST:
        raise UsageError(f"`probe` {labelled.name}: {len(labelled)} images are too few to tell anything")

    def measure(task: Any) -> dict[str, float]:
        everything, kept = features(task.encoder, labelled, device)
        _, y, _ = class_indices(labelled, labelled)
        y = y[kept]
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        test, train = order[: len(order) // 5], order[len(order) // 5 :]
        return {"kNN": knn(everything[train], y[train], everything[test], y[test])}

    return measure
