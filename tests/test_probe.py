"""The probe with few labels, with Transfer Init, and with kept features."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip import cli, page
from catlip.data.images import Unreadable
from catlip.data.subsets import share_of_each, shots_of_each, subset
from catlip.errors import UsageError
from catlip.evaluation import features as features_module
from catlip.evaluation.features import cached_features, open_labelled
from catlip.evaluation.learning_curve import curve_table, curves, drawn_curves
from catlip.evaluation.linear_probe import accuracy, fit_logistic, likelihood, linear_probe
from catlip.evaluation.probe import CurvePoint, Part, ProbeConfig, ProbeResult, probe, transfer_names
from catlip.evaluation.svm_probe import MultiLabelProbeResult
from catlip.models.encoder import Encoder
from catlip.tasks.finetune import FinetuneConfig, finetune, open_sets
from tests.conftest import COLOURS, jpeg, write_tar
from tests.test_finetune import coco_of, many
from tests.test_zero_shot import FRUITS


def make(n: int = 200, d: int = 6, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(x, y, the weight [d, c] that made y)."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n, d, generator=generator), torch.randn(d, c, generator=generator)
    return x, (x @ weight + 0.5 * torch.randn(n, c, generator=generator)).argmax(1), weight


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("probe") / "run"
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(folder / "encoder", nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    return folder


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "names.txt").write_text("\n".join(COLOURS) + "\n")
    return str(tmp_path / "names.txt")


@pytest.fixture
def sets(coloured_shards: Callable[..., str]) -> tuple[str, str]:
    return coloured_shards(40, 1, "learn", cls=True), coloured_shards(12, 1, "test", cls=True)


# the data


def test_the_columns_of_a_table_can_be_named(tmp_path: Path) -> None:
    for name in ("learn", "test"):
        rows = [f"{name}{i}.jpg,{noun},{i % 3}" for i, noun in enumerate(list(COLOURS) * 8)]
        for row in rows:
            path, noun, _ = row.split(",")
            (tmp_path / path).write_bytes(jpeg(COLOURS[noun], seed=zlib.crc32(path.encode())))
        (tmp_path / f"{name}.csv").write_text("\n".join(["photo,kind,shelf", *rows]) + "\n")
    encoder, tables = Encoder.create("test_resnet", image_size=32), (f"{tmp_path}/learn.csv", f"{tmp_path}/test.csv")
    result = probe(encoder, *tables, image_col="photo", label_col="kind", device="cpu")
    assert isinstance(result, ProbeResult)
    assert result.linear_probe > 60  # chance: 25
    assert probe(encoder, *tables, image_col="photo", label_col="shelf", device="cpu").linear_probe < 60
    with pytest.raises(UsageError, match="`label_col`"):
        probe(encoder, *tables, device="cpu")


# the fit


@pytest.mark.parametrize("block", [1, 28, 10**9])
def test_blocks_change_nothing(block: int) -> None:
    x, y, _ = make(40)
    whole, parts = (fit_logistic(x, y, 0.01, block=some) for some in (2**24, block))
    torch.testing.assert_close(whole, parts, atol=2e-3, rtol=2e-3)


def test_the_penalty_pulls_to_the_prior() -> None:
    """Against the definition: substitute V = W - W0, whose logits have an offset."""
    x, y, weight = make()
    prior = torch.cat([weight + 1.0, torch.zeros(1, 4)])
    ours = fit_logistic(x, y, 0.1, prior=prior)
    free = torch.zeros(7, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = x @ prior[:-1] + x @ free[:-1] + free[-1]
        value = F.cross_entropy(logits, y) + 0.05 * free[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(ours, (prior + free).detach(), atol=2e-3, rtol=2e-3)
    stiff = fit_logistic(x, y, 1e4, prior=prior)
    torch.testing.assert_close(stiff[:-1], prior[:-1], atol=1e-3, rtol=1e-3)
    assert torch.equal(fit_logistic(x, y, 0.1), fit_logistic(x, y, 0.1, prior=torch.zeros(7, 4)))


def top1(*args: Any, **settings: Any) -> float:
    """In percent."""
    return 100 * linear_probe(*args, **settings)[0].float().mean().item()


def test_a_good_prior_helps_with_few_labels_and_a_bad_one_hurts_little_with_many() -> None:
    x, y, weight = make(400)
    few = shots_of_each(y[:200], 2, 0, list("abcd"))
    good, bad = ((some.T, torch.zeros(4)) for some in (weight, -weight))
    args = (x[few], y[few], x[200:], y[200:])
    assert top1(*args, prior=good, folds=5) > top1(*args, folds=5) + 5
    many = (x[:200], y[:200], x[200:], y[200:])
    assert top1(*many, prior=bad) > top1(*many) - 2


def test_one_picture_a_class_leaves_nothing_to_choose_by() -> None:
    x, y, weight = make()
    one = shots_of_each(y, 1, 0, list("abcd"))
    found, penalty = linear_probe(x[one], y[one], x, y, prior=(weight.T, torch.zeros(4)), folds=5)
    assert penalty == 10.0
    assert found.float().mean() > 0.5


def test_a_class_that_only_the_test_set_has_left_is_wrong_not_an_error() -> None:
    """Unreadable pictures can take a class away."""
    x, y, _ = make()
    keep = y < 3
    found, _ = linear_probe(x[keep], y[keep], x, y)
    assert found[keep].any()
    assert not found[~keep].any()


def test_accuracy_of_no_pictures_is_not_a_number() -> None:
    assert accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(4, 2)) != 0


# parts of the training set


def test_parts_are_shares_of_each_class_and_nested() -> None:
    y = torch.tensor([0] * 100 + [1] * 10 + [2])[torch.randperm(111, generator=torch.Generator().manual_seed(0))]
    assert y[share_of_each(y, 0.1, 0)].bincount().tolist() == [10, 1, 1]
    assert y[share_of_each(y, 1e-9, 0)].bincount().tolist() == [1, 1, 1]
    assert sorted(share_of_each(y, 1.0, 3).tolist()) == list(range(111))
    assert set(share_of_each(y, 0.1, 5).tolist()) <= set(share_of_each(y, 0.3, 5).tolist())
    assert set(share_of_each(y, 0.1, 5).tolist()) != set(share_of_each(y, 0.1, 6).tolist())
    assert y[shots_of_each(y, 1, 0, "abc")].tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="`shots` 2: class 'c' has 1 training pictures; 1 is the most that all 3"):
        shots_of_each(y, 2, 0, "abc")


# kept features


def test_features_are_kept_and_a_damaged_file_is_made_again(
    sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoder, data, made = Encoder.create("test_resnet", image_size=32), open_labelled(sets[1]), []
    real = features_module.features
    monkeypatch.setattr(features_module, "features", lambda *args: made.append(1) or real(*args))
    device = torch.device("cpu")

    def again(keep: bool = True) -> Tensor:
        pooled, kept = cached_features(encoder, data, device, Unreadable(), cache=keep)
        assert kept.tolist() == list(range(len(data)))
        return pooled

    first = again()
    assert torch.equal(first, again())
    assert len(made) == 1
    again(keep=False)
    assert len(made) == 2
    (file,) = (features_module.cache_folder() / "features").iterdir()
    for damage in (b"", b"nonsense", file.read_bytes()[:-100]):
        file.write_bytes(damage)
        assert torch.equal(first, again())
    assert len(made) == 5
    assert torch.equal(first, again())
    assert len(made) == 5
    # Anything that decides the features is another file.
    encoder.image_size = 40
    again()
    encoder.image_size = 32
    data = subset(data, np.arange(1, len(data)))
    again()
    with torch.no_grad():
        next(encoder.backbone.parameters()).mul_(1.01)
    again()
    assert len(made) == 8
    assert len(list(file.parent.iterdir())) == 4


def test_a_cache_that_cannot_be_written_costs_a_line(
    sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CATLIP_CACHE", str(tmp_path / "file"))
    encoder = Encoder.create("test_resnet", image_size=32)
    cached_features(encoder, open_labelled(sets[1]), torch.device("cpu"), Unreadable())
    assert "the features are not kept" in capsys.readouterr().err


# the verb


def test_probe_and_fine_tuning_take_the_same_part(
    run: Path, sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[float, list[int]] = {}

    def measured(cfg: ProbeConfig, data: tuple[Tensor, ...], part: Part, *_: object) -> CurvePoint:
        seen[float(part.told.rstrip(" %")) / 100] = part.rows(3).tolist()
        found = {"probes": {"random": [50.0]}, "knn": [50.0], "penalties": {"random": [1]}}
        return CurvePoint(told=part.told, share=1.0, pictures=1, **found)

    monkeypatch.setattr("catlip.evaluation.probe.measure", measured)
    probe(str(run), *sets, fractions="0.1,0.35", device="cpu")
    for fraction, rows in seen.items():
        cfg = FinetuneConfig(
            run=str(run), train=sets[0], test=sets[1], out=str(tmp_path / "o"), fraction=fraction, seed=3
        )
        assert open_sets(cfg).train.numbers.tolist() == rows
    assert len(seen[0.1]) == 4


def test_pictures_that_cannot_be_read_are_counted_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 120), ("test", 101)):
        members = {f"{i:03}.jpg": jpeg(COLOURS["lake" if i % 2 else "lemon"], (40, 32), i) for i in range(count)}
        members["007.jpg"] = members["007.jpg"][:-200]
        classes = {f"{i:03}.cls": str(i % 2).encode() for i in range(count)}
        write_tar(tmp_path / f"{part}.tar", dict(sorted({**members, **classes}.items())))
    cfg = ProbeConfig(run=str(run), train=str(tmp_path / "train.tar"), test=str(tmp_path / "test.tar"), device="cpu")
    for why in ("damaged picture", "could not be read when the features were made"):
        result = probe(config=cfg)
        assert (result.train, result.test, result.unreadable) == (119, 100, {"train": 1, "test": 1})
        said = capsys.readouterr().err
        assert f"`train`: 1 of 120 pictures cannot be read and are left out: 007: {why}" in said
        assert f"`test`: 1 of 101 pictures cannot be read and are left out: 007: {why}" in said
    tuned = finetune(config=FinetuneConfig(
        run=str(run), train=cfg.train, test=cfg.test, out=str(tmp_path / "out"), samples=32, batch_size=32, workers=1,
        device="cpu", watch_limit=0,
    )).result  # fmt: skip
    assert tuned is not None
    assert (tuned.test, tuned.unreadable) == (100, {"test": 1})


def test_one_process_probes_and_others_are_refused(
    run: Path, sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="works in one process, and 2 were started"):
        probe(str(run), *sets, device="cpu")


def test_the_plain_call_is_what_it_was(run: Path, sets: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    result = probe(str(run), *sets, device="cpu")
    assert isinstance(result, ProbeResult)
    assert set(result.to_json()) == {
        "task", "linear_probe", "knn", "penalty", "classes", "train", "test", "image_size", "data", "encoder",
        "seconds",
    }  # fmt: skip
    assert capsys.readouterr().out == ""  # results are values; the command line prints them
    said = str(result)
    assert "run: 4 classes, 40 to train on, 12 to test\n" in said
    assert re.search(r"\n  linear probe +[\d.]+ % +\(penalty [\de.-]+\)\n  20 nearest +[\d.]+ %\n", said)
    assert re.search(r"chance +25\.00 %", said)
    assert json.loads((run / "results.jsonl").read_text().splitlines()[-1]) == result.to_json()


def test_transfer_and_random_on_the_same_parts(
    run: Path, sets: tuple[str, str], names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    result = cli.run([
        "probe", str(run), "--train", sets[0], "--test", sets[1], "--init", "transfer", "--classes", names,
        "--fractions", "1,0.1,0.3", "--seeds", "2", "--out", str(out), "--device", "cpu",
    ])  # fmt: skip
    assert json.loads((run / "results.jsonl").read_text().splitlines()[-1]) == result.to_json()
    assert [(a.told, a.pictures) for a in result.curve] == [("10 %", 4), ("30 %", 12), ("100 %", 40)]
    assert [len(a.probes["transfer"]) for a in result.curve] == [2, 2, 1]
    assert [len(a.probes["random"]) for a in result.curve] == [2, 2, 1]
    assert result.names["lemon"].startswith("exact: ")
    said = capsys.readouterr().out
    assert "10 %, 4 " in said
    assert "Transfer Init" in said
    html = out.read_text()
    assert html.count('<g id="series-') == 3
    assert "http" not in html
    again = probe(str(run), *sets, shots="1,2", seeds=2, device="cpu")
    assert isinstance(again, ProbeResult)
    assert [(a.told, a.pictures) for a in again.curve] == [("1 a class", 4), ("2 a class", 8)]
    assert "transfer" not in again.curve[0].probes
    one = probe(str(run), *sets, fraction=0.1, seeds=2, device="cpu")
    assert isinstance(one, ProbeResult)
    assert one.curve[0].probes["random"] == result.curve[0].probes["random"]


def test_a_page_of_several_tasks_escapes_what_it_is_given() -> None:
    bad = "<script>alert(1)</script>"
    one = {"task": "probe", "encoder": bad, "image_size": 64, "classes": 4, "names": {bad: bad},
           "curve": [
           {"told": bad, "share": 0.1, "pictures": 5, "random": [20.0, 30.0], "transfer": [40.0, 40.0]}]}  # fmt: skip
    two = {"task": "finetune", "curve": [{"told": "100 %", "share": 1.0, "pictures": 50, "random": [60.0]}]}
    found = curves([one, two])
    assert set(found) == {"probe, random start", "probe, Transfer Init", "finetune, random start"}
    assert found["probe, random start"][0].spread == pytest.approx(50**0.5)
    html = page.page(bad, *drawn_curves([one, two]))
    assert "<script" not in html
    assert "25.00 ± 7.07" in html
    assert "25.00 ± 7.07" in str(curve_table([one, two], "both"))


def test_names_by_number_by_label_and_by_file(sets: tuple[str, str], names: str, tmp_path: Path) -> None:
    by_number = open_labelled(sets[0])
    assert [n.name for n in transfer_names(by_number, ["0", "1", "2", "3"], names)] == list(COLOURS)
    folder = tmp_path / "folders"
    for colour, label in zip(((250, 220, 40), (200, 30, 30)), ("lemon", "apple"), strict=True):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.jpg").write_bytes(jpeg(colour))
    with_names = open_labelled(str(folder))
    assert [n.name for n in transfer_names(with_names, ["apple", "lemon"], None)] == ["apple", "lemon"]
    powers = open_labelled([(jpeg(seed=i), "²³"[i]) for i in range(2)])  # digits, but no numbers
    assert [n.name for n in transfer_names(powers, powers.classes, None)] == ["²", "³"]
    assert [n.name for n in transfer_names(with_names, ["apple", "lemon"], names)] == ["apple", "lemon"]


@pytest.mark.parametrize(("extra", "says"), [
    (["--init", "transfer"], "labels are numbers; --init transfer needs --classes names.txt"),
    (["--init", "transfer", "--classes", "SHORT"], "names 2 classes; .* has the label 3"),
    (["--init", "transfer", "--classes", "LONG"], "has 5 names for labels from 0 to 3"),
    (["--init", "transfer", "--classes", "STRANGE"], "no class name has path similarity"),
    (["--init", "transfer", "--classes", "nope.txt"], "--classes: no such file"),
    (["--shots", "11"], "--shots 11: class '0' has 10 training pictures; 10 is the most"),
    (["--shots", "0"], "a class needs a picture"),
    (["--shots", "a,b"], "--shots 'a,b': expected numbers"),
    (["--fraction", "0"], "--fraction 0: a share"),
    (["--fractions", "0.1,1.5"], "--fraction 1.5: a share"),
    (["--fraction", "0.1", "--shots", "1"], "are three ways"),
    (["--fractions", "0.1", "--shots", "1"], "are three ways"),
    (["--fraction", "0.1", "--fractions", "0.2"], "found --fraction, --fractions"),
    (["--fractions", ","], "--fractions ',': expected numbers"),
    (["--fraction", "0.1", "--seeds", "0"], "--seeds 0"),
    (["--neighbours", "0"], "--neighbours 0: 1 or more"),
])  # fmt: skip
def test_mistakes_end_with_one_line(
    extra: list[str], says: str, run: Path, sets: tuple[str, str], tmp_path: Path
) -> None:
    for file, text in {"SHORT": "apple\nlake\n", "LONG": "apple\nlake\nlawn\nlemon\ndog\n",
                       "STRANGE": "zzxy\nqqvw\nxxkk\nwwzz\n"}.items():  # fmt: skip
        (tmp_path / file).write_text(text)
        extra = [str(tmp_path / file) if part == file else part for part in extra]
    with pytest.raises(UsageError, match=says):
        cli.run(["probe", str(run), "--train", sets[0], "--test", sets[1], *extra])


def test_an_encoder_without_synsets_has_no_rows_to_give(sets: tuple[str, str], names: str, tmp_path: Path) -> None:
    Encoder.create("test_resnet", image_size=32).save(tmp_path / "bare" / "encoder")
    with pytest.raises(UsageError, match=r"it has none\. Take `init` random"):
        probe(str(tmp_path / "bare"), *sets, init="transfer", classes=names)


def measured(cfg: ProbeConfig) -> ProbeResult:
    found = probe(config=cfg)
    assert isinstance(found, ProbeResult)
    return found


def test_one_picture_to_test_and_one_of_each_class_to_learn(run: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for noun, colour in list(COLOURS.items())[: 2 if part == "train" else 1]:
            (tmp_path / part / noun).mkdir(parents=True)
            (tmp_path / part / noun / "a.jpg").write_bytes(jpeg(colour))
    cfg = ProbeConfig(run=str(run), train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    assert measured(cfg).linear_probe in (0, 100)
    assert measured(replace(cfg, init="transfer")).linear_probe in (0, 100)
    (tmp_path / "train" / "lake" / "a.jpg").unlink()
    with pytest.raises(UsageError, match="has a single class"):
        probe(config=cfg)


def test_few_pictures_choose_how_much_of_a_prior_to_believe() -> None:
    """One that knows the answer helps; one that says the opposite is left alone, and costs nothing."""
    x, y, weight = make(400, 12, 4)
    few, test = (x[:40], y[:40]), (x[40:], y[40:])
    alone, penalty = linear_probe(*few, *test, folds=5)
    wrong, same = linear_probe(*few, *test, folds=5, prior=(-5 * weight.T, torch.zeros(4)))
    assert top1(*few, *test, folds=5, prior=(weight.T, torch.zeros(4))) > 100 * alone.float().mean() + 3
    assert same == penalty
    assert torch.equal(wrong, alone)


def test_likelihood_by_hand() -> None:
    x, y, weight = make(5)
    weights = torch.cat([weight, torch.zeros(1, 4)])
    shares = (x @ weight).softmax(1)
    by_hand = sum(shares[i, y[i]].log().item() for i in range(5)) / 5
    assert likelihood(x, y, weights) == pytest.approx(by_hand, rel=1e-5)


# several labels a picture


def test_several_labels_are_probed_by_machines(run: Path, tmp_path: Path, capsys) -> None:
    """Colours in patches: any features tell them apart. The class that no picture has is left out."""
    data = [coco_of(tmp_path / name, many(tmp_path / name, 60, seed)) for seed, name in enumerate(("train", "test"))]
    found = probe(str(run), *data, cache=False)
    assert isinstance(found, MultiLabelProbeResult)
    assert (found.classes, found.left_out) == (2, 1)
    assert found.mAP_voc07 > 95
    assert found.mAP > 95
    assert set(found.per_class) == {"red", "green"}
    assert "2 of 3 classes, 60 to train on, 60 to test" in str(found)
    assert json.loads((run / "results.jsonl").read_text().splitlines()[-1]) == found.to_json()
    with pytest.raises(UsageError, match=r"`shots` is for sets with one label a picture; .* have several"):
        probe(str(run), *data, shots="1,2")


def test_labels_that_cannot_be_told_apart_are_an_error(run: Path, tmp_path: Path) -> None:
    found = many(tmp_path / "train", 12, 0)
    all_red = coco_of(tmp_path / "train", {name: ["red"] for name in found})
    with pytest.raises(UsageError, match=r"`train` .* has no class that can be told apart"):
        probe(str(run), all_red, all_red)
