"""Modules that train inside a frozen meta model (Ni et al., "Deep Incubation", ICCV 2023).

The meta model is a small model of the same width that was trained before. In a hybrid, the target's
module replaces one of its stages, and only the module trains:

    min over M_i of E[ loss( meta_K o ... o meta_{i+1} o M_i o meta_{i-1} o ... o meta_1 (x), y ) ]

Hybrids of different modules are independent and need no communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga.config.base import Depth
from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Stage,
    WeightSource,
)
from quadriga.modular.parts.cut import Cut, classes_of, cut_meta, cut_target
from quadriga.modular.parts.meta import FromMetaConfig, fill_meta
from quadriga.modular.parts.sources import LIVE
from quadriga.modular.parts.start import Start, start_module


@final
class HybridConfig(FromMetaConfig):
    """Some modules of the target, each trained among the frozen stages of the meta model."""

    live: tuple[Depth, ...]
    """Numbers of the modules that train, from 0, ascending. Several modules in one process share
    the data and the frozen stages below them, and are otherwise trained independently."""
    initialise: Start = "function_preserving"
    """How a module starts. random: as in the published method; inherit: with the meta model's
    embedding or classifier; function_preserving: as the meta model's stage followed by identity
    blocks, so that the hybrid equals the meta model at step 0."""
    imitation: float = Field(0.0, ge=0, le=1e3)
    """Weight of the mean squared difference between the outputs of a module and of the meta
    model's stage for the same input; 0 for the published method. The last module returns a loss,
    so it has no such term."""

    @model_validator(mode="after")
    def _live_modules_exist(self) -> HybridConfig:
        count = len(self.depths)
        if not self.live or sorted(set(self.live)) != list(self.live):
            raise ValueError(f"live must be ascending numbers of modules, but is {list(self.live)}")
        if self.live[0] < 0 or self.live[-1] >= count:
            raise ValueError(
                f"live must be numbers from 0 to {count - 1}, as there are {count} depths, but is "
                f"{list(self.live)}"
            )
        return self

    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Hybrid:
        """Make the hybrid on the current default device; only its modules require gradients.

        Raises:
            UserError: As for `check_cut` and `cut`.
        """
        with torch.device("meta"):
            shapes = cut_target(objective, model, self.depths)
        modules = cut_target(objective, model, self.depths)
        meta = cut_meta(objective, model, self.meta_cut())
        return Hybrid(self, modules, meta.stages, shapes.stages)

    def fill(
        self,
        built: Objective,
        objective: ObjectiveConfig,
        model: ModelConfig,
        sources: Sequence[WeightSource],
    ) -> str:
        """Load the meta model's weights, and start the modules from them.

        Raises:
            UserError: The source is not the meta model of this target.
        """
        assert isinstance(built, Hybrid)
        depths, classes = self.meta_cut(), classes_of(objective)
        told = fill_meta(built.frozen, model, depths, classes, sources[0])
        for index, module in built.modules_by_index().items():
            meta = built.frozen[index]
            start_module(self.initialise, module, meta, index, self.depths, depths)
        live = ", ".join(map(str, self.live))
        return f"module {live} of {len(self.depths)} ({self.initialise}) among {told}"


@final
class Hybrid(Objective):
    """The modules that train, and the frozen stages of the meta model.

    The loss and the metrics are those of the objective with one module in place of its stage of
    the meta model. With several modules, the loss is the sum of their losses, and each module has
    its metrics under its number: ``module_2.accuracy``.
    """

    def __init__(
        self,
        config: HybridConfig,
        target: Cut,
        meta: Sequence[Stage],
        shapes: Sequence[Stage],
    ) -> None:
        """Take the stages of both models.

        Args:
            config: The config, with the modules that train.
            target: Stages of the target; only those that train are kept.
            meta: Stages of the meta model; all are frozen.
            shapes: Stages of the target on the meta device, for the optimizer's rules.
        """
        super().__init__()
        self.config, self.tokens_per_sample = config, target.tokens_per_sample
        self.live = nn.ModuleDict({str(index): target.stages[index] for index in config.live})
        self.meta = nn.ModuleDict({str(index): stage for index, stage in enumerate(meta)})
        self.meta.requires_grad_(False)
        self._whole = {n: p for stage in shapes for n, p in stage.named_parameters()}
        self._imitates = config.imitation > 0
        names = (*target.metric_names, *(("imitation",) if self._imitates else ()))
        self.metric_names = names
        if len(config.live) > 1:
            self.independent_parts = tuple(f"{LIVE}{index}." for index in config.live)
            own = ("loss", *names)
            self.metric_names = tuple(f"module_{i}.{name}" for i in config.live for name in own)

    @property
    def frozen(self) -> list[Stage]:
        """The meta model's stages in order."""
        return [stage for stage in self.meta.values() if isinstance(stage, Stage)]

    def modules_by_index(self) -> dict[int, Stage]:
        """Return the modules that train by their number."""
        return {int(i): stage for i, stage in self.live.items() if isinstance(stage, Stage)}

    def initialise(self, seed: int) -> None:
        """Fill every tensor; a module gets its values in the whole target model."""
        for stage in (*self.live.values(), *self.meta.values()):
            assert isinstance(stage, Stage)
            stage.initialise(seed)

    def whole_parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the whole target's parameters (meta device), for the optimizer's rules."""
        return self._whole

    def name_in_whole(self, name: str) -> str:
        """Return a parameter's name in the target model."""
        return name.removeprefix(LIVE).partition(".")[2]

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss with each module in place of its stage of the meta model."""
        frozen, modules = self.frozen, self.modules_by_index()
        last = max(modules)
        hidden: Tensor | None = None
        found: dict[int, LossOutput] = {}
        for index in range(last + 1):
            below = hidden
            beyond: Tensor | LossOutput | None = None
            imitates = self._imitates and index in modules and index + 1 < len(frozen)
            if index < last or imitates:
                with torch.no_grad():  # this stage and all below are frozen: no graph is needed
                    beyond = frozen[index](below, batch)
            if index in modules:
                found[index] = self._through(
                    modules[index], frozen[index + 1 :], below, batch, beyond
                )
            hidden = beyond if isinstance(beyond, Tensor) else None
        return self._output(found)

    def _through(
        self,
        module: Stage,
        above: Sequence[Stage],
        hidden: Tensor | None,
        batch: Batch,
        imitated: Tensor | LossOutput | None,
    ) -> LossOutput:
        """Return the loss of one module below the frozen stages `above`.

        Args:
            module: The module.
            above: The frozen stages after it.
            hidden: Input of the module; None for the first one.
            batch: The micro-batch.
            imitated: Output of the meta model's stage for `hidden`, used for imitation only; a
                tensor has the shape of the module's output.
        """
        output: Tensor | LossOutput = module(hidden, batch)
        own = output
        for stage in above:
            output = stage(output, batch)
        assert isinstance(output, LossOutput)
        if not self._imitates or not isinstance(own, Tensor) or not isinstance(imitated, Tensor):
            return output
        loss = output.only
        count = loss.total.new_full((), batch["index"].shape[0])
        difference = (own.float() - imitated.float()).square().mean() * count
        weight = self.config.imitation / (count if loss.targets is None else 1.0)
        metrics = {**output.metrics, "imitation": (difference.detach(), count)}
        return LossOutput.of(loss.total + weight * difference, loss.targets, metrics)

    def _output(self, found: Mapping[int, LossOutput]) -> LossOutput:
        if len(found) == 1:
            return next(iter(found.values()))
        losses = [output.only for output in found.values()]
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        for index, output in found.items():
            total, targets, _ = output.only
            one = torch.ones_like(total) if targets is None else targets
            own = {"loss": (total.detach(), one), **output.metrics}
            metrics |= {f"module_{index}.{name}": pair for name, pair in own.items()}
        total = sum((loss.total for loss in losses[1:]), losses[0].total)
        return LossOutput.of(total, losses[0].targets, metrics)
