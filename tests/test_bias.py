"""Association and its intervals on vectors with a known bias, groups from captions, and the verb's bad input."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from catlip import cli
from catlip.errors import UsageError
from catlip.evaluation.bias import PAIRS, association, concept_direction, groups, project_out, read_pairs, separable
from catlip.labels.labeler import Labeler
from catlip.models.encoder import Encoder
from tests.test_zero_shot import FRUITS


def test_effect_size_by_hand() -> None:
    found = association(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    assert found.effect == pytest.approx(2 / torch.tensor([1.0, 3.0, 0.0, 0.0]).double().std(correction=0).item())
    same = association(torch.ones(20), torch.ones(20))
    assert (same.effect, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_intervals_hold_what_they_promise() -> None:
    torch.manual_seed(0)
    covered = [
        found.low <= 0 <= found.high
        for found in (association(torch.randn(40), torch.randn(40), seed) for seed in range(60))
    ]
    assert 0.85 <= sum(covered) / len(covered) <= 1
    biased = association(torch.randn(200) + 0.8, torch.randn(200))
    assert biased.low > 0.4
    assert biased.p < 0.01


def test_removing_the_direction_removes_what_lies_along_it() -> None:
    torch.manual_seed(0)
    axis = F.normalize(torch.randn(16), dim=0)
    pairs = torch.randn(6, 1, 16) * 0.1 + torch.stack([axis, -axis])
    direction, share = concept_direction(pairs)
    assert direction @ axis > 0.99
    assert share > 0.95
    a = F.normalize(torch.randn(300, 16) + axis, dim=1)
    b = F.normalize(torch.randn(300, 16) - axis, dim=1)
    assert association(a @ axis, b @ axis).low > 0.5
    assert abs(association(project_out(a, axis) @ axis, project_out(b, axis) @ axis).effect) < 0.2
    assert separable(a, b, 0) > 75
    assert 40 < separable(project_out(a, axis), project_out(b, axis), 0) < 60


def test_groups_are_what_captions_name_on_one_side_alone() -> None:
    captions = [["a man runs", "a guy runs"], ["two girls"], ["a man and a woman"], ["a dog"], [], ["a widow smiles"]]
    men, women = groups(captions, PAIRS, Labeler())
    assert men.tolist() == [0]
    assert women.tolist() == [1, 5]


def test_mistakes(tmp_path: Path, coloured_shards: Callable[..., str]) -> None:
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "run" / "encoder", nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    run, data = str(tmp_path / "run"), coloured_shards(48, 1)
    with pytest.raises(UsageError, match="0 pictures whose captions name 'man'"):
        cli.run(["bias", run, "--data", data])
    (tmp_path / "pairs.txt").write_text("apple\tlemon\n")
    result = cli.run(
        ["bias", run, "--data", data, "--pairs", str(tmp_path / "pairs.txt"), "--targets", _targets(tmp_path)]
    )
    assert result.groups == [12, 12]
    assert set(result.effects) == {"lake", "lawn"}
    assert result.left_out == ["zzxy"]
    (tmp_path / "pairs.txt").write_text("apple lemon\n")
    with pytest.raises(UsageError, match="a word, a tab and its counterpart"):
        read_pairs(str(tmp_path / "pairs.txt"))
    with pytest.raises(UsageError, match="no text tower"):
        cli.run(["bias", run, "--data", data, "--route", "text"])


def _targets(folder: Path) -> str:
    (folder / "targets.txt").write_text("lake\nlawn\nzzxy\n")
    return str(folder / "targets.txt")
