"""What this machine lets the process use. Needs no torch.

A container or a batch system hands out a share of a machine, and the machine's own size is then the wrong answer:
sixty-four threads on a quota of two cores are slower than two.
"""

import contextlib
import ctypes
import math
import os
import platform
import sys
from pathlib import Path

ROOT = Path("/")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve")  # of those in /proc/cpuinfo, what decides speed


def cores(root: Path = ROOT) -> int:
    """CPU cores for this process: what `taskset` or the batch system allows, and the cgroup's quota, rounded up."""
    quotas = [_allowed()]
    for folder in _cgroups(root):
        # Version 2 has both numbers in one file, version 1 has a file for each; no limit is "max" and -1.
        both = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(both) == 2 and all(word.isdigit() and int(word) for word in both):
            quotas.append(math.ceil(int(both[0]) / int(both[1])))
    return max(1, min(quotas))


def memory(root: Path = ROOT) -> int:
    """Bytes of memory that are free for this process: the machine's, or what is left of the cgroup's limit."""
    free = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for folder in _cgroups(root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _words(folder / limit), _words(folder / used)
            if most and now and most[0].isdigit():
                free.append(max(0, int(most[0]) - int(now[0])))
    return min(free, default=8 << 30)


def describe(root: Path = ROOT) -> str:
    """The processor in words, with those of its features that decide the speed of training."""
    found: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = (found.get("flags") or found.get("Features") or "").split()
    name = found.get("model name") or platform.processor() or platform.machine()
    # oneDNN can be told to use less than there is; the machine is then another one for every purpose here.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    parts = [*(flag for flag in FLAGS if flag in flags), *[f"limited to {limit}"] * bool(limit)]
    return f"{name} ({' '.join(parts)})" if parts else name


def share(processes: int) -> int:
    """Cores of one of this machine's processes of the same job. srun counts them for each where it was told to."""
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
        return min(cores(), int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, cores() // processes)


def prepare() -> None:
    """Settle what OpenMP reads once, when torch is loaded; what the user has set stays.

    No more threads than the cgroup's quota has cores, which OpenMP does not look at. And where runs compute in fp32,
    idle threads soon sleep: two runs on the same two cores made 115 images/s each while they spun, and 185 so. Not
    where they compute in bf16: oneDNN's own barriers spin in any case, and threads that were asleep wake up on one
    core, where one spins for the other (116 images/s fell below 25). One thread a run is best for both: 205 and 350.
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ and not has_bf16():
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if cores() < _allowed():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def has_bf16(root: Path = ROOT) -> bool:
    """Whether the processor multiplies in bf16, and oneDNN may make use of it."""
    processor = describe(root)
    return "bf16" in processor and "limited" not in processor


def keep_memory() -> None:
    """glibc keeps memory that was freed instead of giving it back to the system, up to 2 GB of it.

    A training step on a CPU frees and takes some hundred large blocks; each would be mapped anew, and each of its pages
    would fault: 60,000 faults a step of ResNet-10 at 64 px, a fifth of the time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc; TypeError: Windows
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 1 << 28)):
            mallopt(option, value)


def _cgroups(root: Path) -> list[Path]:
    """Folders of this process' control groups and of all groups around them, where limits may stand."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        mounts = ["", *controllers.split(",")] if controllers else [""]
        for mount in mounts:
            base = root / "sys/fs/cgroup" / mount
            own = base / path.lstrip("/")
            found += [folder for folder in (own, *own.parents) if folder == base or base in folder.parents]
    return found


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)[:1]).split()
