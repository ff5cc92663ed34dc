"""In which type matrix products and convolutions are computed: what the machine at hand is fast at.

Weights, losses and the optimiser are float32 whatever the choice. bf16 is twice as fast as fp32 where the processor
has it and up to four hundred times slower where it is emulated (pytorch/pytorch#146508), so nobody can know it
beforehand.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip import machine
from catlip.training.distributed import World, all_reduce_min

Setting = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # in the order of preference
WORTH = 0.9  # time in bf16 as a share of fp32's, below which it is taken: noise must not decide
HOPELESS = 3.0  # the same share on a small example, above which the large one is not waited for


@dataclass(frozen=True, slots=True)
class Precision:
    """The type, and why it was chosen, for people."""

    name: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def scaled(self) -> bool:
        """Whether gradients are too small for the type unless the loss is scaled."""
        return self.name == "fp16"

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def choose(
    setting: Setting, world: World, before: dict[str, str] | None = None, model: nn.Module | None = None
) -> Precision:
    """The precision of a run, alike on all processes.

    model: what is trained; a CPU may be slow at some layers in a type that it is fast at in others. before: `record` of
    the run that goes on, if one does: on the same machine it stays, as weights would differ.
    """
    if setting != "auto":
        return Precision(setting, "as asked for")
    if before and before.get("machine") == where(world.device):
        mine = Precision(before["precision"], before["why"])
    else:
        mine = fastest(world.device, model is not None and any(map(is_depthwise, model.modules())))
    names = list(DTYPES)
    common = names[all_reduce_min(names.index(mine.name))]
    return mine if common == mine.name else Precision(common, "for the sake of another process' machine")


def record(precision: Precision, device: torch.device) -> dict[str, str]:
    """For config.json: where a run is, and how it computes there."""
    return {"machine": where(device), "precision": precision.name, "why": precision.why}


def where(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return machine.describe() if device.type == "cpu" else device.type


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of each channel by itself, larger than 1 x 1."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.kernel_size != (1, 1)


@functools.cache
def fastest(device: torch.device, depthwise: bool = False) -> Precision:
    """What is fast on this device, for a model with depthwise convolutions or one without. NVIDIA's types go by
    generation; everything else is measured, once a process."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU has it")
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 7:
            return Precision("fp16", f"this GPU, of compute capability {major}.{minor}, has no bf16")
        return Precision("fp32", f"this GPU, of compute capability {major}.{minor}, is not faster in 16 bits")
    ratio = measure(device, torch.bfloat16, ("linear", "convolution", *(["depthwise"] if depthwise else [])))
    if ratio < WORTH:
        return Precision("bf16", f"{1 / ratio:.1f} times as fast as fp32 here")
    return Precision("fp32", f"bf16 would take {ratio:.1f} times as long here")


def measure(device: torch.device, dtype: torch.dtype, layers: Sequence[str] = ("linear", "convolution")) -> float:
    """Time of a step's work in this type as a share of the time in fp32: a layer of each kind, forward and backward, of
    the size that it has in training.

    On a CPU what counts is the time of one thread, which work beside it on the same cores does not lengthen.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small = _ratio(device, dtype, 32, rounds=1)
        return small if small > HOPELESS else _ratio(device, dtype, 512, rounds=3, layers=layers)
    except RuntimeError:  # a device that does not know the type
        return float("inf")
    finally:
        torch.set_num_threads(threads)


def _ratio(
    device: torch.device, dtype: torch.dtype, rows: int, rounds: int, layers: Sequence[str] = ("linear", "convolution")
) -> float:
    """Mean of the layers' ratios; of each, the best of some rounds counts, after one that is not timed."""
    seconds: dict[tuple[str, bool], float] = {}
    for number in range(rounds + 1):
        for layer in layers:
            for low in (False, True):
                took = _step(layer, rows, device, dtype, low)
                if number:
                    seconds[layer, low] = min(took, seconds.get((layer, low), took))
    return sum(seconds[layer, True] / seconds[layer, False] for layer in layers) / len(layers)


def _step(layer: str, rows: int, device: torch.device, dtype: torch.dtype, low: bool) -> float:
    """Seconds of one layer, forward and backward."""
    if layer == "linear":
        x, weight = torch.randn(rows, 384, device=device), torch.randn(384, 384, device=device)
        apply: Callable[..., Tensor] = F.linear
    else:
        channels, groups, kernel = (64, 1, 3) if layer == "convolution" else (240, 240, 5)
        x = torch.randn(-(-rows // 64), channels, 16, 16, device=device)
        weight = torch.randn(channels, channels // groups, kernel, kernel, device=device)
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
        apply = functools.partial(F.conv2d, padding=kernel // 2, groups=groups)
    x.requires_grad_()
    weight.requires_grad_()
    began = _clock(device)
    with torch.autocast(device.type, dtype, enabled=low):
        y = apply(x, weight)
    y.backward(torch.ones_like(y))
    return _clock(device) - began


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.thread_time()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
