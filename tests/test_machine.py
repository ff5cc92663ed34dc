"""What the machine lets us use, and what follows from it: cores, memory, precision."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from catlip import machine

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A file system with these files, on a machine of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),  # of a group around it
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
          "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n"}, 4),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_cores_are_what_the_cgroup_allows(root: Callable[..., Path], files: dict[str, str], expected: int) -> None:
    assert machine.cores(root(**files)) == expected


def test_free_memory_is_the_machines_or_what_the_cgroup_leaves(root: Callable[..., Path]) -> None:
    files = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n", "proc/self/cgroup": "0::/\n"}
    assert machine.memory(root(**files)) == 8_000_000 * 1024
    limit = {"sys/fs/cgroup/memory.max": "1000000000\n", "sys/fs/cgroup/memory.current": "400000000\n"}
    assert machine.memory(root(**limit)) == 600_000_000


def test_a_processor_is_told_by_the_features_that_decide(
    root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    files = {"proc/cpuinfo": CPUINFO}
    assert machine.describe(root(**files)) == "Some CPU (avx2 avx512f avx512_bf16)"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # another machine, for our purposes
    assert machine.describe(root(**files)) == "Some CPU (avx2 avx512f avx512_bf16 limited to AVX2)"
    assert not machine.has_bf16(root())
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert machine.has_bf16(root())


def test_a_process_share_is_what_srun_counts_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 12)
    for name in ("RANK", "SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    assert (machine.share(1), machine.share(4), machine.share(100)) == (12, 3, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")  # and srun has bound the task to them
    assert machine.share(4) == 12


@pytest.mark.parametrize(("bf16", "spins"), [(True, None), (False, "2000")])
def test_openmp_is_told_before_torch_is_loaded(bf16: bool, spins: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "_allowed", lambda: 64)
    monkeypatch.setattr(machine, "has_bf16", lambda: bf16)
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(machine.sys, "modules", {"torch": object()})
    machine.prepare()
    assert not any(name in os.environ for name in names)
    monkeypatch.setattr(machine.sys, "modules", {})
    machine.prepare()
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("GOMP_SPINCOUNT")) == ("2", spins)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    machine.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "5"
