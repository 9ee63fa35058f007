"""A profile of round numbers."""

from __future__ import annotations

from typing import Any

from quadriga.pipeline.planner.profile import (
    Facts,
    Link,
    Measurement,
    Network,
    Profile,
    UnitCost,
    UnitSize,
)

LINKS = Network(within=Link(bandwidth=1e9, latency=0.0), between=Link(bandwidth=1e9, latency=0.0))


def made_profile(blocks: int = 4, sizes: tuple[int, ...] = (1, 2, 4), **changes: Any) -> Profile:
    """Return a profile whose block takes 1 s forward and 2 s backward per sample."""

    def unit(samples: int, seconds: float, kept: int) -> UnitCost:
        return UnitCost(
            forward=seconds * samples, backward=2 * seconds * samples, kept=kept * samples
        )

    measurements = []
    for size in sizes:
        for recompute in ("none", "full"):
            again = 1.0 if recompute == "full" else 0.0
            block = UnitCost(
                forward=1.0 * size,
                backward=(2.0 + again) * size,
                kept=(100 if recompute == "full" else 1000) * size,
            )
            measurements.append(
                Measurement(
                    micro_batch=size,
                    recompute=recompute,
                    boundary_bytes=100 * size,
                    batch_bytes=10 * size,
                    input=unit(size, 0.5, 100),
                    block=block,
                    head=unit(size, 1.5, 700),
                )
            )
    profile = Profile(
        facts=Facts(
            recipe="words",
            method="computed",
            device="round",
            precision="float32",
            torch="2",
            threads=1,
            batches="an example",
        ),
        blocks=blocks,
        input=UnitSize(parameter_bytes=4000, trainable_bytes=4000, state_bytes=8000),
        block=UnitSize(parameter_bytes=1000, trainable_bytes=1000, state_bytes=2000),
        head=UnitSize(parameter_bytes=4400, trainable_bytes=4400, state_bytes=8800),
        shared_bytes=4000,
        measurements=tuple(measurements),
        update_seconds=0.0,
        network=LINKS,
    )
    return profile.model_copy(update=changes)
