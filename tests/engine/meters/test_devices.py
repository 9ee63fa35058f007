"""Each name that a maker's driver prints finds its own line of the table, or none."""

from __future__ import annotations

import pytest
import torch

from quadriga.engine.meters.devices import DEVICES, peak_flops

TERA = 1e12

# (name as PyTorch prints it, float32, TF32, bfloat16, float16)
NAMES = [
    ("Tesla V100-SXM2-32GB", 15.7, 15.7, None, 125.0),
    ("Tesla V100-PCIE-16GB", 14.0, 14.0, None, 112.0),
    ("Tesla V100S-PCIE-32GB", 16.4, 16.4, None, 130.0),
    ("Tesla T4", 8.1, 8.1, None, 65.0),
    ("NVIDIA A10", 31.2, 62.5, 125.0, 125.0),
    ("NVIDIA A10G", 31.5, 35.0, 70.0, 70.0),
    ("NVIDIA A30", 10.3, 82.0, 165.0, 165.0),
    ("NVIDIA A40", 37.4, 74.8, 149.7, 149.7),
    ("NVIDIA A100-SXM4-80GB", 19.5, 156.0, 312.0, 312.0),
    ("NVIDIA A100 80GB PCIe", 19.5, 156.0, 312.0, 312.0),
    ("NVIDIA L4", 30.3, 60.0, 121.0, 121.0),
    ("NVIDIA L40", 90.5, 90.5, 181.05, 181.05),
    ("NVIDIA L40S", 91.6, 183.0, 362.05, 362.05),
    ("NVIDIA GeForce RTX 3090", 35.6, 35.6, 71.0, 71.0),
    ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2, 165.2),
    ("NVIDIA GeForce RTX 5090", 104.8, 104.8, 209.5, 209.5),
    ("NVIDIA RTX 6000 Ada Generation", 91.1, 182.1, 364.25, 364.25),
    ("NVIDIA H100 PCIe", 51.0, 378.0, 756.5, 756.5),
    ("NVIDIA H100 NVL", 60.0, 417.5, 835.5, 835.5),
    ("NVIDIA H100 80GB HBM3", 67.0, 494.7, 989.4, 989.4),
    ("NVIDIA GH200 480GB", 67.0, 494.7, 989.4, 989.4),
    ("NVIDIA H200", 67.0, 494.7, 989.4, 989.4),
    ("NVIDIA H200 NVL", 60.0, 417.5, 835.5, 835.5),
    ("NVIDIA H20", 44.0, 74.0, 148.0, 148.0),
    ("NVIDIA B100", 60.0, 875.0, 1750.0, 1750.0),
    ("NVIDIA B200", 75.0, 1125.0, 2250.0, 2250.0),
    ("NVIDIA GB200", 80.0, 1250.0, 2500.0, 2500.0),
    ("AMD Instinct MI250X", 47.85, 47.85, 191.5, 191.5),
    ("AMD Instinct MI300X", 163.4, 653.7, 1307.4, 1307.4),
    ("AMD Instinct MI325X", 163.4, 653.7, 1307.4, 1307.4),
]


@pytest.mark.parametrize(("name", "float32", "tf32", "bfloat16", "float16"), NAMES)
def test_a_name_finds_its_own_rates(
    name: str, float32: float, tf32: float, bfloat16: float | None, float16: float
) -> None:
    assert peak_flops(name, torch.float32) == float32 * TERA
    assert peak_flops(name, torch.float32, tf32=True) == tf32 * TERA
    assert peak_flops(name, torch.bfloat16) == (None if bfloat16 is None else bfloat16 * TERA)
    assert peak_flops(name, torch.float16, tf32=True) == float16 * TERA


@pytest.mark.parametrize(
    "name",
    [
        "AMD EPYC 7763 64-Core Processor",
        "Intel(R) Xeon(R) Platinum 8480C",
        "NVIDIA H100",  # which one is not said
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA RTX 6000",
        "NVIDIA RTX A6000",
        "AMD Instinct MI250",
    ],
)
def test_what_is_not_in_the_table_is_not_guessed(name: str) -> None:
    assert peak_flops(name, torch.bfloat16, tf32=True) is None


def test_no_name_fits_two_lines_and_every_line_is_found() -> None:
    rates = [line[1:] for line in NAMES]
    for device in DEVICES:
        again = (device.float32, device.tf32 or device.float32, device.bfloat16, device.float16)
        assert again in rates
