"""The workflow of a ``quadriga run`` command line, with resolved configs as nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.engine.classes import infer_num_classes
from quadriga.engine.run_config import RunConfig, complete
from quadriga.errors import UserError
from quadriga.recipes.arguments import call, recipe_arguments
from quadriga.recipes.find import find_workflow
from quadriga.workflow.graph import Node, Workflow, check_graph, matching, needs_of

REFERENCE_NAME = "reference"
"""Name on the command line of the run that the workflow replaces."""


@final
@dataclass(frozen=True)
class ResolvedWorkflow:
    """A workflow with the source of every value."""

    workflow: Workflow
    """The workflow with overrides applied to its nodes."""
    nodes: dict[str, Resolved[RunConfig]]
    needs: dict[str, tuple[str, ...]]


def resolve_workflow(
    recipe: str, words: Sequence[str], options: Mapping[str, Any] | None = None
) -> ResolvedWorkflow:
    """Resolve a workflow: the recipe, then the command line.

    Args:
        recipe: Name of the workflow.
        words: ``key=value`` for all nodes and the reference, or for the recipe's own arguments;
            ``NODE:key=value`` for some nodes, applied afterwards in order.
        options: Key -> value of an option that is short for the key; None if it is not given.

    Raises:
        UserError: A workflow, node, key or value is unknown, or the graph is invalid.
    """
    function = find_workflow(recipe)
    everywhere = read_overrides([word for word in words if ":" not in word.partition("=")[0]])
    arguments, used = recipe_arguments(function, everywhere)
    workflow = call(function, arguments)
    if not isinstance(workflow, Workflow):
        raise UserError(
            f"{recipe} must return a Workflow to be run, but returned a "
            f"{type(workflow).__name__}; quadriga train takes recipes of one run"
        )
    check_graph(workflow)
    values = {key: value for key, value in everywhere.items() if key not in used}
    values |= {key: str(value) for key, value in (options or {}).items() if value is not None}
    some = _values_of_some(words, [node.name for node in workflow.nodes])
    source = f"recipe {recipe}"
    nodes = {
        node.name: _resolved(node.name, node.config, source, values, some.get(node.name, []))
        for node in workflow.nodes
    }
    reference = workflow.reference
    if reference is not None:
        own = some.get(REFERENCE_NAME, [])
        reference = _resolved(REFERENCE_NAME, reference, source, values, own).config
    changed = Workflow(
        name=workflow.name,
        nodes=tuple(Node(name, resolved.config) for name, resolved in nodes.items()),
        result=workflow.result,
        reference=reference,
    )
    check_graph(changed)
    return ResolvedWorkflow(changed, nodes, needs_of(changed))


def as_it_is(workflow: Workflow) -> ResolvedWorkflow:
    """Resolve a `Workflow` object without overrides.

    Raises:
        UserError: The graph is invalid.
    """
    check_graph(workflow)
    nodes = {
        node.name: infer_num_classes(Resolved.of(node.config, workflow.name))
        for node in workflow.nodes
    }
    changed = Workflow(
        name=workflow.name,
        nodes=tuple(Node(name, resolved.config) for name, resolved in nodes.items()),
        result=workflow.result,
        reference=workflow.reference,
    )
    return ResolvedWorkflow(changed, nodes, needs_of(changed))


def _values_of_some(words: Sequence[str], names: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Return node -> its overrides from ``NODE:key=value`` words, in order."""
    found: dict[str, list[dict[str, str]]] = {}
    for word in words:
        head, equals, value = word.partition("=")
        pattern, colon, key = head.partition(":")
        if not colon:
            continue
        if not key or not equals:
            raise UserError(
                f"an override of some nodes must look like module_*:train.epochs=5, but is {word!r}"
            )
        chosen = (
            [REFERENCE_NAME]
            if pattern == REFERENCE_NAME
            else matching(pattern, names, f"the part of {word} before the colon")
        )
        for name in chosen:
            found.setdefault(name, []).append({key: value})
    return found


def _resolved(
    name: str,
    config: RunConfig,
    source: str,
    values: Mapping[str, str],
    own: Sequence[Mapping[str, str]],
) -> Resolved[RunConfig]:
    resolved = Resolved.of(config, source)
    given: Mapping[str, str] = {}
    try:
        for given in (values, *own):
            if given:
                changed = complete(dict(given), resolved.config)
                resolved = resolved.override(changed, COMMAND_LINE)
    except UserError as error:
        hint = ""
        if str(error).startswith("unknown key") and given is values:
            hint = "; NODE:key=value sets it in some nodes only"
        raise UserError(f"{name}: {error}{hint}") from error
    return infer_num_classes(resolved)
