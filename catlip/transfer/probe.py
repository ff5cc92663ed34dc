"""How good are frozen features? A linear probe and a nearest-neighbour vote on a classification set."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catlip.errors import UsageError
from catlip.evaluation.labelled import class_indices, features, open_labelled
from catlip.evaluation.neighbours import knn
from catlip.models.encoder import Encoder, load
from catlip.training.distributed import pick_device
from catlip.training.log import append_json, table

# Strengths of the ridge on the probe's weights: a grid wide enough that its ends never win.
PENALTIES = tuple(10.0**e for e in (-5, -4, -3, -2.5, -2, -1.5, -1, 0))


@dataclass(kw_only=True, slots=True)
class Probe:
    """Settings of `catlip probe`."""

    run: str | None = None  # run folder
    encoder: str | None = None  # instead of a run: a model folder, or timm:NAME
    untrained: bool = False  # with --encoder timm:NAME: random weights, for a baseline
    image_size: int | None = None  # pixels; default: the encoder's own
    train: str  # tars (KEY.jpg and KEY.cls) or a folder with one folder per class
    test: str
    neighbours: int = 20  # of the nearest-neighbour vote
    seed: int = 0  # of the held-out split that chooses the penalty, and of untrained weights
    device: str = "auto"


def probe(cfg: Probe) -> dict[str, Any]:
    """Accuracy of a linear probe and of a kNN vote, in percent; one line is added to the run's results.jsonl."""
    began = time.perf_counter()
    train, test = open_labelled(cfg.train), open_labelled(cfg.test)
    classes, y_train, y_test = class_indices(train, test)
    encoder = open_encoder(cfg)
    device = pick_device(cfg.device)
    x_train, kept = features(encoder, train, device)
    y_train = y_train[kept]
    x_test, kept = features(encoder, test, device)
    y_test = y_test[kept]
    accuracy, penalty = linear_probe(x_train, y_train, x_test, y_test, seed=cfg.seed)
    neighbours = knn(x_train, y_train, x_test, y_test, k=cfg.neighbours)
    result = {
        "task": "probe", "linear_probe": round(accuracy, 2), "knn": round(neighbours, 2), "penalty": penalty,
        "classes": len(classes), "train": len(y_train), "test": len(y_test), "image_size": encoder.image_size,
        "data": [cfg.train, cfg.test], "encoder": cfg.run or f"{cfg.encoder}{' untrained' if cfg.untrained else ''}",
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    rows = {
        "linear probe": f"{accuracy:.2f} %   (penalty {penalty:g})",
        f"{cfg.neighbours} nearest": f"{neighbours:.2f} %",
        "chance": f"{100 / len(classes):.2f} %",
    }
    print(
        table(
            rows, f"{result['encoder']}: {len(classes)} classes, {len(y_train):,} to train on, {len(y_test):,} to test"
        )
    )
    if cfg.run:
        append_json(Path(cfg.run) / "results.jsonl", result)
    return result


def open_encoder(cfg: Probe) -> Encoder:
    if bool(cfg.run) == bool(cfg.encoder):
        raise UsageError("name one encoder: a run folder, or --encoder timm:NAME or a model folder")
    if not cfg.untrained:
        encoder = load(cfg.run or cfg.encoder or "")
        if cfg.image_size:
            encoder.image_size = cfg.image_size
        return encoder
    if not (cfg.encoder or "").startswith("timm:"):
        raise UsageError("--untrained goes with --encoder timm:NAME")
    torch.manual_seed(cfg.seed)
    return Encoder.create((cfg.encoder or "").removeprefix("timm:"), image_size=cfg.image_size or 224)


def linear_probe(
    x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """(accuracy in percent, penalty): logistic regression, penalty chosen on a fifth of the training set."""
    mean, std = x_train.mean(0), x_train.std(0).clamp_min(1e-6)
    x_train, x_test = (x_train - mean) / std, (x_test - mean) / std
    order = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(seed))
    held, used = order[: len(order) // 5], order[len(order) // 5 :]
    weights, best, best_accuracy = None, PENALTIES[0], -1.0
    for penalty in sorted(PENALTIES, reverse=True):
        weights = fit_logistic(x_train[used], y_train[used], penalty, start=weights)
        accuracy = _accuracy(x_train[held], y_train[held], weights)
        if accuracy > best_accuracy:
            best, best_accuracy = penalty, accuracy
    weights = fit_logistic(x_train, y_train, best)
    return _accuracy(x_test, y_test, weights), best


def fit_logistic(x: Tensor, y: Tensor, penalty: float, start: Tensor | None = None) -> Tensor:
    """Minimise mean cross-entropy + penalty / 2 * |W|^2 by L-BFGS. x [N, D] -> [D + 1, C], the last row the bias."""
    n_classes = int(y.max()) + 1
    weights = torch.zeros(x.shape[1] + 1, n_classes) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights[:-1] + weights[-1], y) + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _accuracy(x: Tensor, y: Tensor, weights: Tensor) -> float:
    return 100 * (x @ weights[:-1] + weights[-1]).argmax(1).eq(y).float().mean().item()
