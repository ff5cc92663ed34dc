"""Objectives side by side: what is trained, what is not trained twice, and what the page says."""

import json
from pathlib import Path

import pytest

from catlip.errors import UsageError
from catlip.evaluation.probe import ProbeResult
from catlip.recipes import compare as comparing
from catlip.recipes.compare import CompareConfig, compare
from catlip.report.comparison import ComparedRun, summarise
from catlip.tasks.pretrain import PretrainConfig
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
        "out": str(tmp_path / "compare"), "data": data, "vocab": str(vocab), "train": labelled, "test": labelled,
        "recipe": f"{tmp_path / 'recipe.py'}:tiny", "device": "cpu",
    }  # fmt: skip


def test_a_comparison_grows_and_repeats_nothing(settings: dict, monkeypatch) -> None:
    first = CompareConfig(**settings, objectives=("synsets", "clip"), seeds=2, lr=(1e-3, 1e-2), search=48,
                    retrieve=settings["data"], equal_time=True)  # fmt: skip
    page = compare(first)
    out = Path(settings["out"])
    assert len(list(out.glob("runs/*/compared.json"))) == 4
    assert len(list(out.glob("search/*/compared.json"))) == 4
    assert len(list(out.glob("equal_time/clip-*/compared.json"))) == 2
    told = json.loads((out / "compare.json").read_text())
    clip = next(s for s in told["summaries"] if s["objective"] == "clip" and s["kind"] == "equal_time")
    ours = next(s for s in told["summaries"] if s["objective"] == "synsets")
    assert clip["seconds"] == pytest.approx(ours["seconds"], rel=0.3)  # whole batches of a very short run
    assert clip["route"] == "text"
    assert ours["route"] == "head"
    assert all(name in page.read_text() for name in ("synsets", "clip", "The same time", "<svg"))

    def never(cfg: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(comparing, "pretrain", never)
    assert compare(first) == page


def test_results_of_other_data_or_another_recipe_are_not_taken_up(
    settings: dict, coloured_shards, tmp_path: Path, monkeypatch, capsys
) -> None:
    trained: list[str] = []

    def train(config: PretrainConfig) -> None:
        cfg = config
        trained.append(Path(cfg.out).name)
        (Path(cfg.out) / "encoder").mkdir(parents=True)

    monkeypatch.setattr(comparing, "pretrain", train)
    monkeypatch.setattr(comparing, "speed_of", lambda cfg, seconds: 100.0)
    monkeypatch.setattr(comparing, "probe", lambda *_, **__: probed(50.0 + len(trained)))

    def again(**changes: object) -> tuple[int, list[float]]:
        """(how many runs were trained now, the probes that the page is made of)."""
        before, cfg = len(trained), CompareConfig(**{**settings, "objectives": ("synsets",), "seeds": 1, **changes})
        told = json.loads(compare(cfg).with_name("compare.json").read_text())
        return len(trained) - before, [summary["linear_probe"] for summary in told["summaries"]]

    assert again() == (1, [51.0])
    assert again() == (0, [51.0])
    assert "not counted" not in capsys.readouterr().out
    other = coloured_shards(samples=24, shards=1, name="other", cls=True)
    assert again(test=other) == (1, [52.0])
    assert "1 results with other data, vocabulary or recipe are left there and not counted" in capsys.readouterr().out
    assert again(train=other) == (1, [53.0])
    assert again(data=other) == (1, [54.0])
    assert again() == (0, [51.0])
    assert again(seeds=2) == (1, [53.0])  # the mean of 51 and 55: a comparison grows
    recipe = tmp_path / "recipe.py"
    recipe.write_text(recipe.read_text().replace("ema=0.9", "ema=0.8"))
    assert again() == (1, [56.0])
    write_coloured(tmp_path, samples=44, shards=1, name="labelled", cls=True)  # the same name, another file
    assert again() == (1, [57.0])
    assert len(set(trained)) == len(trained)


def probed(accuracy: float) -> ProbeResult:
    counts = {"classes": 4, "train": 40, "test": 40, "image_size": 32}
    return ProbeResult(linear_probe=accuracy, knn=40.0, penalty=0.1, data=["", ""], encoder="", **counts)


def test_mistakes_are_found_before_anything_is_trained(settings: dict) -> None:
    for changes, message in (
        ({"objectives": ("synsets", "synsets")}, "once"),
        ({"objectives": ("synsets", "clap")}, "no 'clap'"),
        ({"seeds": 0}, "`seeds`"),
        ({"lr": (0.1, -1.0)}, "`lr`"),
        ({"batch_sizes": (1,)}, "`batch_sizes`"),
        ({"test": "nowhere.tar"}, "nowhere.tar"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(CompareConfig(**{**settings, **changes}))
    assert not Path(settings["out"]).exists()


def test_a_summary_is_of_runs_that_differ_in_the_seed_alone() -> None:
    def run(objective: str, seed: int, probe: float, samples: int = 100) -> ComparedRun:
        recall = {"text": {"text_to_image": {"r@10": probe / 2}}} if objective == "clip" else {}
        return ComparedRun("runs", objective, 1e-3, 24, samples, seed, probe, probe - 10, recall)

    runs = [run("clip", 0, 50), run("clip", 1, 54), run("synsets", 0, 60), run("synsets", 0, 40, samples=50)]
    told = summarise(runs, {"clip": 10.0, "synsets": 20.0})
    assert [(s.objective, s.samples, s.seeds, s.seconds) for s in told] == [
        ("synsets", 100, 1, 5.0), ("clip", 100, 2, 10.0), ("synsets", 50, 1, 2.5)
    ]  # fmt: skip
    assert told[1].linear_probe == 52
    assert told[1].spread == pytest.approx(8**0.5)
    assert (told[1].to_image, told[1].route) == (26, "text")
    assert told[0].to_image is None
