"""The closed-form probe against naive references."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catlip.evaluation.adaptation import Candidate, choose_alpha, drift, labels_of
from catlip.evaluation.multilabel import average_precision
from catlip.evaluation.ridge_probe import (
    PENALTIES,
    _ranked,
    _resampled,
    _Solver,
    cross_validated,
    fit_ridge,
    mean_ap,
    paired_error,
)


def data(n: int = 120, d: int = 6, v: int = 4, seed: int = 0, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=random)
    y = x[:, :v] + noise * torch.randn(n, v, generator=random) > 0.5
    return x * torch.arange(1, d + 1) + 3, y


@given(st.integers(0, 50), st.sampled_from(PENALTIES))
def test_the_solution_is_that_of_ridge_regression(seed: int, penalty: float) -> None:
    x, y = data(seed=seed)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    found = _Solver(z, y.double()).weight(penalty)
    centred = y.double() - y.double().mean(0)
    # Rows that pull each weight towards 0: least squares of the two together is ridge regression.
    tall = torch.cat([z - z.mean(0), (penalty * len(z)) ** 0.5 * torch.eye(z.shape[1], dtype=torch.float64)])
    wanted = torch.linalg.lstsq(tall, torch.cat([centred, torch.zeros(z.shape[1], y.shape[1], dtype=torch.float64)]))
    torch.testing.assert_close(found, wanted.solution, rtol=1e-6, atol=1e-8)


def test_features_of_any_scale_give_the_same_scores() -> None:
    x, y = data()
    scores = fit_ridge(x, y).scores(x)
    torch.testing.assert_close(fit_ridge(1000 * x - 7, y).scores(1000 * x - 7), scores, rtol=1e-3, atol=1e-4)
    dead = torch.cat([x, torch.full((len(x), 1), 1e-9)], 1)
    dead[0, -1] = 2e-9  # hardly ever fires, and hardly at all
    torch.testing.assert_close(fit_ridge(dead, y).scores(dead), scores, rtol=1e-2, atol=1e-3)
    assert fit_ridge(dead, y).std[-1] > 0.01
    constant = torch.cat([x, torch.full((len(x), 1), 3.0)], 1)
    torch.testing.assert_close(fit_ridge(constant, y).scores(constant), scores, rtol=1e-3, atol=1e-4)


def test_nothing_is_learned_from_noise_and_each_image_is_scored_unseen() -> None:
    x, _ = data(n=400)
    random = torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    assert cross_validated(x, random, single=False) < 60
    x, y = data(n=400, noise=0.1)
    assert cross_validated(x, y, single=False) > 90
    one = torch.nn.functional.one_hot((x[:, 0] > 3).long(), 2).bool()
    assert cross_validated(x, one, single=True) > 95


@given(st.integers(0, 20))
def test_a_bootstrap_sample_is_ranked_as_its_images_would_be(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    scores, positive = torch.randn(30, 3, generator=random), torch.rand(30, 3, generator=random) < 0.3
    rows = torch.randint(30, (30,), generator=random)
    found = _resampled(*_ranked(scores, positive), rows.bincount(minlength=30).float())
    # Equal images in a row: where several positives are one image, the later ones have more before them.
    times = rows.bincount(minlength=30).tolist()
    for v in range(3):
        order = scores[:, v].argsort(descending=True).tolist()
        total, hits, area, all_hits = 0, 0, 0.0, 0
        for image in order:
            total += times[image]
            if positive[image, v]:
                hits += times[image]
                all_hits += times[image]
                area += times[image] * hits / max(total, 1)
        if all_hits:
            assert found[v].item() == pytest.approx(area / all_hits, rel=1e-5)
        else:
            assert torch.isnan(found[v])


def test_once_each_the_sample_is_average_precision() -> None:
    scores, positive = torch.randn(50, 4), torch.rand(50, 4) < 0.4
    positive[0] = True
    torch.testing.assert_close(
        _resampled(*_ranked(scores, positive), torch.ones(50)), average_precision(scores, positive)
    )


def test_the_error_is_that_of_many_new_test_sets() -> None:
    """Against the spread of the difference over test sets that are really drawn anew."""
    differences, errors = [], []
    for seed in range(60):
        random = torch.Generator().manual_seed(seed)
        truth = torch.rand(200, 5, generator=random) < 0.3
        common = torch.randn(200, 5, generator=random)
        before = truth + common + 0.5 * torch.randn(200, 5, generator=random)
        after = 1.2 * truth + common + 0.5 * torch.randn(200, 5, generator=random)
        differences.append(mean_ap(after, truth) - mean_ap(before, truth))
        if seed < 10:
            errors.append(paired_error(before, after, truth))
    assert 0.7 < np.mean(errors) / np.std(differences) < 1.4


def candidates(scores: dict[float, torch.Tensor], truth: torch.Tensor, keep: dict[float, float] | None = None) -> list:
    return [Candidate(a, s, mean_ap(s, truth), (keep or {}).get(a, 80.0), 0.0) for a, s in scores.items()]


def test_chosen_is_what_is_better_on_images_that_did_not_choose() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(400, 6, generator=random) < 0.3
    noise = {a: torch.randn(400, 6, generator=random) for a in (0.0, 0.5, 1.0)}
    better = candidates({a: truth * (1 + 2 * (a == 0.5)) + noise[a] for a in noise}, truth, {0.5: 79.4})
    found = choose_alpha(better, truth)
    assert (found.alpha, found.better) == (0.5, True)
    assert choose_alpha(better, truth, keep_loss=0.7).alpha == 0.5
    assert choose_alpha(better, truth, keep_loss=0.5).alpha != 0.5
    same = choose_alpha(candidates(dict.fromkeys(noise, noise[0.0]), truth), truth)
    assert (same.alpha, same.gain, same.better) == (0.0, 0.0, False)


def test_choosing_among_noise_does_not_flatter() -> None:
    """Of twenty equal encoders the best looks better where it was chosen; where it is measured it must not."""
    gains = []
    for seed in range(12):
        random = torch.Generator().manual_seed(seed)
        truth = torch.rand(150, 6, generator=random) < 0.3
        scores = {a / 20: truth + torch.randn(150, 6, generator=random) for a in range(20)}
        gains.append(choose_alpha(candidates(scores, truth), truth).gain)
    assert abs(np.mean(gains)) < 3 * np.std(gains) / len(gains) ** 0.5 + 1e-9


def test_drift() -> None:
    x = torch.randn(40, 8)
    assert drift(x, x) == pytest.approx(0, abs=1e-6)
    assert drift(x, 2 * x.mean(0) - x) == pytest.approx(2, abs=1e-5)


def test_one_class_is_nothing_to_keep() -> None:
    from catlip.data.open import open_dataset
    from catlip.errors import UsageError

    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match=r"`keep` .* has a single class, 'cat'"):
        labels_of(open_dataset([(image, "cat"), (image, "cat")], target="classes", fingerprint="v"))
    found, single = labels_of(open_dataset([(image, "cat"), (image, "dog")], target="classes", fingerprint="v"))
    assert (found.tolist(), single) == ([[True, False], [False, True]], True)
