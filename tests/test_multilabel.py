"""Multi-label metrics against scikit-learn and loops; counted against exact."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catlip.errors import UsageError
from catlip.evaluation import multilabel
from catlip.evaluation.multilabel import Counted, average_precision, exact_metrics, top1, voc07_precision
from catlip.evaluation.svm_probe import fit_svm, voc07_svm


def make(n: int = 60, v: int = 9, seed: int = 0, ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, v, generator=generator) * 4 - 3
    positive = torch.rand(n, v, generator=generator) < torch.linspace(0.03, 0.6, v)
    positive[0] = True
    scores = scores + 2 * positive
    return (scores.round() if ties else scores), positive


def naive(scores: Tensor, positive: Tensor) -> tuple[list[float], list[float]]:
    """(AP, 11-point AP) of each class, rank by rank, ties against the positives."""
    areas, points = [], []
    for v in range(scores.shape[1]):
        pairs = sorted(zip((-scores[:, v]).tolist(), positive[:, v].tolist(), strict=True))
        total, found, precisions = int(positive[:, v].sum()), 0, []
        for rank, (_, right) in enumerate(pairs, 1):
            found += right
            if right:
                precisions.append((found, found / rank))
        areas.append(sum(p for _, p in precisions) / total if total else math.nan)
        points.append(
            sum(max(p for n, p in precisions if 10 * n >= t * total) for t in range(11)) / 11 if total else math.nan
        )
    return areas, points


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 500), st.booleans(), st.sampled_from([1, 64, 2**22]))
@settings(max_examples=60, deadline=None)
def test_both_kinds_of_precision_against_a_loop(n: int, v: int, seed: int, ties: bool, block: int) -> None:
    scores, positive = make(n, v, seed, ties)
    if seed % 3 == 0:
        positive[:, 0] = False
    areas, points = naive(scores, positive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multilabel, "BLOCK", block)
        np.testing.assert_allclose(average_precision(scores, positive), areas, rtol=1e-5)
        np.testing.assert_allclose(voc07_precision(scores, positive), points, rtol=1e-5)


def test_metrics_equal_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = make(300, 12)
    ours = exact_metrics(scores, positive, threshold=-1.0)
    y, z, chosen = positive.numpy(), scores.numpy(), (scores > -1.0).numpy()
    theirs = {
        "mAP": metrics.average_precision_score(y, z, average="macro"),
        "mAP_micro": metrics.average_precision_score(y, z, average="micro"),
        "F1_macro": metrics.f1_score(y, chosen, average="macro", zero_division=0),
        "F1_micro": metrics.f1_score(y, chosen, average="micro", zero_division=0),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(100 * value, rel=1e-5), name


def test_top1_by_hand() -> None:
    scores = torch.tensor([[3.0, 1, 2], [0, 1, 2], [5, 4, 3]])
    positive = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
    assert top1(scores, positive) == 0.5  # the third picture has no label


def test_a_score_of_nan_is_the_worst() -> None:
    scores = torch.tensor([[math.nan], [0.0], [-math.inf]])
    positive = torch.tensor([[True], [False], [False]])
    assert average_precision(scores, positive).item() == pytest.approx(1 / 3)


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 500), st.booleans(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_bounds_hold_and_bins_that_hold_one_score_are_exact(n: int, v: int, seed: int, ties: bool, bins: int) -> None:
    scores, positive = make(n, v, seed, ties)
    if seed % 3 == 0:
        positive[:, 0] = False
    counted = Counted(v, low=-10.0, high=6.0, bins=bins)
    for some in torch.arange(n).split(7):
        counted.update(scores[some], positive[some])
    for bounds, exact in (
        (counted.average_precision(), average_precision(scores, positive)),
        (counted.voc07_precision(), voc07_precision(scores, positive)),
    ):
        assert torch.equal(bounds.low.isnan(), exact.isnan())
        assert (bounds.low <= exact + 1e-6)[~exact.isnan()].all()
        assert (bounds.high >= exact - 1e-6)[~exact.isnan()].all()
    # Whole numbers, one to a bin: the lower bound is the exact value, which also counts ties against the positives.
    whole = Counted(v, low=-40.5, high=40.5, bins=81)
    whole.update(scores.round(), positive)
    torch.testing.assert_close(
        whole.average_precision().low.float(), average_precision(scores.round(), positive), equal_nan=True
    )
    torch.testing.assert_close(
        whole.voc07_precision().low.float(), voc07_precision(scores.round(), positive), equal_nan=True
    )


def test_the_stated_error_is_one_and_it_is_small() -> None:
    scores, positive = make(2000, 20)
    counted = Counted(20)
    counted.update(scores, positive)
    found, exact = counted.metrics(), exact_metrics(scores, positive)
    for name in ("mAP", "mAP_voc07", "mAP_micro"):
        assert abs(found[name] - exact[name]) <= found[f"{name}_error"] + 1e-4
        assert found[f"{name}_error"] < 1.0
    for name in ("F1_macro", "F1_micro"):
        assert found[name] == pytest.approx(exact[name], rel=1e-5)


def test_many_pictures_do_not_spoil_the_digamma() -> None:
    """Millions of negatives before a positive: 1 / (M + 1), not a rounding error."""
    positives, negatives = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 4, dtype=torch.int32)
    positives[0, 1], negatives[0, 3] = 2, 100_000_000
    area = multilabel._area(positives, negatives, optimistic=False).item()
    assert area == pytest.approx((1 / 100_000_001 + 2 / 100_000_002) / 2, abs=1e-7)


def test_machines_are_scikit_learns() -> None:
    svm = pytest.importorskip("sklearn.svm")
    scores, positive = make(120, 4)
    x = torch.cat([scores, torch.randn(120, 5, generator=torch.Generator().manual_seed(1))], 1)
    costs = torch.tensor([0.01, 0.1, 1.0, 5.0])
    ours = fit_svm(x, positive, costs)
    for v, cost in enumerate(costs.tolist()):
        theirs = svm.LinearSVC(C=cost, class_weight={0: 1, 1: 2}, dual=False, tol=1e-8, max_iter=20_000)
        theirs.fit(x.numpy(), positive[:, v].numpy())
        wanted = torch.from_numpy(np.append(theirs.coef_[0], theirs.intercept_)).float()
        torch.testing.assert_close(ours[:, v], wanted, atol=2e-3, rtol=2e-3)


def test_the_protocol_learns_and_says_what_it_cannot() -> None:
    scores, positive = make(150, 4)
    noise = torch.randn(150, 4, generator=torch.Generator().manual_seed(2))
    good = voc07_svm(scores[:100], positive[:100], scores[100:]).scores
    bad = voc07_svm(noise[:100], positive[:100], noise[100:]).scores
    good, bad = (voc07_precision(found, positive[100:]).mean() for found in (good, bad))
    assert good > bad + 0.05
    with pytest.raises(UsageError, match=r"class 2 .* has all training pictures or none"):
        voc07_svm(scores, positive.index_fill(1, torch.tensor([2]), False), scores)
    with pytest.raises(UsageError, match="2 training pictures are too few"):
        voc07_svm(scores[:2], torch.tensor([[True], [False]]), scores)
