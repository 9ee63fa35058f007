"""Devices that a plan can be made for without having them, as values."""

from __future__ import annotations

from pathlib import Path
from typing import final

from pydantic import Field

from quadriga.config.base import Config
from quadriga.errors import UserError, did_you_mean
from quadriga.pipeline.planner.profile import Link, Network, read_object

GIGA, TERA, GIB = 1e9, 1e12, 2**30


@final
class DeviceSpec(Config):
    """What a device and its neighbourhood can do, from data sheets."""

    name: str
    float32: float = Field(gt=0)
    """Dense FLOP/s of float32 matrix products."""
    float16: float | None = Field(None, gt=0)
    """Dense FLOP/s of float16 products, summed in float32; none where it has none."""
    bfloat16: float | None = Field(None, gt=0)
    """Dense FLOP/s of bfloat16 products; none where it has none."""
    memory_bandwidth: float = Field(gt=0)
    """Bytes per second."""
    memory: int = Field(gt=0)
    """Bytes."""
    within: float = Field(gt=0)
    """Bytes per second between two devices of a node, in one direction."""
    between: float = Field(gt=0)
    """Bytes per second from one node to another, of all its devices together."""
    devices_per_node: int = Field(8, ge=1)
    latency: float = Field(2e-5, ge=0)
    """Seconds that a message takes beside its bytes."""
    kernel_seconds: float = Field(5e-6, ge=0)
    """The least that an operation takes."""
    product_efficiency: float = Field(0.5, gt=0, le=1)
    """Share of the peak that matrix products reach."""
    memory_efficiency: float = Field(0.8, gt=0, le=1)
    """Share of the memory's bandwidth that other operations reach."""

    def peak(self, precision: str) -> float:
        """Return the FLOP/s of a type.

        Raises:
            UserError: The device does not compute in it.
        """
        found: float | None = {
            "float32": self.float32,
            "float16": self.float16,
            "bfloat16": self.bfloat16,
        }[precision]
        if found is None:
            known = [t for t in ("float32", "float16", "bfloat16") if getattr(self, t)]
            raise UserError(
                f"train.precision must be one that {self.name} computes ({', '.join(known)}), but "
                f"is {precision}; set train.precision={known[0]}"
            )
        return found

    def network(self) -> Network:
        """Return how ranks are joined, one on each device."""
        return Network(
            within=Link(bandwidth=self.within, latency=self.latency),
            between=Link(bandwidth=self.between, latency=self.latency),
            ranks_per_node=self.devices_per_node,
        )


SPECS = {
    spec.name: spec
    for spec in (
        # Amazon's p3.16xlarge: 8 devices, NVLink, 25 Gbit/s per server.
        DeviceSpec(
            name="v100-16gb",
            float32=15.7 * TERA,
            float16=125 * TERA,
            memory_bandwidth=900 * GIGA,
            memory=16 * GIB,
            within=50 * GIGA,
            between=3.1 * GIGA,
        ),
        # DGX A100: NVLink 600 GB/s in both directions, eight network cards of 200 Gbit/s.
        DeviceSpec(
            name="a100-80gb",
            float32=19.5 * TERA,
            float16=312 * TERA,
            bfloat16=312 * TERA,
            memory_bandwidth=2039 * GIGA,
            memory=80 * GIB,
            within=300 * GIGA,
            between=200 * GIGA,
        ),
        # DGX H100: NVLink 900 GB/s in both directions, eight network cards of 400 Gbit/s.
        DeviceSpec(
            name="h100",
            float32=67 * TERA,
            float16=989 * TERA,
            bfloat16=989 * TERA,
            memory_bandwidth=3350 * GIGA,
            memory=80 * GIB,
            within=450 * GIGA,
            between=400 * GIGA,
        ),
    )
}
"""Name -> device; the figures are the makers'."""


def find_spec(text: str) -> DeviceSpec:
    """Return a device by its name, or from a JSON file with the fields of `DeviceSpec`.

    Raises:
        UserError: There is none of that name, or the file does not describe one.
    """
    if text in SPECS:
        return SPECS[text]
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return DeviceSpec.from_dict(read_object(path))
    raise UserError(
        f"--device-spec must be a JSON file or a known device, but is {text}"
        f"{did_you_mean(text, SPECS)}"
    )
