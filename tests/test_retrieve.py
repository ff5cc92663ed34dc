"""Retrieval against a loop that is too simple to be wrong, captions from files, and the verbs retrieve and align."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catlip
from catlip import cli
from catlip.data.images import Unreadable
from catlip.errors import UsageError
from catlip.evaluation.features import CaptionFeatures
from catlip.evaluation.retrieval import both_ways, first_ranks, read_captions, recalls, retrieve
from catlip.models.dual_encoder import load_dual
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.models.weights import load
from tests.test_zero_shot import FRUITS


def naive(queries: torch.Tensor, candidates: torch.Tensor, mine: list[int], theirs: list[int]) -> list[int]:
    scores = (queries.double() @ candidates.double().T).tolist()
    found = []
    for row, owner in zip(scores, mine, strict=True):
        best = max(s for s, o in zip(row, theirs, strict=True) if o == owner)
        found.append(sum(s >= best - 1e-6 for s, o in zip(row, theirs, strict=True) if o != owner))
    return found


@pytest.mark.parametrize("block", [1, 97, 2**20])
def test_ranks_against_a_loop(block: int) -> None:
    torch.manual_seed(0)
    pictures, captions = F.normalize(torch.randn(40, 6), dim=1), F.normalize(torch.randn(120, 6), dim=1)
    pictures[3], captions[7], captions[8] = pictures[20], captions[90], captions[91]  # ties
    owners = torch.arange(40).repeat_interleave(3)
    numbers = torch.arange(40)
    assert first_ranks(pictures, captions, numbers, owners, block).tolist() == naive(
        pictures, captions, numbers.tolist(), owners.tolist()
    )
    assert first_ranks(captions, pictures, owners, numbers, block).tolist() == naive(
        captions, pictures, owners.tolist(), numbers.tolist()
    )


def test_a_model_that_says_always_the_same_finds_nothing() -> None:
    same = F.normalize(torch.full((300, 33), 0.1), dim=1)  # sums that no two kernels need round alike
    n = torch.arange(300)
    assert recalls(first_ranks(same, same, n, n, 1000)) == {"r@1": 0, "r@5": 0, "r@10": 0, "median_rank": 300}
    nan = torch.full((4, 3), float("nan"))
    assert recalls(first_ranks(nan, nan, n[:4], n[:4]))["r@10"] == 0


def test_any_caption_counts_and_pictures_without_one_ask_nothing() -> None:
    eye = torch.eye(3)
    data = CaptionFeatures(["a", "b", "c"], [["x", "y"], [], ["z"]], eye, Unreadable())
    captions = torch.stack([eye[1], eye[0], eye[2]])  # the first caption of "a" is of "b"
    found = both_ways(eye, captions, data)
    assert found["image_to_text"]["r@1"] == 100
    assert found["text_to_image"]["r@1"] == pytest.approx(66.67)


def test_captions_from_files(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a\nb\nc\nd\n")
    assert read_captions(tmp_path / "c.txt", ["1", "2"]) == [["a", "b"], ["c", "d"]]
    with pytest.raises(UsageError, match="4 captions for 3 pictures"):
        read_captions(tmp_path / "c.txt", ["1", "2", "3"])
    (tmp_path / "c.json").write_text(json.dumps({"1.jpg": ["a"], "2.jpg": ["b", "c"]}))
    assert read_captions(tmp_path / "c.json", ["2", "1"]) == [["b", "c"], ["a"]]
    with pytest.raises(UsageError, match=r"1 of the 2 pictures .* 7"):
        read_captions(tmp_path / "c.json", ["2", "7"])
    (tmp_path / "c.json").write_text("[1, 2]")
    with pytest.raises(UsageError, match="expected"):
        read_captions(tmp_path / "c.json", ["2"])


def test_captions_are_of_the_picture_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"v2/1.jpg": ["two"], "v1/1.jpg": ["one"], "a.b.jpg": ["dotted"]}))
    for keys in (
        ["v1/1", "v2/1", "a.b"],
        ["v1/1.jpg", "v2/1.jpg", "a.b.jpg"],
        ["x/v1/1.jpg", "x/v2/1.jpg", "x/a.b.jpg"],
    ):
        assert read_captions(tmp_path / "c.json", keys) == [["one"], ["two"], ["dotted"]]
    with pytest.raises(UsageError, match=r"`captions` .*c\.json: '1' could be 'v2/1\.jpg' or 'v1/1\.jpg'"):
        read_captions(tmp_path / "c.json", ["1"])
    (tmp_path / "c.json").write_text(json.dumps({"1.jpg": ["one"]}))
    with pytest.raises(UsageError, match=r"'v1/1' and 'v2/1' would both be '1\.jpg'"):
        read_captions(tmp_path / "c.json", ["v1/1", "v2/1"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "run" / "encoder", nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    return tmp_path / "run"


def test_align_then_retrieve_by_both_routes(run: Path, coloured_shards: Callable[..., str], tmp_path: Path) -> None:
    data, out = coloured_shards(48, 1), tmp_path / "aligned"
    cli.run([
        "align", str(run), "--data", data, "--out", str(out), "--steps", "60", "--batch-size", "24", "--text-width",
        "64", "--text-layers", "1", "--tokens", "600", "--context", "12", "--embed", "16",
    ])  # fmt: skip
    dual = load_dual(out)
    for name, value in load(run).state_dict().items():
        assert torch.equal(value, dual.encoder.state_dict()[name]), name
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < math.log(24) - 0.1  # of chance
    result = retrieve(str(out), data)
    assert {"head", "text"} <= set(result.to_json())
    assert json.loads((out / "results.jsonl").read_text()) == result.to_json()
    assert result.pictures == 48
    with pytest.raises(UsageError, match="another run"):
        cli.run(["align", str(run), "--data", data, "--out", str(out), "--batch-size", "24"])
    with pytest.raises(UsageError, match="--batch-size 256 for 48 images"):
        cli.run(["align", str(run), "--data", data, "--out", str(tmp_path / "new")])


def test_align_leaves_an_encoder_in_memory_as_it_was(coloured_shards: Callable[..., str], tmp_path: Path) -> None:
    encoder = Encoder.create("test_resnet", image_size=32).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    size = TextConfig(text_width=64, text_layers=1)
    catlip.align(
        encoder, coloured_shards(24, 1), out=str(tmp_path / "out"), steps=2, batch_size=8, text=size, device="cpu"
    )
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_mistakes(run: Path, coloured_shards: Callable[..., str], tmp_path: Path) -> None:
    data = coloured_shards(8, 1)
    with pytest.raises(UsageError, match=r"no text tower .*catlip align"):
        cli.run(["retrieve", str(run), "--data", data, "--route", "text"])
    (tmp_path / "captions.txt").write_text("only one\n" * 13)
    with pytest.raises(UsageError, match="13 captions for 8 pictures"):
        cli.run(["retrieve", str(run), "--data", data, "--captions", str(tmp_path / "captions.txt")])


def test_chance_is_at_most_certainty(run: Path, coloured_shards: Callable[..., str]) -> None:
    said = str(retrieve(str(run), coloured_shards(8, 1), device="cpu"))
    assert re.search(r"R@1 +R@5 +R@10 +median rank\n", said)
    assert re.search(r"chance, text to image +12\.50 +62\.50 +100\.00$", said)
