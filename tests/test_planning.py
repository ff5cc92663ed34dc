"""Before and after a run: sbatch files, estimates, the loader's benchmark, the report."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catlip import cli
from catlip.data.bench import BenchConfig, bench_data
from catlip.data.steps import CurriculumConfig, Step, Steps, paper_scales
from catlip.errors import UsageError
from catlip.recipes import RECIPES, load_recipe
from catlip.recipes.plan import PlanConfig, plan
from catlip.recipes.slurm import SlurmConfig, slurm
from catlip.report.run_report import write_report
from catlip.tasks.align import AlignConfig
from catlip.tasks.detect import DetectConfig
from catlip.tasks.finetune import FinetuneConfig
from catlip.tasks.pretrain import PretrainConfig
from catlip.tasks.segment import SegmentConfig
from catlip.training import session
from catlip.training.distributed import World
from catlip.training.hardware import device_facts, train_flops
from catlip.training.runfolder import write_card
from catlip.training.train import TrainConfig


def test_the_sbatch_file_is_a_shell_script_that_requeues(tmp_path: Path) -> None:
    text = cli.run(["slurm", "--nodes", "4", "--", "pretrain", "budget_b16", "--data", "my shards/*.tar", "--out", "r"])
    assert "#SBATCH --nodes=4" in text
    assert "#SBATCH --signal=B:USR1@120" in text
    assert "catlip pretrain budget_b16 --data 'my shards/*.tar' --out r" in text
    (tmp_path / "job.sh").write_text(text)
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


@pytest.mark.parametrize("code", [0, 3])
def test_the_sbatch_file_passes_the_warning_on_and_requeues(tmp_path: Path, code: int) -> None:
    """Run by bash itself, with srun and scontrol replaced: warned, it tells the run, waits for it and requeues."""
    text = slurm(SlurmConfig(command="pretrain x"))
    (tmp_path / "srun").write_text(
        f"#!/bin/bash\ntrap 'echo told >> {tmp_path}/said; exit {code}' USR1\ntouch {tmp_path}/up\n"
        "while :; do sleep 0.05; done\n"
    )
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $* >> {tmp_path}/said\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(text)
    driver = f"export PATH={tmp_path}:$PATH SLURM_JOB_ID=7; bash {script} & job=$!; " \
             f"while [ ! -e {tmp_path}/up ]; do sleep 0.05; done; kill -USR1 $job; wait $job"  # fmt: skip
    found = subprocess.run(["bash", "-c", driver], timeout=30, check=False)
    said = (tmp_path / "said").read_text().split("\n")
    assert found.returncode == code
    assert said[0] == "told"
    assert ("requeue 7" in said) == (code == 0)


def test_an_sbatch_file_needs_a_command() -> None:
    with pytest.raises(UsageError, match="after --"):
        slurm(SlurmConfig())
    with pytest.raises(UsageError, match="no verb 'pretrian', did you mean 'pretrain'"):
        cli.run(["slurm", "--", "pretrian", "budget_b16"])
    assert "srun --kill-on-bad-exit=1 catlip bench data x" in cli.run(["slurm", "--", "catlip", "bench", "data", "x"])
    with pytest.raises(UsageError, match="white space"):
        slurm(SlurmConfig(command="pretrain x", name="a\nb"))


@pytest.mark.parametrize("name", RECIPES["pretrain"])
def test_recipes_are_whole_runs(name: str) -> None:
    recipe = load_recipe(name)
    assert sum(map(bool, (recipe.samples, recipe.epochs, recipe.hours))) == 1
    assert recipe.batch_size


def test_golden_settings_of_the_papers_recipe() -> None:
    """Table 6 of arXiv 2404.15653 and the released YAML files."""
    recipe = load_recipe("datacomp_b16")
    assert (recipe.optim.lr, recipe.optim.lr * recipe.optim.lr_end) == pytest.approx((1e-3, 1e-5))
    assert (recipe.optim.weight_decay, recipe.optim.betas, recipe.optim.clip) == (0.2, (0.9, 0.999), 1.0)
    assert (recipe.batch_size, recipe.loop.ema, recipe.optim.warmup) == (65_536, 0.9995, 0.05)
    assert (min(recipe.curriculum.scales), max(recipe.curriculum.scales)) == (128, 320)
    assert load_recipe("datacomp_l16").optim.lr == 6e-4
    assert load_recipe("datacomp_h16").optim.lr == 4e-4
    assert load_recipe("cc3m_b16").optim.lr == 2e-3


def test_flops_are_those_that_others_count() -> None:
    """ViT-B/16 at 224 px: 17.6 G multiply-adds forward, 35.1 GFLOPs (open_clip's table); three times that to train."""
    assert train_flops("vit_base_patch16_224", 224, 1000) / 3 == pytest.approx(35.1e9, rel=0.02)
    assert train_flops("resnet50", 224, 1000) / 3 == pytest.approx(8.2e9, rel=0.05)


def test_a_plan_says_where_its_numbers_come_from(capsys: pytest.CaptureFixture) -> None:
    found = plan(PlanConfig(recipe="budget_b16", gpus="8xH100", price=2.0, mfu=0.5))
    said = capsys.readouterr().out
    assert "given with `mfu`" in said
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 2.0)
    half = plan(PlanConfig(recipe="budget_b16", gpus="4xH100", mfu=0.5))
    assert half["hours"] == pytest.approx(2 * found["hours"])
    for wrong in ({"samples": -5}, {"mfu": 5.0}, {"classes": -1}):
        with pytest.raises(UsageError, match="`mfu` is a share"):
            plan(PlanConfig(recipe="budget_b16", **wrong))
    with pytest.raises(UsageError, match="8xH100"):
        plan(PlanConfig(recipe="budget_b16", gpus="8xAbacus"))
    assert device_facts("NVIDIA H200")[0] == 989e12


CURRICULA = {
    "plain": CurriculumConfig(),
    "budget": load_recipe("budget_b16").curriculum,
    "apart": CurriculumConfig(low_res=96, low_res_share=0.3, patch_keep=0.5, patch_keep_share=0.7),
    "scales": CurriculumConfig(scales=paper_scales()),
    "both": CurriculumConfig(scales=(128, 224, 320), patch_keep=0.5, patch_keep_share=0.9),
}


def seconds_of(step: Step) -> float:
    """What a step costs here: by tokens, attention counted."""
    tokens = (step.size / 16) ** 2 * step.keep
    return step.batch * (tokens + tokens**2 / 500) / 1e4


@pytest.mark.parametrize("name", CURRICULA)
def test_a_run_of_so_many_hours_takes_so_many_hours(name: str, monkeypatch) -> None:
    """Measured with a clock that costs advance; then the costs of every step of the run are added up."""
    cfg: dict[str, Any] = {"batch_size": 64, "image_size": 224, "seed": 1}
    clock, met = [0.0], set()

    class Machine:
        def __init__(self, *_: object, **__: object) -> None: ...

        def update(self, batch: Any, lr: float) -> dict[str, float]:
            clock[0] += seconds_of(batch.step)
            met.add((batch.step.batch, batch.step.size, batch.step.keep))
            return {"loss": 0.0}

    def loader(_: Any, steps: Steps) -> Any:
        return SimpleNamespace(
            batches_from=lambda first, lend: (SimpleNamespace(step=steps[i]) for i in range(len(steps)))
        )

    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(session, "State", Machine)
    monkeypatch.setattr(session.Session, "loader", loader)
    task = torch.nn.Identity()
    task.curriculum, task.image_size = CURRICULA[name], 224
    alone, settings = World(0, 1, 0, 1, torch.device("cpu")), TrainConfig(batch_size=64, seed=1)
    rate = session.Session(task, None, settings, alone, None, 1).speed(10.0)
    phases = Steps(CURRICULA[name], budget=1, **cfg).phases()
    assert clock[0] < 10 + 7 * sum(seconds_of(Step(0, 0, p.batch, p.size, p.keep, 0.0)) for p in phases)

    hours = 20.0
    run = Steps(CURRICULA[name], budget=round(rate * hours * 3600), **cfg)
    steps = [run[i] for i in range(len(run))]
    assert sum(map(seconds_of, steps)) / 3600 == pytest.approx(hours, rel=0.01)
    assert {(s.batch, s.size, s.keep) for s in steps} == met
    assert set(run.shapes()) == {(batch, size) for batch, size, _ in met}


def test_a_plan_counts_every_kind_of_step() -> None:
    """budget_b16: nine tenths at 160 px with half of the patches, one at 224 px with all of them."""
    found = plan(PlanConfig(recipe="budget_b16", gpus="1xH100", mfu=0.5, classes=1000))
    small, full = (train_flops("vit_base_patch16_224", size, 1000) for size in (160, 224))
    assert 989e12 * 0.5 / found["images_per_s"] == pytest.approx(0.9 * small / 2 + 0.1 * full)
    # The largest step decides about memory: 4,096 pictures of 196 tokens, 12 layers, 768 channels, 34 bytes each.
    assert found["memory_gb"] == pytest.approx(4096 * 196 * 12 * 768 * 34 / 1e9, rel=0.01)


def test_bench_data_measures_every_part(coloured_shards) -> None:
    rates = bench_data(
        config=BenchConfig(data=coloured_shards(40), image_size=32, batch_size=8, workers=1, seconds=0.1)
    )
    assert all(rate > 0 for rate in rates.rates.values())
    assert "pictures/s" in str(rates)


def test_the_report_of_a_run_is_one_safe_file(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    run.mkdir()
    config = {"backbone": "<script>alert(1)</script>", "image_size": 32, "data": "d", "batch_size": 8}
    (run / "config.json").write_text(json.dumps({"config": config, "facts": {"budget": 100}, "versions": {}}))
    entries = [
        {"samples": s, "loss": 5.0 - s / 50, "lr": 1e-3, "grad_norm": 1.0, "images_per_s": 300, "data_wait": 0.05}
        for s in (20, 40, 60, 40, 60, 10**6)  # after a kill, 40 and 60 came again
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, [*entries, {"samples": 60, "mAP": 12.5}])))
    label = {"name": "<i>dog", "synset": "n02084071", "count": 12, "positives": 4, "ap": 0.5}
    card = {
        "key": "k",
        "captions": ["<img src=x onerror=alert(1)>"],
        "labels": ["dog"],
        "predicted": ["dog"],
        "jpeg": "",
    }
    held = {"pictures": 20, "map": 0.5, "top1": 0.25, "labels": [label], "sheet": [card]}
    (run / "held_out.json").write_text(json.dumps(held))
    html = write_report(run).read_text()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;i&gt;dog" in html
    assert html.count("<svg") >= 5
    loss = re.search(r'<g id="series-0">\s*<path d="([^"]+)"', html)
    assert loss is not None
    assert len(re.findall("[ML]", loss[1])) == 4  # 20, 40, 60, 100: each once
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize("verb", ["finetune", "detect", "segment", "align", "pretrain"])
def test_every_verb_that_trains_has_a_report(verb: str, tmp_path: Path) -> None:
    out = {"run": "runs/start", "out": "o"}
    boxes = {"images": "photos", "boxes": "boxes.json", "test_images": "p", "test_boxes": "t.json"}
    cfg, facts, made_of = {
        "finetune": (FinetuneConfig(**out, train="a.tar", test="b.tar"), {"backbone": "test_vit"}, "a.tar"),
        "detect": (DetectConfig(**out, **boxes), {}, "boxes.json"),
        "segment": (SegmentConfig(**out, train="a.tar", test="b.tar"), {}, "b.tar"),
        "align": (AlignConfig(**out, data="pairs.tar"), {}, "pairs.tar"),
        "pretrain": (
            PretrainConfig(data="pairs.tar", vocab="v.tsv", out="o", backbone="vit_small_patch16_224"),
            {},
            "vit_small_patch16_224 at 224 px",
        ),
    }[verb]
    write_card(tmp_path, cfg, facts if verb == "align" else {**facts, "budget": 480})
    entries = [{"samples": 24, "loss": 2.0, "scale": 14.0}, {"samples": 48, "loss": 1.0, "scale": 14.5}]
    entries += [{"samples": 24, "top1": 50.0}, {"samples": 48, "top1": 75.0, "mean_per_class": 70.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    html = write_report(tmp_path).read_text()
    for part in ("runs/start" if verb != "pretrain" else "v.tsv", made_of, "48", "top1", "mean_per_class", "scale"):
        assert part in html
    assert ("of 480" in html) == (verb != "align")
    assert ("`held_out` DATA" in html) == (verb == "pretrain")
    assert html.count("<svg") == 3  # the loss, what was watched, the scale; no speed was recorded
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path)
