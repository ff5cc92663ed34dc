"""The machine decides in which type a run computes; fp16 scales its loss."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from catlip import machine
from catlip.objectives.linear import linear_bce
from catlip.tasks.pretrain import pretrain
from catlip.training import checkpoint, precision
from catlip.training.distributed import World
from catlip.training.optim import OptimConfig
from catlip.training.precision import Precision, choose, record
from catlip.training.state import LoopConfig, State
from catlip.training.task import Task
from tests.test_engine import ALONE, Toy, toy_batch
from tests.test_training import config


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A CPU on which bf16 takes so many times as long as fp32."""

    def ratio(value: float) -> None:
        precision.fastest.cache_clear()
        monkeypatch.setattr(precision, "measure", lambda device, dtype, layers: value)

    ratio(1.0)
    yield ratio  # type: ignore[misc]
    precision.fastest.cache_clear()


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (40.0, "fp32"), (float("inf"), "fp32")])
def test_a_cpu_computes_in_bf16_only_where_that_is_faster(
    ratio: float, expected: str, unmeasured: Callable[[float], None]
) -> None:
    unmeasured(ratio)
    assert choose("auto", ALONE).name == expected
    for name in ("bf16", "fp16", "fp32"):
        assert str(choose(name, ALONE)) == f"{name} (as asked for)"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (8, 0), "bf16"), (True, (9, 0), "bf16"), (False, (7, 0), "fp16"), (False, (7, 5), "fp16"),
     (False, (6, 1), "fp32")],
)  # fmt: skip
def test_a_gpu_computes_in_what_its_generation_has(
    bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    assert choose("auto", replace(ALONE, device=torch.device("cuda", 0))).name == expected


def test_all_processes_take_what_every_one_of_them_has(
    monkeypatch: pytest.MonkeyPatch, unmeasured: Callable[[float], None]
) -> None:
    unmeasured(0.5)
    monkeypatch.setattr(precision, "all_reduce_min", lambda value: min(value, 0))  # another one said fp32
    assert str(choose("auto", World(0, 2, 0, 2, torch.device("cpu")))).startswith("fp32 (for the sake of another")


def test_measuring_tells_which_is_faster_here_and_leaves_the_threads_alone() -> None:
    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    ratios = [precision._ratio(cpu, torch.bfloat16, 64, rounds=2) for _ in range(3)]
    assert all(0.01 < ratio < 2000 for ratio in ratios)
    assert torch.get_num_threads() == threads


def test_the_same_machine_goes_on_as_it_began(unmeasured: Callable[[float], None]) -> None:
    unmeasured(0.5)
    began = record(choose("auto", ALONE), ALONE.device)
    unmeasured(2.0)  # a busy moment must not change the weights
    assert choose("auto", ALONE, began).name == "bf16"
    assert choose("auto", ALONE, {**began, "machine": "another one"}).name == "fp32"
    assert choose("auto", ALONE).name == "fp32"


def test_a_run_on_another_machine_takes_its_precision_and_says_so(
    flow: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    unmeasured: Callable[[float], None],
) -> None:  # fmt: skip
    save = checkpoint.save

    def save_and_stop(folder: Path, state: dict[str, object]) -> None:
        save(folder, state)
        os.kill(os.getpid(), signal.SIGTERM)

    cfg = config(*flow, tmp_path / "run", samples=96, loop=LoopConfig(save_every=24))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_stop)
        pretrain(config=cfg)
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    assert card["machine"]["precision"] == "fp32"
    assert card["config"]["loop"]["precision"] == "auto"
    assert "fp32 (bf16 would take 1.0 times as long here)" in capsys.readouterr().out
    monkeypatch.setattr(machine, "describe", lambda: "a newer CPU")
    unmeasured(0.25)
    pretrain(config=cfg)
    said = capsys.readouterr().out
    assert "precision: fp32 there, bf16 here" in said
    assert "bf16 (4.0 times as fast as fp32 here)" in said
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    assert card["machine"]["precision"] == "bf16"
    assert any("a newer CPU" in changed for changed in card["history"][-1]["changed"])


def state(name: str, scale: float = 2.0**16) -> State:
    torch.manual_seed(0)
    made = State(Task(Toy()), ALONE, OptimConfig(), LoopConfig(ema=0.9), Precision(name, ""))
    made.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=name == "fp16")
    return made


def test_fp16_skips_steps_that_overflow_and_halves_its_scale() -> None:
    trained = state("fp16", 2.0**60)  # far too much: the gradients overflow
    before = [p.clone() for p in trained.task.parameters()]
    trained.update(toy_batch(8, 0), 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, trained.task.parameters(), strict=True))
    assert trained.scaler.get_scale() == 2.0**59
    assert int(trained.bad) == -1  # nothing is wrong with the run
    trained.scaler.update(new_scale=2.0**10)
    trained.update(toy_batch(8, 1), 1e-2)
    assert not all(torch.equal(a, b) for a, b in zip(before, trained.task.parameters(), strict=True))


def test_fp16_goes_on_with_the_scale_it_had(tmp_path: Path) -> None:
    trained, again = state("fp16", 2.0**7), state("fp16")
    trained.update(toy_batch(8, 0), 1e-2)
    trained.save(tmp_path)
    again.restore(checkpoint.load(tmp_path))
    assert again.scaler.get_scale() == 2.0**7
    state("fp32").restore(checkpoint.load(tmp_path))  # another machine's scale is no use here
    fresh = state("fp32")
    fresh.save(tmp_path)
    state("fp16").restore(checkpoint.load(tmp_path))


def test_the_classifiers_gradients_survive_fp16() -> None:
    """They are made before the loss is scaled: a thousandth of a tiny probability is nothing in fp16."""
    x, weight, bias = torch.randn(64, 16), torch.randn(3000, 16) * 0.01, torch.full((3000,), -9.0)
    labels, offsets = torch.arange(64), torch.arange(65)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.autocast("cpu", torch.float16, enabled=name == "fp16"):
            loss = linear_bce(inputs[0].to(dtype), *inputs[1:], labels, offsets)
        (loss * 1024).backward()
        found[name] = [t.grad / 1024 for t in inputs]
    for exact, low in zip(found["fp32"], found["fp16"], strict=True):
        torch.testing.assert_close(low, exact, rtol=2e-2, atol=1e-7)


def test_depthwise_convolutions_are_measured_where_the_model_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(precision, "measure", lambda device, dtype, layers: seen.append(layers) or 0.5)
    precision.fastest.cache_clear()
    choose("auto", ALONE, model=nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4)))
    choose("auto", ALONE, model=nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))
    precision.fastest.cache_clear()
    assert seen == [("linear", "convolution"), ("linear", "convolution", "depthwise")]
