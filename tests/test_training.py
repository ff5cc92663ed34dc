"""Loss against its definition, resuming against not stopping, the run folder, and one run that must learn."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_weight_decay
from torch import nn

import catlip
from catlip.data.crops import CropConfig
from catlip.data.images import read_image
from catlip.errors import UsageError
from catlip.evaluation.features import open_labelled
from catlip.evaluation.knn import knn
from catlip.evaluation.linear_probe import fit_logistic, linear_probe
from catlip.evaluation.probe import ProbeResult, probe
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.objectives import linear
from catlip.objectives.base import Context
from catlip.objectives.linear import linear_bce
from catlip.objectives.synsets import SynsetObjective, Synsets, log_odds
from catlip.tasks.pretrain import PretrainConfig, pretrain
from catlip.training import checkpoint
from catlip.training.optim import OptimConfig, learning_rate, make_optimizers
from catlip.training.state import LoopConfig
from catlip.training.task import Task
from tests.conftest import COLOURS, cut_short, jpeg


@given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=5), st.integers(0, 1000), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_linear_bce_equals_the_dense_definition(labels: list[set[int]], seed: int, chunk: int) -> None:
    """Value and all three gradients, whatever the chunks, against logits and dense targets."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                       for shape in ((len(labels), 3), (7, 3), (7,)))  # fmt: skip
    dense = torch.zeros(len(labels), 7, dtype=torch.float64)
    for row, of_row in enumerate(labels):
        dense[row, list(of_row)] = 1
    flat = torch.tensor([label for of_row in labels for label in sorted(of_row)], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, labels)]).cumsum(0)
    ours_in, theirs_in = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    with mock.patch.multiple(linear, CHUNK=chunk, CHUNKS=7):
        ours = linear_bce(*ours_in, flat, offsets)
    logits = theirs_in[0] @ theirs_in[1].T + theirs_in[2]
    theirs = F.binary_cross_entropy_with_logits(logits, dense, reduction="sum") / len(labels)
    (3 * ours).backward()
    (3 * theirs).backward()
    torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_linear_bce_in_bf16_and_without_gradients() -> None:
    x, weight, bias = torch.randn(8, 16), torch.randn(3000, 16) * 0.1, torch.full((3000,), -3.0)
    labels, offsets = torch.arange(0, 3000, 375), torch.arange(9)
    exact = linear_bce(x, weight, bias, labels, offsets)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = linear_bce(x, weight, bias, labels, offsets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=2e-2, atol=0.1)


def test_prior_bias_starts_at_the_entropy_of_the_labels() -> None:
    bias = log_odds([50, 1, 100, 0], 100)
    assert torch.isfinite(bias).all()
    assert bias[0].item() == pytest.approx(0.0)
    # 24,320 rare classes: the official start at 0 costs 24,320 ln 2 = 16,857; the prior costs a few nats.
    x, weight = torch.zeros(1, 4), torch.zeros(24_320, 4)
    nothing = torch.empty(0, dtype=torch.int64), torch.tensor([0, 0])
    start = linear_bce(x, weight, log_odds([50] * 24_320, 1_000_000), *nothing).item()
    zero = linear_bce(x, weight, torch.zeros(24_320), *nothing).item()
    assert zero == pytest.approx(24_320 * math.log(2), rel=1e-4)
    assert start < 2


def test_learning_rate_rises_and_falls() -> None:
    cfg = OptimConfig(lr=1.0, warmup=0.1, lr_end=0.01)
    rates = [learning_rate(seen, 1000, cfg) for seen in range(0, 1001, 10)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_norms_biases_and_positions_do_not_decay() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    decayed, free = make_optimizers(model, OptimConfig())[0].param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert {"pos_embed", "cls_token"} <= {names[id(p)] for p in free["params"]}
    assert decayed["weight_decay"] > 0 == free["weight_decay"]


# Parameters of two dimensions and more that timm names.
EXEMPT = {
    "swin_tiny_patch4_window7_224": 12, "swinv2_cr_tiny_ns_224": 0, "levit_128s": 11, "xcit_nano_12_p16_224": 2,
    "deit_tiny_distilled_patch16_224": 3, "vit_tiny_patch16_224": 2, "corenet_vit_tiny": 2, "resnet10t": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", EXEMPT)
def test_what_decays_is_what_timm_lets_decay(name: str) -> None:
    with torch.device("meta"):
        backbone: Any = timm.create_model(name, num_classes=0)
    no_weight_decay = getattr(backbone, "no_weight_decay", set)()
    theirs = param_groups_weight_decay(backbone, 0.05, no_weight_decay_list=no_weight_decay)
    free = {id(p): p for group in theirs if not group["weight_decay"] for p in group["params"]}
    names = {f"objective.encoder.backbone.{n}" for n, p in backbone.named_parameters() if id(p) in free}
    assert sum(p.ndim > 1 for p in free.values()) == EXEMPT[name]

    task = nn.Module()
    task.objective = nn.Module()
    task.objective.encoder = Encoder(backbone)
    task.objective.head = nn.Linear(3, 4, device="meta")
    name_of = {id(p): n for n, p in task.named_parameters()}
    groups = make_optimizers(task, OptimConfig())[0].param_groups
    ours = {name_of[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert ours == names | {"objective.head.bias"}


def test_muon_leaves_swins_tables_alone() -> None:
    pytest.importorskip("torch", minversion="2.9")
    with torch.device("meta"):
        backbone = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    task = nn.ModuleDict({"backbone": backbone})
    of_muon = {
        id(p) for group in make_optimizers(task, OptimConfig(optimizer="muon"))[1].param_groups for p in group["params"]
    }
    found = {name for name, p in task.named_parameters() if id(p) in of_muon}
    assert any(name.endswith("qkv.weight") for name in found)
    assert not any("relative_position" in name for name in found)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_layers_of_the_encoder_learn_more_slowly_the_lower_they_are(name: str) -> None:
    encoder = Encoder.create(name, image_size=32)
    task = Task(SynsetObjective(encoder, [1] * 3, 10, Synsets()))
    scale = {
        parameter: group["lr_scale"]
        for group in make_optimizers(task, OptimConfig(layer_decay=0.5))[0].param_groups
        for parameter in group["params"]
    }
    assert len(scale) == len(list(task.parameters()))
    assert scale[task.objective.head.weight] == 1.0
    of_layers = sorted({scale[p] for p in encoder.parameters()}, reverse=True)
    assert of_layers == [0.5 ** (i + 1) for i in range(len(of_layers))]
    first = next(p for n, p in encoder.named_parameters() if "patch_embed" in n or "conv1" in n)
    assert scale[first] == of_layers[-1]


def config(data: str, vocab: str | Path, out: Path, **changes: object) -> PretrainConfig:
    return PretrainConfig(**{
        "data": data, "vocab": str(vocab), "out": str(out), "backbone": "test_resnet", "image_size": 32, "samples": 480,
        "batch_size": 24, "workers": 1, "crop": CropConfig(scale=(0.5, 1.0)), "optim": OptimConfig(lr=5e-3),
        "loop": LoopConfig(ema=0.9, precision="fp32"), "device": "cpu", **changes,
    })  # fmt: skip


def test_the_whole_way_learns(flow, coloured_shards, tmp_path: Path) -> None:
    """Captions -> vocabulary -> encoder -> probe and predictions, on colours that captions name."""
    data, vocab = flow
    out = pretrain(config=config(data, vocab, tmp_path / "run", samples=1440)).out
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["samples"] == 1440
    assert {"loss", "lr", "images_per_s", "data_wait"} <= set(lines[-1])
    encoder = catlip.load(out)
    vocabulary = Vocabulary.load(vocab)
    assert encoder.labels == vocabulary.synsets
    test = coloured_shards(40, 1, "test", cls=True)
    result = probe(str(out), coloured_shards(80, 1, "probe", cls=True), test, device="cpu")
    assert isinstance(result, ProbeResult)
    assert result.linear_probe > 90
    assert json.loads((out / "results.jsonl").read_text()) == result.to_json()
    # The classifier itself names the nouns of unseen pictures: the four colours are four labels.
    pictures = open_labelled(test)
    nouns = ["apple", "lake", "lawn", "lemon"]
    right = 0
    for record in map(pictures.__getitem__, range(len(pictures))):
        x = encoder.transform(read_image(record.image))[None]
        right += encoder.names[encoder.logits(x).argmax().item()] == nouns[int(record.metadata["cls"])]
    assert right / len(pictures) > 0.8


def test_held_out_tables_have_the_columns_of_the_data(flow, tmp_path: Path) -> None:
    for i in range(24):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(list(COLOURS.values())[i % 3], seed=i))
    rows = [f"{i}.jpg,a {list(COLOURS)[i % 3]},x" for i in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["where,headline,credit", *rows]))
    columns = {"image_col": "where", "text_col": "headline"}
    data = str(tmp_path / "t.csv")
    for held_out in (data, flow[0]):  # tars have no columns
        changes = {"samples": 24, "held_out": held_out, "watch_every": 24, **columns}
        run = pretrain(config=config(data, flow[1], tmp_path / "run", **changes))
        assert run.log[-1]["mAP"] > 0
        shutil.rmtree(run.out)


def test_the_run_folder_loads_in_plain_timm(flow, tmp_path: Path) -> None:
    out = pretrain(config=config(*flow, tmp_path / "run")).out
    encoder = catlip.load(out)
    model = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), encoder.logits(x))
    card = json.loads((out / "encoder" / "config.json").read_text())
    assert card["label_names"] == Vocabulary.load(flow[1]).synsets
    assert card["label_descriptions"][card["label_names"][0]]
    assert card["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert {p.name for p in out.iterdir()} >= {
        "config.json",
        "log.jsonl",
        "resume",
        "encoder",
        "objective.safetensors",
        "vocab.tsv",
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "resume" / "state.pt", weights_only=True)["average"]


def test_a_killed_run_goes_on_bit_for_bit(flow, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = pretrain(config=config(*flow, tmp_path / "whole")).out
    save = checkpoint.save

    def save_and_die(folder: Path, state: dict) -> None:
        save(folder, state)
        if state["samples"] >= 240:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        torch.set_num_threads(1)
        with mock.patch.object(checkpoint, "save", save_and_die):
            pretrain(
                config=config(*flow, tmp_path / "killed", loop=LoopConfig(ema=0.9, precision="fp32", save_every=120))
            )

    killed = multiprocessing.get_context("fork").Process(target=run)
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    again = pretrain(config=config(*flow, tmp_path / "killed")).out
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_another_run_is_not_overwritten(flow, tmp_path: Path) -> None:
    out = pretrain(config=config(*flow, tmp_path / "run", samples=48)).out
    before = weights(out)
    with pytest.raises(UsageError, match=r"already holds another run.*seed: 0 there, 1 here"):
        pretrain(config=config(*flow, out, samples=48, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_text("my life's work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        pretrain(config=config(*flow, tmp_path / "full"))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(out).values(), strict=True))


def test_a_loss_that_is_not_finite_stops_the_run(flow, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not finite"):
        pretrain(config=config(
            *flow, tmp_path / "run", optim=OptimConfig(lr=1e30, clip=0, warmup=0),
            loop=LoopConfig(ema=0.9, precision="fp32", save_every=10_000),
        ))  # fmt: skip
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert entry["keys"]
    assert not (tmp_path / "run" / "resume" / "state.pt").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone": "resnet10x"}, "did you mean.*resnet10t"),
        ({"samples": 0}, "`samples`, `epochs` or `hours`"),
        ({"epochs": 2.0}, "`samples`, `epochs` or `hours`"),
        ({"vocab": "nope.tsv"}, "no such vocabulary: nope.tsv"),
        ({"data": "nope-*.tar"}, "no file matches"),
        ({"out": ""}, "`out` is missing"),
        ({"device": "quantum"}, "`device` 'quantum'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    flow, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        pretrain(config=replace(config(*flow, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_logistic_regression_equals_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator) + torch.randn(200, 3, generator=generator)).argmax(1)
    ours = fit_logistic(x, y, penalty=0.01)
    theirs = sklearn.LogisticRegression(C=1 / (0.01 * len(x)), max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    scores = (x @ ours[:-1] + ours[-1]).softmax(1)
    assert torch.allclose(scores, torch.tensor(theirs.predict_proba(x.numpy())).float(), atol=2e-3)


def test_probe_and_vote_on_separable_and_on_random_features() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 5
    x = F.one_hot(y, 5).float() + 0.05 * torch.randn(300, 5, generator=generator)
    assert linear_probe(x[:200], y[:200], x[200:], y[200:])[0].all()
    assert knn(x[:200], y[:200], x[200:], y[200:]) == 100
    noise = torch.randn(300, 5, generator=generator)
    assert linear_probe(noise[:200], y[:200], noise[200:], y[200:])[0].float().mean() < 0.45


def test_knn_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    y = torch.tensor([0, 0, 1])
    assert knn(x, y, torch.tensor([[1.0, 0.2], [0.1, 1.0]]), torch.tensor([0, 1]), k=2) == 100
    assert knn(x, y, torch.tensor([[1.0, 0.2], [0.1, 1.0]]), torch.tensor([1, 0]), k=1) == 0


@pytest.mark.parametrize(
    "name",
    [
        "synsets_softmax",
        "synsets_asymmetric",
        "subwords",
        "clip",
        "siglip",
        "clip_lite",
        "clip+subwords",
        "siglip+synsets",
    ],
)
def test_every_objective_trains_stops_and_goes_on(flow, tmp_path: Path, name: str, monkeypatch) -> None:
    """The whole way with each objective, interrupted and not: the same bits; and the folder loads."""
    from catlip.labels.tokenizer import TokenizerConfig
    from catlip.models.dual_encoder import load_dual
    from catlip.models.text_tower import TextConfig
    from catlip.recipes.objectives import OBJECTIVES, objective_named

    small = TextConfig(text_width=64, text_layers=1)
    for part in ("clip", "siglip", "clip_lite"):
        monkeypatch.setitem(OBJECTIVES, part, partial(OBJECTIVES[part], embed=16))

    def run(out: Path) -> Path:
        return pretrain(config=config(
            flow[0], flow[1] if "synsets" in name else "", out, samples=240, objective=objective_named(name),
            tokens=TokenizerConfig(tokens=600, context=16), text=small,
            loop=LoopConfig(ema=0.9, precision="fp32", save_every=96),
        )).out  # fmt: skip

    whole = run(tmp_path / "whole")
    with cut_short():
        run(tmp_path / "cut")
    again = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))
    encoder = catlip.load(whole)
    assert bool(encoder.labels) == ("synsets" in name)
    if name.startswith(("clip", "siglip")):
        dual = load_dual(whole)
        length = 2048 if name == "clip_lite" else 16  # CLIP-Lite compares what its critic's projections return
        assert dual.embed_texts(["a red apple", "a blue lake"]).shape == (2, length)
        assert dual.embed_images(torch.zeros(1, 3, 32, 32)).shape == (1, length)


def test_a_run_begun_from_another_keeps_the_rows_of_shared_labels(flow, tmp_path: Path) -> None:
    """`start` RUN with another vocabulary: encoder and shared rows bit for bit, by synset and not by place."""
    from catlip.tasks.pretrain import make_task

    first = pretrain(config=config(*flow, tmp_path / "first", samples=96)).out
    old = Vocabulary.load(flow[1])
    kept = list(reversed(range(len(old))))[:-1]  # another order, one label gone, one new
    other = Vocabulary(
        synsets=[*(old.synsets[i] for i in kept), "n02084071"], names=[*(old.names[i] for i in kept), "dog"],
        counts=[*(old.counts[i] for i in kept), 7], samples=old.samples, lexicon=old.lexicon,
    )  # fmt: skip
    other.save(tmp_path / "other.tsv")
    cfg = config(flow[0], tmp_path / "other.tsv", tmp_path / "second", samples=96, start=str(first))
    head = make_task(cfg, Context(other)).objective.head
    source = catlip.load(first)
    theirs = source.backbone.get_classifier()
    for row, i in enumerate(kept):
        assert torch.equal(head.weight[row], theirs.weight[i])
        assert torch.equal(head.bias[row], theirs.bias[i])
    second = pretrain(config=cfg).out
    assert catlip.load(second).labels == other.synsets
    pretrain(config=cfg)  # the same command again
    with pytest.raises(UsageError, match="init"):
        pretrain(config=replace(cfg, start=""))
