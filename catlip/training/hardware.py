"""What a machine can do, and what a picture costs: the two numbers behind MFU and `catlip plan`."""

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from catlip import machine

# (dense FLOP/s in 16 bits without sparsity, GB of memory) of a device, from the makers' data sheets, by a part of its
# name. The 16 bits are bf16; fp16 on V100 and T4, which have no bf16 (`precision.py` chooses accordingly).
DEVICES = {
    "B200": (2250e12, 180), "GH200": (989e12, 96), "H200": (989e12, 141), "H100 PCIE": (756e12, 80),
    "H100": (989e12, 80), "A100": (312e12, 80), "L40S": (362e12, 48), "L40": (181e12, 48), "L4": (121e12, 24),
    "A10G": (70e12, 24), "A10": (125e12, 24), "A6000": (155e12, 48), "V100": (125e12, 32), "T4": (65e12, 16),
    "3090": (71e12, 24), "4090": (165e12, 24), "5090": (209e12, 32),
}  # fmt: skip


def device_facts(name: str) -> tuple[float, float]:
    """(dense FLOP/s in 16 bits, GB of memory) of a device by its name; zeros for one that is not in the table."""
    upper = name.upper()
    return next((facts for part, facts in DEVICES.items() if part in upper), (0.0, 0.0))


def device_peak(device: torch.device) -> float:
    """FLOP/s of the device that this process uses; 0 where it is not known."""
    return device_facts(torch.cuda.get_device_name(device))[0] if device.type == "cuda" else 0.0


def train_flops(backbone: str, size: int, classes: int, keep: float = 1.0) -> float:
    """FLOPs of one picture, forward and backward (three times forward): matrix products and convolutions, counted.

    keep: share of a ViT's patches. Nothing is computed: the model lives on the meta device.
    """
    with torch.device("meta"):
        try:
            model = timm.create_model(backbone, num_classes=classes, img_size=size)
        except TypeError:
            model = timm.create_model(backbone, num_classes=classes)
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, 3, size, size))
    # Patches that are dropped cost nothing but their embedding, a percent or two.
    return 3.0 * counter.get_total_flops() * keep


def default_workers(local_size: int, device: torch.device) -> int:
    """Loader processes of one training process: a GPU machine's cores are shared out; on a CPU the model needs them."""
    return max(1, min(16, machine.share(local_size) - 1)) if device.type == "cuda" else 1
