"""How good are frozen features where a picture has several labels? VOC07's protocol, for `catlip probe`."""

import time
from typing import Any

import torch

from catlip.data.images import Unreadable, left_out
from catlip.data.labelled import LabelledDataset
from catlip.errors import UsageError
from catlip.evaluation.kept_features import kept_features
from catlip.evaluation.labelled import positives
from catlip.evaluation.multilabel import exact_metrics
from catlip.evaluation.svm import voc07_svm
from catlip.models.encoder import Encoder
from catlip.notices import say
from catlip.training.log import table


def probe_labels(
    encoder: Encoder,
    train: LabelledDataset,
    test: LabelledDataset,
    device: torch.device,
    *,
    name: str,
    seed: int,
    keep: bool,
) -> dict[str, Any]:
    """A linear SVM a class on pooled features; mAP and F1 in percent, and the costs that were chosen.

    Classes that no training picture has, or all of them, cannot be learned: they are left out, and counted. name: what
    the encoder is called; keep: use the cache of features. Raises UsageError if nothing can be learned, or tested.
    """
    began = time.perf_counter()
    test = test.within(train.classes, "`test`")
    counts = torch.from_numpy(train.counts())
    learned = (counts > 0) & (counts < len(train))
    if not learned.any() or not test.counts()[learned.numpy()].any():
        which = "test" if learned.any() else "train"
        raise UsageError(f"`{which}` {(test if learned.any() else train).name} has no class that can be told apart")
    bad_train, bad_test = Unreadable(), Unreadable()
    x_train, kept = kept_features(encoder, train, device, bad_train, keep=keep)
    positive = positives(train, kept.tolist())
    x_test, tested = kept_features(encoder, test, device, bad_test, keep=keep)
    learned = positive.any(0) & ~positive.all(0)  # what can be read decides
    found = voc07_svm(x_train, positive[:, learned], x_test, seed=seed)
    truth = positives(test, tested.tolist())[:, learned]
    metrics = {name: round(value, 2) for name, value in exact_metrics(found.scores, truth).items()}
    say(
        table(
            {
                "mean average precision, VOC07's eleven points": f"{metrics['mAP_voc07']:.2f} %",
                "mean average precision": f"{metrics['mAP']:.2f} %",
                "F1 over all decisions": f"{metrics['F1_micro']:.2f} %",
                "a picture's labels, as often as they occur": f"{100 * truth.float().mean():.2f} %",
            },
            f"{name}: {int(learned.sum())} of {len(learned)} classes, {len(kept):,} to train on, "
            f"{len(tested):,} to test",
        )
    )
    return left_out(train=bad_train, test=bad_test) | {
        "task": "probe_labels",
        **metrics,
        "classes": int(learned.sum()),
        "left_out": int((~learned).sum()),
        "costs": found.costs.tolist(),
        "train": len(kept),
        "test": len(tested),
        "encoder": name,
        "image_size": encoder.image_size,
        "seconds": round(time.perf_counter() - began, 1),
    }
