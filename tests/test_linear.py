"""Losses of a wide classifier from sparse labels against their definitions, written out as loops."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.objectives import linear
from catlip.objectives.frequency import DocumentFrequency
from catlip.objectives.linear import linear_asymmetric, linear_bce, linear_softmax
from catlip.objectives.subwords import bag_of_tokens

CLASSES = 7
labels_of_pictures = st.lists(st.sets(st.integers(0, CLASSES - 1)), min_size=1, max_size=5)


def sparse(labels: list[set[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    flat = [label for of_row in labels for label in sorted(of_row)]
    return torch.tensor(flat, dtype=torch.int64), torch.tensor([0, *map(len, labels)]).cumsum(0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes at a time: seven are two whole chunks and a rest."""
    monkeypatch.setattr(linear, "CHUNK", 3)


def of_logits(loss, z: torch.Tensor, labels: list[set[int]], *weights, **settings) -> torch.Tensor:
    """The loss of given logits: with the identity as the classifier."""
    return loss(z, torch.eye(CLASSES), torch.zeros(CLASSES), *sparse(labels), *weights, **settings)


def logits_for(labels: list[set[int]], seed: int) -> torch.Tensor:
    return torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(seed)) * 4


def twice(labels: list[set[int]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits for ours, and in double precision for the naive reference, whose log(1 - p) needs it."""
    z = logits_for(labels, seed)
    return z.clone().requires_grad_(), z.double().requires_grad_()


def check(ours: torch.Tensor, a: torch.Tensor, theirs: torch.Tensor, b: torch.Tensor) -> None:
    ours.backward()
    if theirs.requires_grad:
        theirs.backward()
    grad = b.grad if b.grad is not None else torch.zeros_like(b)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, check_dtype=False)
    torch.testing.assert_close(a.grad, grad, atol=1e-5, rtol=1e-5, check_dtype=False)


@given(labels_of_pictures, st.integers(0, 1000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_softmax_equals_the_dense_definition(labels: list[set[int]], seed: int, weighted: bool) -> None:
    a, b = twice(labels, seed)
    weights = torch.rand(CLASSES, generator=torch.Generator().manual_seed(seed))
    weights[0] = 0.0  # a class in every caption
    theirs = torch.zeros(())
    for z, of_row in zip(b, labels, strict=True):
        w = {c: weights[c].item() if weighted else 1.0 for c in of_row}
        if sum(w.values()) > 0:
            for c in of_row:
                theirs = theirs - w[c] / sum(w.values()) * (z[c] - z.exp().sum().log())
    check(of_logits(linear_softmax, a, labels, weights if weighted else None), a, theirs / len(labels), b)


@given(labels_of_pictures, st.integers(0, 1000), st.sampled_from([0, 1, 2, 4]), st.sampled_from([0, 1]),
       st.sampled_from([0.0, 0.05, 0.3]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_asymmetric_equals_the_dense_definition(
    labels: list[set[int]], seed: int, neg: int, pos: int, clip: float
) -> None:
    a, b = twice(labels, seed)
    theirs = torch.zeros(())
    for z, of_row in zip(b, labels, strict=True):
        for c in range(CLASSES):
            p = torch.sigmoid(z[c])
            q = torch.clamp(p - clip, min=0)
            theirs = theirs - ((1 - p) ** pos * torch.log(p) if c in of_row else q**neg * torch.log(1 - q))
    ours = of_logits(linear_asymmetric, a, labels, gamma_neg=neg, gamma_pos=pos, clip=clip)
    check(ours, a, theirs / len(labels), b)


@given(labels_of_pictures, st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_weights_count_for_labels_alone(labels: list[set[int]], seed: int) -> None:
    a, b = twice(labels, seed)
    weights = torch.rand(CLASSES, generator=torch.Generator().manual_seed(seed)) * 3
    theirs = torch.zeros(())
    for z, of_row in zip(b, labels, strict=True):
        for c in range(CLASSES):
            p = torch.sigmoid(z[c])
            theirs = theirs - (weights[c] * torch.log(p) if c in of_row else torch.log(1 - p))
    check(of_logits(linear_bce, a, labels, weights), a, theirs / len(labels), b)
    plain = of_logits(linear_asymmetric, a, labels, weights, gamma_neg=0, gamma_pos=0, clip=0)
    torch.testing.assert_close(plain, theirs / len(labels), atol=1e-5, rtol=1e-5, check_dtype=False)


@given(labels_of_pictures, st.integers(0, 1000), st.sampled_from([linear_bce, linear_softmax, linear_asymmetric]))
@settings(max_examples=40, deadline=None)
def test_chunks_give_the_weights_of_the_classifier_their_gradients(labels: list[set[int]], seed: int, loss) -> None:
    """Against the same loss of the finished logits, which autograd takes back to the weights."""
    random = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=random) for shape in ((len(labels), 4), (CLASSES, 4), (CLASSES,))]
    weights = torch.rand(CLASSES, generator=random)
    ours, theirs = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    mine = loss(*ours, *sparse(labels), weights) * 3
    other = of_logits(loss, theirs[0] @ theirs[1].T + theirs[2], labels, weights) * 3
    mine.backward()
    other.backward()
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


@given(labels_of_pictures, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_asymmetric_without_asymmetry_is_binary_cross_entropy(labels: list[set[int]], seed: int) -> None:
    z = logits_for(labels, seed)
    plain = of_logits(linear_asymmetric, z, labels, gamma_neg=0, gamma_pos=0, clip=0)
    dense = torch.zeros_like(z)
    for row, of_row in enumerate(labels):
        dense[row, list(of_row)] = 1
    cross = torch.nn.functional.binary_cross_entropy_with_logits(z, dense, reduction="sum") / len(labels)
    torch.testing.assert_close(plain, cross, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("far", [-200.0, 200.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_losses_stay_finite_far_out(far: float, clip: float) -> None:
    z = torch.full((1, CLASSES), far, requires_grad=True)
    (of_logits(linear_asymmetric, z, [{1}], clip=clip) + of_logits(linear_softmax, z, [{1}])).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_mistakes_of_asymmetric() -> None:
    z = torch.zeros(1, CLASSES)
    with pytest.raises(ValueError, match=r"gamma_neg 0\.5"):
        of_logits(linear_asymmetric, z, [{1}], gamma_neg=0.5)
    with pytest.raises(ValueError, match=r"clip 1\.0"):
        of_logits(linear_asymmetric, z, [{1}], clip=1.0)


@given(st.lists(labels_of_pictures, max_size=4))
@settings(max_examples=60, deadline=None)
def test_idf_equals_counting(batches: list[list[set[int]]]) -> None:
    met = DocumentFrequency(CLASSES)
    assert (met.idf() == 1).all()
    for batch in batches:
        met.update(sparse(batch)[0], len(batch))
    assert (met.idf() == 1).all()  # the step is not over
    met.after_step()
    met.after_step()
    pictures = [of_row for batch in batches for of_row in batch]
    for c, weight in enumerate(met.idf().tolist()):
        df = sum(c in of_row for of_row in pictures)
        expected = math.log((len(pictures) + 1) / (df + 1)) if pictures else 1.0
        assert weight == pytest.approx(expected, abs=1e-5)
    assert (met.idf() >= 0).all()
    frequency = met.counts[:-1].float()
    if (frequency * met.idf()).sum() > 0:
        mean = (frequency * met.evened_idf()).sum() / frequency.sum()
        assert mean.item() == pytest.approx(1.0, abs=1e-4)
    assert list(met.state_dict()) == ["counts"]
    assert not met.counts.is_floating_point()


@given(st.lists(st.lists(st.integers(0, 11), min_size=6, max_size=6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_bag_of_tokens_is_the_set_without_marks_and_padding(rows: list[list[int]]) -> None:
    labels, offsets = bag_of_tokens(torch.tensor(rows), 10)
    bags = [labels[a:b].tolist() for a, b in pairwise(offsets)]
    assert bags == [sorted({t for t in row if 0 < t < 10}) for row in rows]
