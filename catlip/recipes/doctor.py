"""`catlip doctor`: what is installed, what this machine is fast at, and what would be slow here, and why. Works without
torch, which is imported only where something of it is measured."""

import io
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from catlip import machine
from catlip.config import configure
from catlip.data.cache import cache_folder
from catlip.data.images import decode_upright
from catlip.errors import TORCH_SIDE, UsageError, torch_needed
from catlip.labels.labeler import Labeler
from catlip.notices import say

PACKAGES = "torch torchvision timm numpy pyarrow pillow simplejpeg safetensors onnx onnxruntime daft".split()
PICTURE = (500, 375)  # pixels: a photograph of Flickr, ImageNet or COCO
CROP = 224  # pixels
CAPTIONS = [
    "a man riding a bike past a fire hydrant",
    "two dogs play with a ball on the lawn in front of a house",
] * 256
MIB = 16  # of what processes add up, and of what is written to the disk
ROUNDS = 5
LITTLE = 10  # GB of free space: a ViT-B/16 keeps checkpoints of 1 GB, an archive of captions or tars is larger
A_GPU_NEEDS = 4  # cores
PATIENCE = 120  # seconds for processes that import torch and add up


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """Look at this installation and this machine: half a minute, a few seconds of it without torch."""

    folder: str = "."  # where runs will be written
    device: str = "auto"  # whose precision is measured
    processes: int = 2  # that add up their numbers over gloo; 0: do not try
    seconds: float = 1.0  # for each speed


@dataclass(slots=True)
class Diagnosis:
    """What was found; numbers with their unit in the name. Prints itself."""

    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    all_reduce: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    slow: list[str] = field(default_factory=list)  # what would be slow or fail, and why

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        for title, found in self.to_json().items():
            if isinstance(found, dict) and found:
                width = max(map(len, found))
                lines += [
                    title.replace("_", " "),
                    *(f"  {n.replace('_', ' '):<{width}}  {_told(v)}" for n, v in found.items()),
                ]
        return "\n".join(
            [*lines, "what would be slow, and why", *(f"  - {why}" for why in self.slow or ["nothing found"])]
        )


def doctor(*, config: DoctorConfig | None = None, **settings: Any) -> Diagnosis:
    """Look and measure. Raises UsageError for a folder or a device that is not there."""
    cfg = configure(DoctorConfig, config, **settings)
    if not Path(cfg.folder).is_dir():
        raise UsageError(f"`folder`: no such folder: {cfg.folder}")
    found = Diagnosis()
    _look_at_versions(found)
    _look_at_machine(found)
    say("measuring: decoding, labels, free space")
    _measure_data(found, cfg)
    if not found.versions["torch"]:
        found.slow.append("torch is not installed: labels and data only; `pip install catlip` brings the rest")
        return found
    with torch_needed("catlip doctor"):
        say("measuring: precision, crops, processes that add up")
        _measure_training(found, cfg)
        if cfg.processes > 1:
            _measure_all_reduce(found, cfg.processes)
    return found


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) or "not installed"


def _version(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _look_at_versions(found: Diagnosis) -> None:
    found.versions = {"catlip": import_module("catlip").__version__, "python": platform.python_version()}
    found.versions |= {name: _version(name) for name in PACKAGES}
    if _version("catlip") and _version("catlip-labels"):
        found.slow.append(
            "catlip and catlip-labels are both installed and share their files: uninstall both, then install one"
        )
    for name in sorted(TORCH_SIDE & set(PACKAGES)):
        if found.versions["torch"] and not found.versions[name]:
            found.slow.append(f"{name} is not installed: `pip install catlip` brings it")
    torch = find_spec("torch") if found.versions["torch"] else None
    if torch is not None and torch.cached and sys.dont_write_bytecode and not Path(torch.cached).exists():
        found.slow.append(
            "every start compiles torch's Python anew, some seconds: PYTHONDONTWRITEBYTECODE is set, and it was "
            "installed without bytecode; unset it, or install with `uv pip install --compile-bytecode`"
        )


def _look_at_machine(found: Diagnosis) -> None:
    cores, all_cores, free = machine.cores(), os.cpu_count() or 1, machine.memory() / 1e9
    found.machine = {
        "system": platform.platform(),
        "processor": machine.describe(),
        "cores": cores,
        "free_memory_gb": round(free, 1),
    }
    if cores < all_cores:
        found.slow.append(f"{cores} of {all_cores} cores are for this process, as its cgroup or its affinity says")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) != cores:
        found.slow.append(f"OMP_NUM_THREADS is {threads}, where this process has {cores} cores")
    if free < 4:
        found.slow.append(f"{free:.1f} GB of memory are free: too little for more than small batches")


def _measure_data(found: Diagnosis, cfg: DoctorConfig) -> None:
    """Decoding and labelling on one core, and the disks."""
    labeler, picture = Labeler(), _picture()
    found.speed["decoded_images_per_s_and_core"] = _rate(lambda: decode_upright(picture), cfg.seconds)
    found.speed["labelled_captions_per_s_and_core"] = len(CAPTIONS) * _rate(
        lambda: labeler.sparse(CAPTIONS), cfg.seconds
    )
    cache = cache_folder()
    for name, folder in (("runs", Path(cfg.folder)), ("cache", next(p for p in (cache, *cache.parents) if p.exists()))):
        free = shutil.disk_usage(folder).free / 1e9
        found.space |= {f"{name}_folder": str(folder.absolute()), f"{name}_free_gb": round(free, 1)}
        if free < LITTLE:
            found.slow.append(f"{free:.1f} GB are free in {folder.absolute()}: little for checkpoints and caches")
    found.space["runs_written_mb_per_s"] = written = _disk(Path(cfg.folder))
    if not written:
        found.slow.append(f"nothing can be written to {Path(cfg.folder).absolute()}")


def _measure_training(found: Diagnosis, cfg: DoctorConfig) -> None:
    import torch

    from catlip.data.crops import DRAWS, CropConfig, decode_crop, empty
    from catlip.training.distributed import pick_device
    from catlip.training.precision import fastest, where

    device = pick_device(cfg.device)
    found.machine["device"] = where(device)
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found.machine["gpus"] = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus]
    found.machine["torch_threads"] = torch.get_num_threads()
    for name, depthwise in (("most models", False), ("with depthwise convolutions", True)):
        found.precision[name] = str(fastest(device, depthwise))
    picture, out, numbers = _picture(), empty(CROP), cycle(np.random.default_rng(0).random((64, DRAWS)).tolist())
    crop = _rate(lambda: decode_crop(picture, CropConfig(), next(numbers), out), cfg.seconds)
    found.speed[f"crops_of_{CROP}_px_per_s_and_core"] = crop
    _conclude(found, device.type, crop)


def _conclude(found: Diagnosis, device: str, crops: float) -> None:
    """What follows for a run from what was measured."""
    cores, gpus = found.machine["cores"], len(found.machine.get("gpus", []))
    if device == "cpu":
        found.slow.append(
            "no GPU: recipes for CPUs (`flickr8k_cpu`), `head` and `adapt` are what a CPU can do in minutes"
        )
        if Path("/dev/nvidia0").exists():
            found.slow.append(
                f"there is an NVIDIA GPU, but torch {found.versions['torch']} cannot use it: it is a build "
                "for CPUs, or its CUDA is newer than the driver"
            )
        if found.precision["most models"].startswith("fp32"):
            found.slow.append("training computes in fp32: bf16 is not faster on this processor")
        elif found.precision["with depthwise convolutions"].startswith("fp32"):
            found.slow.append("EfficientNets and other models with depthwise convolutions train in fp32 here")
    if gpus:
        found.slow.append(
            f"loading brings at most {crops * max(cores - gpus, 1):,.0f} images/s to {gpus} GPUs: "
            f"`catlip bench data` measures it on your files"
        )
        if cores < A_GPU_NEEDS * gpus:
            found.slow.append(f"{cores} cores for {gpus} GPUs: {A_GPU_NEEDS} or more a GPU keep it fed")


def _measure_all_reduce(found: Diagnosis, processes: int) -> None:
    """Numbers of several processes added up, over gloo; among all GPUs, if there are several, over NCCL."""
    kinds = [("gloo", "cpu", processes)]
    if (gpus := len(found.machine.get("gpus", []))) > 1:
        kinds.append(("nccl", "cuda", gpus))
    for backend, device, count in kinds:
        said, trouble = _together(count, device)
        if trouble:
            found.slow.append(
                f"{count} processes did not add up over {backend}, as training on several would: {trouble}"
            )
        else:
            found.all_reduce[f"{backend}_processes"] = count
            found.all_reduce[f"{backend}_gb_per_s"] = round(float(said), 3)


def _together(count: int, device: str) -> tuple[str, str]:
    """(what the first of some processes printed, what went wrong) of `add_up` in each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    command = [sys.executable, "-c", f"from catlip.recipes.doctor import add_up; add_up({device!r})"]
    started = [
        subprocess.Popen(
            command,
            env={
                k: str(v) for k, v in {**os.environ, **shared, "RANK": i, "LOCAL_RANK": i, "PYTHONPATH": paths}.items()
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        ended = [process.communicate(timeout=PATIENCE) for process in started]
    except subprocess.TimeoutExpired:
        return "", f"they did not find each other or did not end within {PATIENCE} s"
    finally:
        for process in started:
            process.kill()
    wrong = [err.strip().splitlines() for process, (_, err) in zip(started, ended, strict=True) if process.returncode]
    return (ended[0][0].strip(), "") if not wrong else ("", wrong[0][-1] if wrong[0] else "they ended without a word")


def add_up(device: str) -> None:
    """One of the processes; the first prints GB/s, counted as the bytes that each process has added up."""
    import torch

    from catlip.training.distributed import all_reduce, joined

    with joined(device) as world:
        values = torch.ones(MIB << 18, device=world.device)
        all_reduce(values)
        if values[0].item() != world.size:
            raise UsageError(f"{world.size} ones make {values[0].item()}")
        began = time.perf_counter()
        for _ in range(ROUNDS):
            all_reduce(values)
        float(values[0])  # a GPU's work is done
        if world.rank == 0:
            print(ROUNDS * (MIB << 20) / 1e9 / (time.perf_counter() - began))


def _picture() -> bytes:
    """A JPEG that takes about as long as a photograph of its size: smooth areas with some grain."""
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        PICTURE, Image.Resampling.BICUBIC
    )
    grain = np.asarray(rough) + random.normal(0, 6, (*PICTURE[::-1], 3))
    buffer = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second of this thread's own time, which work beside it on the same core does not lengthen."""
    work()
    began, done = time.thread_time(), 0
    while (took := time.thread_time() - began) < seconds or not done:
        work()
        done += 1
    return done / took


def _disk(folder: Path) -> float:
    """MB/s that reach the disk; 0 where nothing may be written."""
    path, content = folder / f".catlip-doctor-{os.getpid()}", os.urandom(MIB << 20)
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        return round(len(content) / 1e6 / (time.perf_counter() - began), 1)
    except OSError:
        return 0.0
    finally:
        path.unlink(missing_ok=True)
