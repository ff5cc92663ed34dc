"""kNN evaluation: how good features are without training anything on them."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
