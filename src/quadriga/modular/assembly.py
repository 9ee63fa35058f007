"""Assembly: the target model from its trained modules, whose weights are copied unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from quadriga.config.base import Depth, Location
from quadriga.contracts import ModelConfig, ModularConfig, Objective, ObjectiveConfig, WeightSource
from quadriga.errors import UserError
from quadriga.modular.parts.cut import check_cut, classes_of, copy_into, depth_of, misfits
from quadriga.modular.parts.sources import SourceModule, check_facts, source_modules, to_come


@final
class AssemblyConfig(ModularConfig):
    """The whole target model, started from modules that were trained independently."""

    depths: tuple[Depth, ...]
    """Blocks of each module; they add up to `model.depth`."""
    modules: Location[tuple[str, ...]]
    """Paths of the modules, in any order: the sources determine the modules' numbers."""

    def build(self, objective: ObjectiveConfig, model: ModelConfig) -> Objective:
        """Make the plain target model's objective.

        Raises:
            UserError: The depths do not add up to the model's.
        """
        check_cut(self.depths, depth_of(model))
        return objective.build(model)

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return the config key and path of each source of modules."""
        return tuple(("modular.modules", path) for path in self.modules)

    def check_sources(
        self,
        objective: ObjectiveConfig,
        model: ModelConfig,
        runs: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Check modules that are not yet trained.

        Raises:
            UserError: A module will be missing, duplicate, or of another target.
        """
        known = [to_come(p, run) for p, run in zip(self.modules, runs, strict=True) if run]
        if len(known) == len(runs):
            self._places(objective, model, known)

    def fill(
        self,
        built: Objective,
        objective: ObjectiveConfig,
        model: ModelConfig,
        sources: Sequence[WeightSource],
    ) -> str:
        """Copy each module to its place.

        Raises:
            UserError: A module is missing, duplicate, or of another target.
        """
        places = self._places(objective, model, sources)
        tensors: dict[str, Tensor] = {}
        for module in places:
            tensors |= module.tensors
        problem = misfits(built.state_dict(), tensors, "the modules")
        if problem is not None:
            raise UserError(f"modular.modules: {problem}; name modules of this target")
        copy_into(built, {name: tensors[name] for name in built.state_dict()})
        return "assembled of " + ", ".join(f"{m.index}: {m.path}" for m in places)

    def _places(
        self, objective: ObjectiveConfig, model: ModelConfig, sources: Sequence[WeightSource]
    ) -> list[SourceModule]:
        """Return the modules of the sources in order.

        Raises:
            UserError: A module is missing, duplicate, or of another target.
        """
        found = [module for source in sources for module in source_modules(source, self.depths)]
        places = self._placed(found)
        for module in places:
            who = f"module {module.index} ({module.path})"
            check_facts(module.facts, model, classes_of(objective), who)
        _check_parents(places)
        return places

    def _placed(self, found: Sequence[SourceModule]) -> list[SourceModule]:
        """Return the modules in order.

        Raises:
            UserError: A module is missing, duplicate, or of another cut.
        """
        places: dict[int, SourceModule] = {}
        for module in found:
            if module.depths is not None and module.depths != self.depths:
                raise UserError(
                    f"modular.depths are {list(self.depths)}, but module {module.index} "
                    f"({module.path}) was cut from a model of {list(module.depths)}; change them "
                    "or name another module"
                )
            if module.index in places:
                raise UserError(
                    f"modular.modules must hold one module for each place, but both "
                    f"{places[module.index].path} and {module.path} are module {module.index}; "
                    "leave one out"
                )
            places[module.index] = module
        missing = [i for i in range(len(self.depths)) if i not in places]
        if missing:
            raise UserError(
                f"modular.modules must hold a module for each of {len(self.depths)} places, but "
                f"none is module {', '.join(map(str, missing))} (there are: "
                f"{', '.join(f'{i}: {m.path}' for i, m in sorted(places.items())) or 'none'}); "
                "name its run too"
            )
        return [places[index] for index in sorted(places)]


def _check_parents(modules: Sequence[SourceModule]) -> None:
    """Check that all modules were trained in the same meta model.

    Raises:
        UserError: Two modules have different meta models.
    """
    for number, module in enumerate(modules):
        for other in modules[:number]:
            if any(module.meta[s] != other.meta[s] for s in module.meta.keys() & other.meta.keys()):
                raise UserError(
                    f"modular.modules must come from one meta model, but module {module.index} "
                    f"({module.path}) was trained in another one than module {other.index} "
                    f"({other.path}); train it again, or name the one that belongs to the others"
                )
