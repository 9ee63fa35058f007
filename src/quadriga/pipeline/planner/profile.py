"""The profile of a run: the costs of the input part, one block and the heads; saved as JSON.

This file also describes devices for which a plan can be made without them, and cuts an objective
into the parts of a profile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga.config.base import Config, ConfigT
from quadriga.contracts import Batch, LossOutput, OptimizerConfig, Stage
from quadriga.contracts.stage import Splittable
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import LiveStorages
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.blocks import apply_recompute
from quadriga.errors import UserError, did_you_mean
from quadriga.files import parse_json, write_text
from quadriga.optim.parts.groups import make_state

Recompute = Literal["none", "full"]

PARTS = ("input", "block", "head")
"""Parts of a model: the one that embeds the input, a block, and the one that returns the loss."""


@final
class UnitSize(Config):
    """The bytes that a part holds for every size of micro-batch."""

    parameter_bytes: int = Field(ge=0, le=2**60)
    """Bytes of parameters and buffers."""
    trainable_bytes: int = Field(ge=0, le=2**60)
    """Bytes of trainable parameters, and of their gradients."""
    state_bytes: int = Field(ge=0, le=2**60)
    """Bytes of their optimizer state."""


def forward(
    unit: Stage,
    hidden: Tensor | None,
    batch: Batch,
    reduced: contextlib.AbstractContextManager[object],
) -> tuple[Tensor, int]:
    """Compute a part's forward pass, and count the bytes it keeps for the backward pass.

    Args:
        unit: The part.
        hidden: Its input, of shape ``unit.hidden_shape(batch)``; None for the input part.
        batch: The micro-batch.
        reduced: The context of a reduced precision. It ends before the count, so its copies of
            the weights count only if the backward pass keeps them.

    Returns:
        The part's output, or its loss; and the bytes, which include the output but not the
        input, the parameters and the batch.
    """
    with LiveStorages() as made, reduced:
        result = unit(hidden, batch)
    output: Tensor = result.only.total if isinstance(result, LossOutput) else result
    known = [*unit.parameters(), *unit.buffers(), *batch.values()]
    return output, made.total(known)


@final
class UnitCost(Config):
    """The cost of a part for one micro-batch."""

    forward: float = Field(ge=0, le=1e9)
    """Seconds of the forward pass."""
    backward: float = Field(ge=0, le=1e9)
    """Seconds of the backward pass, with recomputation."""
    kept: int = Field(ge=0, le=2**60)
    """Bytes that the forward pass keeps for the backward pass, including its output, without
    parameters, batch and input."""


@final
class Measurement(Config):
    """The costs of all parts for one size of micro-batch."""

    micro_batch: int = Field(ge=1, le=2**30)
    """Samples of a micro-batch."""
    recompute: Recompute
    boundary_bytes: int = Field(ge=0, le=2**60)
    """Bytes sent from stage to stage for one micro-batch."""
    batch_bytes: int = Field(ge=0, le=2**60)
    input: UnitCost
    block: UnitCost
    head: UnitCost


@final
class Link(Config):
    """The speed of messages from one rank to another."""

    bandwidth: float = Field(gt=0, le=1e30)
    """Bytes per second in one direction."""
    latency: float = Field(ge=0, le=1e9)
    """Seconds of a message, in addition to size / bandwidth."""

    def seconds(self, size: float) -> float:
        """Return the seconds of a message of `size` bytes."""
        return self.latency + size / self.bandwidth


@final
class Network(Config):
    """The links between ranks, which are numbered node by node."""

    within: Link
    """Between two ranks of a node."""
    between: Link
    """Between two nodes; all ranks of a node share its bandwidth."""
    ranks_per_node: int | None = Field(None, ge=1, le=2**30)
    """None: all ranks are on one node."""
    overlaps: bool = True
    """Whether messages overlap with computation. On a CPU they take the cores' time."""


@final
class Facts(Config):
    """The origin of a profile."""

    recipe: str
    method: Literal["measured", "computed"]
    device: str
    """Name of the measured device, or of the `DeviceSpec`."""
    precision: str
    torch: str
    threads: int = Field(ge=1, le=2**30)
    """Threads of a rank, on a CPU."""
    batches: str
    """Origin of the measured batches: "the data" or "an example"."""


@final
class Profile(Config):
    """The costs of a recipe on a device, as the planner uses them."""

    version: Literal[1] = 1
    """Version of this format."""
    facts: Facts
    blocks: int = Field(ge=1, le=2**30)
    """Blocks of the model."""
    input: UnitSize
    block: UnitSize
    head: UnitSize
    shared_bytes: int = Field(0, ge=0, le=2**60)
    """Bytes of trainable parameters that both input part and heads hold (tied embeddings)."""
    has_average: bool = False
    """Whether the run keeps an EMA of the trainable parameters."""
    measurements: tuple[Measurement, ...]
    update_seconds: float = Field(ge=0, le=1e9)
    """Seconds of an optimizer step per trainable byte."""
    network: Network
    memory: int | None = Field(None, ge=1, le=2**60)
    """Bytes of a rank's device; None if unknown."""

    @model_validator(mode="after")
    def _something_measured(self) -> Self:
        if not self.measurements:
            raise ValueError("measurements must not be empty; make the profile anew")
        keys = [(m.micro_batch, m.recompute) for m in self.measurements]
        if len(set(keys)) != len(keys):
            raise ValueError(f"measurements must differ in size or recomputation, but are {keys}")
        return self

    def at(self, micro_batch: int, recompute: Recompute) -> Measurement | None:
        """Return the measurement of a size of micro-batch; None if there is none."""
        for measurement in self.measurements:
            if (measurement.micro_batch, measurement.recompute) == (micro_batch, recompute):
                return measurement
        return None

    @property
    def sizes(self) -> list[int]:
        """Measured micro-batch sizes in samples, ascending."""
        return sorted({measurement.micro_batch for measurement in self.measurements})


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile as JSON, atomically.

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
        recipe: Name of the recipe to plan.
        precision: The recipe's `train.precision`.

    Raises:
        UserError: The file cannot be read, is no profile, or is of another recipe or precision.
    """
    profile = _read(Profile, path)
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


def _read(cls: type[ConfigT], path: Path) -> ConfigT:
    """Read a config from a file that holds one JSON object.

    Raises:
        UserError: It cannot be read or holds something else; the file is named.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} must be valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object, but holds {type(content).__name__}")
    try:
        return cls.from_dict(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


GIGA, TERA, GIB = 1e9, 1e12, 2**30


@final
class DeviceSpec(Config):
    """The speed and the memory of a device and its links, from data sheets."""

    name: str
    float32: float = Field(gt=0, le=1e30)
    """Dense FLOP/s of float32 matrix products."""
    float16: float | None = Field(None, gt=0, le=1e30)
    """Dense FLOP/s of float16 products with float32 sums; none if the device lacks them."""
    bfloat16: float | None = Field(None, gt=0, le=1e30)
    """Dense FLOP/s of bfloat16 products; none if the device lacks them."""
    memory_bandwidth: float = Field(gt=0, le=1e30)
    """Bytes per second."""
    memory: int = Field(gt=0, le=2**60)
    """Bytes."""
    within: float = Field(gt=0, le=1e30)
    """Bytes per second between two devices of a node, in one direction."""
    between: float = Field(gt=0, le=1e30)
    """Bytes per second from one node to another, of all its devices together."""
    devices_per_node: int = Field(8, ge=1, le=2**30)
    latency: float = Field(2e-5, ge=0, le=1e9)
    """Seconds of a message, in addition to size / bandwidth."""
    kernel_seconds: float = Field(5e-6, ge=0, le=1e9)
    """Minimum seconds of an operation."""
    product_efficiency: float = Field(0.5, gt=0, le=1)
    """Share of the peak FLOP/s that matrix products reach."""
    memory_efficiency: float = Field(0.8, gt=0, le=1)
    """Share of the memory bandwidth that operations reach."""

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s of a precision: float32, float16 or bfloat16.

        Raises:
            UserError: The device does not support the precision.
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
        """Return the network of ranks with one device each."""
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
"""Name -> device, with the manufacturers' figures."""


def find_spec(text: str) -> DeviceSpec:
    """Return a device by its name, or from a JSON file with the fields of `DeviceSpec`.

    Raises:
        UserError: No device has that name, or the file does not describe one.
    """
    if text in SPECS:
        return SPECS[text]
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return _read(DeviceSpec, path)
    raise UserError(
        f"--device-spec must be a JSON file or a known device, but is {text}"
        f"{did_you_mean(text, SPECS)}"
    )


class Units(NamedTuple):
    """Three stages of one objective; the other blocks, before the heads, are left out."""

    input: Stage
    block: Stage
    head: Stage


def splittable(config: RunConfig) -> Splittable:
    """Make the objective of a run on the meta device and check that it can be cut.

    Raises:
        UserError: The objective has no stages.
    """
    objective = build_on_meta(config)
    if not isinstance(objective, Splittable):
        kind = config.objective.kind()
        if config.modular is not None:
            kind = f"modular.kind={config.modular.kind()}"
        raise UserError(
            f"the recipe must be one that can be cut into stages, but {kind} has no stages; plan "
            "another recipe"
        )
    return objective


def cut(objective: Splittable) -> Units:
    """Return the input part, the first block and the heads of an objective."""
    rest = objective.depth - 1
    stages = objective.stages([0, 1, rest, 0] if rest else [0, 1, 0])
    return Units(stages[0], stages[1], stages[-1])


def make_units(config: RunConfig, device: torch.device, recompute: Recompute) -> Units:
    """Make the parts of a run's objective with their initial values.

    Only the three parts are allocated: of all blocks, one.

    Raises:
        UserError: The objective has no stages.
    """
    objective = splittable(config)
    assert isinstance(objective, nn.Module)
    apply_recompute(objective, recompute)
    units = cut(objective)
    for unit in units:
        unit.to_empty(device=device)
    for unit in units:  # after all are allocated, since two parts may hold the same parameter
        unit.initialise(config.seed)
        unit.train()
    return units


def sizes(units: Units, optim: OptimizerConfig) -> tuple[list[UnitSize], int]:
    """Return the sizes of the parts, and the trainable bytes that input and heads share.

    The optimizer's state is counted on small tensors with the parameters' names.
    """
    trained = [
        {name: p for name, p in unit.named_parameters() if p.requires_grad} for unit in units
    ]
    # All parts together: an optimizer's rules may need names that one part alone lacks.
    states = _state_rates({name: p for named in trained for name, p in named.items()}, optim)
    found = [
        UnitSize(
            parameter_bytes=_bytes([*unit.parameters(), *unit.buffers()]),
            trainable_bytes=_bytes(named.values()),
            state_bytes=sum(p.numel() * states[name] for name, p in named.items()),
        )
        for unit, named in zip(units, trained, strict=True)
    ]
    shared = trained[0].keys() & trained[-1].keys()
    return found, _bytes(trained[0][name] for name in shared)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_rates(named: Mapping[str, nn.Parameter], optim: OptimizerConfig) -> dict[str, int]:
    """Return the bytes of optimizer state per element of each parameter."""
    # Without layer-wise decay: it needs the layers of the whole model, and adds no state.
    rules = optim.override({"layer_decay": 1.0, "lr_scales": "{}", "constant_lr": ()})
    small = {
        name: nn.Parameter(torch.zeros([min(size, 2) for size in p.shape]))
        for name, p in named.items()
    }
    optimizer = rules.build(list(small.items()))
    make_state(optimizer, small.values())
    return {
        name: sum(
            value.element_size()
            for value in optimizer.state[parameter].values()
            if isinstance(value, Tensor) and value.dim() and value.shape == parameter.shape
        )
        for name, parameter in small.items()
    }
