"""Peak FLOP/s of devices, from the vendors' data sheets."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

TERA = 1e12


@final
@dataclass(frozen=True)
class Device:
    """Dense peak rates (without sparsity) of one device as PyTorch sees it, in TFLOP/s.

    Rates of reduced dtypes are those with float32 accumulation, which PyTorch uses.
    """

    words: frozenset[str]
    """Words that the device's name contains, all of them."""
    float32: float
    tf32: float | None
    """None for devices without TF32."""
    bfloat16: float | None
    """None for devices without bfloat16."""
    float16: float
    without: frozenset[str] = frozenset()
    """Words that the device's name must not contain."""


def _device(
    words: str,
    float32: float,
    tf32: float | None,
    bfloat16: float | None,
    float16: float,
    without: str = "",
) -> Device:
    required, excluded = frozenset(words.split()), frozenset(without.split())
    return Device(required, float32, tf32, bfloat16, float16, excluded | _SLOWER)


_SLOWER = frozenset({"LAPTOP", "MOBILE", "MIG", "MAX", "D", "TI", "GRID"})
"""Words of slower variants of a device of the same name, and of partial devices."""

DEVICES = (
    _device("V100 SXM2", 15.7, None, None, 125.0),
    _device("V100 SXM3", 15.7, None, None, 125.0),
    _device("V100 DGXS", 15.7, None, None, 125.0),
    _device("V100 PCIE", 14.0, None, None, 112.0),
    _device("V100S PCIE", 16.4, None, None, 130.0),
    _device("T4", 8.1, None, None, 65.0),
    _device("A10", 31.2, 62.5, 125.0, 125.0),
    _device("A10G", 31.5, 35.0, 70.0, 70.0),
    _device("A30", 10.3, 82.0, 165.0, 165.0),
    _device("A40", 37.4, 74.8, 149.7, 149.7),
    _device("A100", 19.5, 156.0, 312.0, 312.0),
    _device("L4", 30.3, 60.0, 121.0, 121.0),
    _device("L40", 90.5, 90.5, 181.05, 181.05),
    _device("L40S", 91.6, 183.0, 362.05, 362.05),
    _device("RTX 3090", 35.6, 35.6, 71.0, 71.0),
    _device("RTX 4090", 82.6, 82.6, 165.2, 165.2),
    _device("RTX 5090", 104.8, 104.8, 209.5, 209.5),
    _device("RTX 6000 ADA", 91.1, 182.1, 364.25, 364.25),
    _device("H100 PCIE", 51.0, 378.0, 756.5, 756.5),
    _device("H100 NVL", 60.0, 417.5, 835.5, 835.5),
    # The name of an SXM module contains its memory, not its form: "NVIDIA H100 80GB HBM3".
    _device("H100 HBM3", 67.0, 494.7, 989.4, 989.4, "PCIE NVL"),
    _device("H100 SXM5", 67.0, 494.7, 989.4, 989.4),
    _device("GH200", 67.0, 494.7, 989.4, 989.4),
    _device("H200 NVL", 60.0, 417.5, 835.5, 835.5),
    _device("H200", 67.0, 494.7, 989.4, 989.4, "NVL"),
    _device("H20", 44.0, 74.0, 148.0, 148.0),
    _device("B100", 60.0, 875.0, 1750.0, 1750.0),
    _device("B200", 75.0, 1125.0, 2250.0, 2250.0),
    _device("GB200", 80.0, 1250.0, 2500.0, 2500.0),
    # A module has two dies, each a separate device with half of the data sheet's rates.
    _device("MI250X", 47.85, None, 191.5, 191.5),
    _device("MI300X", 163.4, 653.7, 1307.4, 1307.4),
    _device("MI325X", 163.4, 653.7, 1307.4, 1307.4),
)
"""Known devices; at most one matches a name."""


def peak_flops(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """Return the dense peak of a device in FLOP/s; None if the device or its rate is unknown.

    Args:
        name: PyTorch's name of the device, for example ``NVIDIA H100 80GB HBM3``.
        dtype: Dtype of the matrix products: float32, bfloat16 or float16.
        tf32: Whether float32 products run as TF32 if the device supports it.
    """
    words = frozenset(re.findall(r"[A-Z0-9]+", name.upper()))
    for device in DEVICES:
        if device.words <= words and not device.without & words:
            float32 = device.tf32 if tf32 and device.tf32 is not None else device.float32
            rates = {
                torch.float32: float32,
                torch.bfloat16: device.bfloat16,
                torch.float16: device.float16,
            }
            rate = rates.get(dtype)
            return None if rate is None else rate * TERA
    return None


def uses_tf32() -> bool:
    """Return whether matrix products of float32 on CUDA run as TF32 in this process."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def device_name(device: torch.device) -> str:
    """Return the vendor's name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
