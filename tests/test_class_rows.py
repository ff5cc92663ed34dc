"""Transfer Init: which rows a class gets, against a naive search; and what the rows are scaled to."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from catlip.errors import UsageError
from catlip.evaluation.class_names import ClassName, Match, Matcher
from catlip.evaluation.transfer_init import scale_rows, told, transfer_rows
from catlip.labels.labeler import Labeler
from catlip.labels.wordnet import Lexicon, open_lexicon
from catlip.models.encoder import Encoder

DOG, CAT, ANIMAL, POODLE, SHEEP, DEER, CAR, HOUSE = (
    "n02084071", "n02121620", "n00015388", "n02113335", "n02411705", "n02430045", "n02958343", "n03544360",
)  # fmt: skip


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return Labeler()


def similar(labeler: Labeler, labels: list[str], *names: str, alpha: float = 0.25) -> list[Match]:
    return Matcher(labels, labeler).similar([ClassName(name) for name in names], alpha)


def test_exact_then_the_most_similar_then_nothing(labeler: Labeler) -> None:
    exact, deer, frog = similar(labeler, [DOG, SHEEP, ANIMAL], "dogs", "deer", "frog")
    assert (exact.how, exact.rows, exact.similarity) == ("exact", (0,), 1.0)
    assert (deer.how, deer.rows, deer.similarity) == ("similar", (1,), 0.25)  # deer - ruminant - bovid - sheep
    assert (frog.how, frog.rows) == ("missing", ())  # animal is four steps away
    (frog,) = similar(labeler, [DOG, SHEEP, ANIMAL], "frog", alpha=0.2)
    assert (frog.rows, frog.similarity) == ((2,), 0.2)


def test_a_compound_is_the_mean_of_its_parts(labeler: Labeler) -> None:
    whole, parts, half, none = similar(labeler, [CAT, HOUSE, CAR], "motorcar", "cat car", "cat zzxy car zzxz", "zzxy")
    assert (whole.how, whole.rows) == ("exact", (2,))
    assert (parts.how, parts.rows, [part.name for part in parts.parts]) == ("parts", (0, 2), ["cat", "car"])
    assert half.rows == (0, 2)
    assert (none.how, none.rows) == ("missing", ())
    weight = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]])
    pooled = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    one = scale_rows([parts], weight, pooled).weight[0]  # a single known row is not centred
    assert torch.allclose(one / one.norm(), torch.tensor([0.5, 0.5]) / 0.5**0.5)


def naive_similarity(wordnet: Lexicon, a: str, b: str) -> float:
    """1 / (1 + shortest way by a common hypernym), all of them tried."""

    def up(synset: str) -> list[tuple[str, int]]:
        ways = [(synset, 0)]
        for parent in wordnet.synset(synset).parents:
            ways += [(above, steps + 1) for above, steps in up(parent)]
        return ways

    return max((1 / (1 + m + n) for x, m in up(a) for y, n in up(b) if x == y), default=0.0)


def test_most_similar_against_a_naive_search(labeler: Labeler) -> None:
    wordnet = open_lexicon()
    order = torch.randperm(len(wordnet.wnids), generator=torch.Generator().manual_seed(1)).tolist()
    labels = [wordnet.wnids[i] for i in order[:60]]
    asked = [wordnet.wnids[i] for i in order[60:80]] + labels[:3]
    met = set()
    for match in similar(labeler, labels, *asked, alpha=1e-3):
        scores = {label: naive_similarity(wordnet, match.name, label) for label in labels}
        best = max(scores.values())
        assert match.similarity == pytest.approx(best)
        assert match.through == tuple(label for label in labels if scores[label] > best - 1e-9)
        met.add(match.how)
    assert met == {"exact", "similar"}


def test_classes_start_level_and_with_the_same_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, pooled = (torch.randn(n, 8, generator=generator) * 3 + 1 for n in (6, 400))
    matches = [
        Match("a", (), (0, 1), "exact"), Match("b", (), (2,), "exact"), Match("c", (), (3,), "similar"),
        Match("d", (), (), "missing"),
    ]  # fmt: skip
    found = scale_rows(matches, weight, pooled, deviation=2.0, seed=5)
    logits = pooled @ found.weight.T + found.bias
    assert torch.allclose(logits.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(logits.std(0, correction=0), torch.tensor([2.0, 2.0, 2.0, 0.2]), atol=1e-4)
    again, other = (scale_rows(matches, weight, pooled, deviation=2.0, seed=seed) for seed in (5, 6))
    assert torch.equal(found.weight, again.weight)
    assert torch.equal(found.weight[:3], other.weight[:3])
    assert not torch.equal(found.weight[3], other.weight[3])
    # Up to its scale a row is the mean of its synsets', less the mean of the classes'.
    rows = torch.stack([weight[:2].mean(0), weight[2], weight[3]])
    assert torch.cosine_similarity(found.weight[:3], rows - rows.mean(0)).min() > 1 - 1e-5


def test_classes_that_share_their_rows_do_not_break_the_scale() -> None:
    weight, pooled = torch.randn(3, 4), torch.randn(20, 4)
    same = scale_rows([Match("a", (), (1,), "exact"), Match("b", (), (1,), "similar")], weight, pooled)
    assert same.weight.eq(0).all()
    assert same.bias.eq(0).all()
    with pytest.raises(UsageError, match="20 training pictures do not differ"):
        scale_rows([Match("a", (), (1,), "exact"), Match("b", (), (2,), "exact")], weight, pooled[:1].expand(20, 4))


def make_encoder(labels: list[str]) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.backbone.reset_classifier(max(len(labels), 1))
    encoder.labels, encoder.names = labels, [open_lexicon().synset(x).name if x[0] == "n" else x for x in labels]
    return encoder


def test_from_an_encoder(tmp_path: Path) -> None:
    encoder = make_encoder([DOG, CAT, SHEEP])
    pooled = torch.randn(30, encoder.width)
    classes = [ClassName("deer"), ClassName("pet", (CAT, DOG)), ClassName("zzxy")]
    found = transfer_rows(encoder, tmp_path, classes, pooled)
    assert found.weight.shape == (3, encoder.width)
    says = told(found.matches, encoder)
    assert says["deer"] == "similar (0.25): sheep"
    assert says["pet"] == "exact: cat, dog"
    assert says["zzxy"].startswith("random (missing: no noun")
    # A softmax sees the same as with the plain rows, up to scale: differences of rows are what counts.
    head: nn.Linear = encoder.backbone.get_classifier()
    plain: Tensor = head.weight[[2]] - head.weight[:2].mean(0)
    assert torch.cosine_similarity(found.weight[0], plain[0].detach(), dim=0) > 1 - 1e-5


@pytest.mark.parametrize(("labels", "names", "alpha", "says"), [
    ([], ["dog"], 0.25, "it has none. Take `init` random"),
    (["0", "1"], ["dog"], 0.25, "no synsets, e.g. '0'. Take `init` random"),
    ([DOG], ["zzxy", "qqvw"], 0.25, "no class name has path similarity 0.25 or more .* 'zzxy', 'qqvw'"),
    ([CAR], ["dog"], 0.25, "no class name has path similarity"),
    ([DOG], ["dog"], 0.0, "`alpha` 0: path similarities"),
    ([DOG], ["dog"], 1.5, "`alpha` 1.5"),
])  # fmt: skip
def test_mistakes(labels: list[str], names: list[str], alpha: float, says: str, tmp_path: Path) -> None:
    encoder = make_encoder(labels)
    with pytest.raises(UsageError, match=says):
        transfer_rows(encoder, tmp_path, [ClassName(n) for n in names], torch.randn(9, encoder.width), alpha=alpha)
