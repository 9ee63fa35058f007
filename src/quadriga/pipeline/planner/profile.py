"""What a run's parts cost, as values: the input part, one block, the heads; saved as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self, final

from pydantic import Field, model_validator

from quadriga.config.base import Config
from quadriga.errors import UserError
from quadriga.files import write_text

Recompute = Literal["none", "full"]

PARTS = ("input", "block", "head")
"""What a model is cut into: what embeds the input, a block, and what computes the loss."""


@final
class UnitSize(Config):
    """What a part holds, whatever the micro-batch."""

    parameter_bytes: int = Field(ge=0)
    """Parameters and buffers."""
    trainable_bytes: int = Field(ge=0)
    """Trainable parameters: those of their gradients, too."""
    state_bytes: int = Field(ge=0)
    """What the optimizer keeps for them."""


@final
class UnitCost(Config):
    """What a part does with one micro-batch."""

    forward: float = Field(ge=0)
    """Seconds of the forward pass."""
    backward: float = Field(ge=0)
    """Seconds of the backward pass, with what it computes anew."""
    kept: int = Field(ge=0)
    """Bytes that the forward pass keeps for the backward pass, its output among them; parameters,
    batch and input apart."""


@final
class Measurement(Config):
    """The costs of all parts for one size of micro-batch."""

    micro_batch: int = Field(ge=1)
    """Samples."""
    recompute: Recompute
    boundary_bytes: int = Field(ge=0)
    """What goes from stage to stage for one micro-batch."""
    batch_bytes: int = Field(ge=0)
    input: UnitCost
    block: UnitCost
    head: UnitCost


@final
class Link(Config):
    """How fast bytes go from one rank to another."""

    bandwidth: float = Field(gt=0)
    """Bytes per second in one direction."""
    latency: float = Field(ge=0)
    """Seconds that a message takes beside its bytes."""

    def seconds(self, size: float) -> float:
        """Return how long a message of so many bytes takes."""
        return self.latency + size / self.bandwidth


@final
class Network(Config):
    """How ranks are joined. Ranks count up through the first node, then through the next."""

    within: Link
    """Between two ranks of a node."""
    between: Link
    """Between two nodes; all ranks of a node share its bandwidth."""
    ranks_per_node: int | None = Field(None, ge=1)
    """None: all ranks are on one node."""
    overlaps: bool = True
    """Whether messages travel while the ranks compute. On a CPU they take the cores' time."""


@final
class Facts(Config):
    """Where a profile comes from."""

    recipe: str
    method: Literal["measured", "computed"]
    device: str
    """Name of the device that was measured, or of the device description."""
    precision: str
    torch: str
    threads: int = Field(ge=1)
    """Threads of a rank, on a CPU."""
    batches: str
    """Which batches were measured: the data's, or an example."""


@final
class Profile(Config):
    """What the planner knows about a recipe on a device."""

    version: Literal[1] = 1
    """Version of this format."""
    facts: Facts
    blocks: int = Field(ge=1)
    """Blocks of the model."""
    input: UnitSize
    block: UnitSize
    head: UnitSize
    shared_bytes: int = Field(0, ge=0)
    """Trainable parameters that both the input part and the heads hold (tied embeddings)."""
    has_average: bool = False
    """Whether a moving average of the trainable parameters is kept."""
    measurements: tuple[Measurement, ...]
    update_seconds: float = Field(ge=0)
    """Seconds of an optimizer step per trainable byte."""
    network: Network
    memory: int | None = Field(None, ge=1)
    """Bytes of a rank's device, where known."""

    @model_validator(mode="after")
    def _something_measured(self) -> Self:
        if not self.measurements:
            raise ValueError("measurements must not be empty; make the profile anew")
        keys = [(m.micro_batch, m.recompute) for m in self.measurements]
        if len(set(keys)) != len(keys):
            raise ValueError(f"measurements must differ in size or recomputation, but are {keys}")
        return self

    def at(self, micro_batch: int, recompute: Recompute) -> Measurement | None:
        """Return the measurement of a size of micro-batch, None where there is none."""
        for measurement in self.measurements:
            if (measurement.micro_batch, measurement.recompute) == (micro_batch, recompute):
                return measurement
        return None

    @property
    def sizes(self) -> list[int]:
        """Micro-batch sizes that were measured, ascending."""
        return sorted({measurement.micro_batch for measurement in self.measurements})


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile beside its place and rename it.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_text(path, profile.as_json())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_profile(path: Path, recipe: str, precision: str) -> Profile:
    """Read a profile that `save_profile` wrote.

    Args:
        path: The file.
        recipe: Name of the recipe that is to be planned.
        precision: The recipe's `train.precision`.

    Raises:
        UserError: It cannot be read, is no profile, or is that of another recipe or precision.
    """
    profile = Profile.from_dict(read_object(path))
    facts = profile.facts
    for what, is_, asked in (
        ("recipe", facts.recipe, recipe),
        ("precision", facts.precision, precision),
    ):
        if is_ != asked:
            raise UserError(
                f"{path} must be a profile of {what} {asked}, but is of {is_}; make one with "
                "--save-profile"
            )
    return profile


def read_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        UserError: It cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} must be valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object, but holds {type(content).__name__}")
    return content
