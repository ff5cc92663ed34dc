"""`catlip doctor`: what it finds, with torch and without; that its own checks cannot take the machine for another."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import catlip
from catlip import cli
from catlip.errors import UsageError
from catlip.recipes import doctor as room
from catlip.recipes.doctor import Diagnosis, doctor
from tests.test_install import without_torch


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return doctor(folder=str(tmp_path_factory.mktemp("runs")), seconds=0.05, device="cpu", processes=2)


def test_what_is_found(found: Diagnosis) -> None:
    assert found.versions["catlip"] == catlip.__version__
    assert found.versions["torch"]
    assert found.precision.keys() == {"most models", "with depthwise convolutions"}
    assert all(rate > 0 for rate in found.speed.values())
    assert len(found.speed) == 3
    assert found.all_reduce["gloo_processes"] == 2
    assert found.all_reduce["gloo_gb_per_s"] > 0
    assert found.space["runs_free_gb"] > 0
    assert found.space["runs_written_mb_per_s"] > 0
    assert not list(Path(found.space["runs_folder"]).iterdir())
    assert any(why.startswith("no GPU") for why in found.slow)
    text = str(found)
    assert "what would be slow, and why" in text
    assert "gloo gb per s" in text


def test_json_is_all_that_stdout_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.run(["doctor", "--folder", str(tmp_path), "--seconds", "0.01", "--processes", "0", "--device", "cpu", "--json"])
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["all_reduce"] == {}
    assert told["machine"]["cores"] >= 1
    assert "measuring: decoding" in said.err


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    code = """
from importlib import metadata
version = metadata.version
def absent(name):
    if name in ("torch", "timm"):
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = absent
from catlip import cli
cli.run(["doctor", "--seconds", "0.01"])
"""
    said = without_torch(code, tmp_path)
    assert "torch is not installed: labels and data only; `pip install catlip` brings the rest" in said
    assert "labelled captions per s and core" in said


def test_what_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.machine, "cores", lambda: 2)
    monkeypatch.setattr(room.machine, "memory", lambda: 2 << 30)
    monkeypatch.setattr(room.os, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = Diagnosis(versions={"torch": "2.15"}, precision=dict.fromkeys(("most models",), "bf16"))
    room._look_at_machine(found)
    found.machine["gpus"] = ["H100"]
    room._conclude(found, "cuda", 1000.0)
    monkeypatch.setattr(room.sys, "dont_write_bytecode", True)
    monkeypatch.setattr(room, "find_spec", lambda name: SimpleNamespace(cached=f"/nowhere/{name}.pyc"))
    monkeypatch.setattr(room, "_version", lambda name: "1.0")
    room._look_at_versions(found)
    said = "\n".join(found.slow)
    assert "2 of 64 cores are for this process" in said
    assert "OMP_NUM_THREADS is 64, where this process has 2 cores" in said
    assert "2.1 GB of memory are free" in said
    assert "every start compiles torch's Python anew" in said
    assert "at most 1,000 images/s to 1 GPUs" in said
    assert "2 cores for 1 GPUs: 4 or more" in said


def test_processes_that_fail_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Diagnosis()
    monkeypatch.setattr(room.sys, "executable", "/bin/false")
    room._measure_all_reduce(found, 2)
    assert found.slow[0].startswith("2 processes did not add up over gloo")
    assert found.all_reduce == {}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`folder`: no such folder"):
        doctor(folder=str(tmp_path / "nope"))
