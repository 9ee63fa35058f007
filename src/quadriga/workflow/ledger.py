"""The costs of runs: operations, device time, wall time and memory, as pure functions.

Three sums are separate, since a workflow trades one for another: floating-point operations; device
time, summed over all devices (the price); and the critical path, the longest chain of dependent
runs (the wall time with a device for every run that is ready).

Steps that a killed run repeated count once; the time of their first execution is reported as lost.
Start-up time (imports, the model, reading a checkpoint) is reported separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from quadriga.engine.logs.run_cost import RunCost
from quadriga.workflow.graph import Needs, order_of, with_all_needed


@final
@dataclass(frozen=True, kw_only=True)
class TotalCost:
    """The cost of a node and all nodes that it needs."""

    nodes: tuple[str, ...]
    """The nodes, in topological order."""
    flops: float | None
    device_seconds: float
    critical_path: tuple[str, ...]
    """The nodes of the longest chain, in order."""
    critical_seconds: float
    """Sum of the wall times of `critical_path`."""
    start_up_seconds: float
    lost_device_seconds: float
    memory_gib: float | None
    """Maximum memory of a rank of any of the nodes."""


def total_cost(needs: Needs, costs: Mapping[str, RunCost], name: str) -> TotalCost:
    """Return the total cost of a node and all nodes that it needs.

    Args:
        needs: The graph.
        costs: Node -> cost of its run.
        name: The node.
    """
    wanted = with_all_needed(needs, name)
    nodes = tuple(node for node in order_of(needs) if node in wanted)
    parts = [costs[node] for node in nodes]
    flops = [part.flops for part in parts]
    memory = [part.memory_gib for part in parts if part.memory_gib is not None]
    path, seconds = longest_path(needs, {n: costs[n].seconds for n in nodes}, name)
    return TotalCost(
        nodes=nodes,
        flops=None if None in flops else sum(each for each in flops if each is not None),
        device_seconds=sum(part.device_seconds for part in parts),
        critical_path=path,
        critical_seconds=seconds,
        start_up_seconds=sum(part.start_up_seconds for part in parts),
        lost_device_seconds=sum(part.lost_device_seconds for part in parts),
        memory_gib=max(memory, default=None),
    )


def longest_path(
    needs: Needs, seconds: Mapping[str, float], name: str
) -> tuple[tuple[str, ...], float]:
    """Return the slowest chain of nodes that ends in `name`, and its seconds."""
    best: dict[str, tuple[tuple[str, ...], float]] = {}
    wanted = with_all_needed(needs, name)
    for node in (n for n in order_of(needs) if n in wanted):
        before = max((best[n] for n in needs[node]), key=lambda p: p[1], default=((), 0.0))
        best[node] = ((*before[0], node), before[1] + seconds[node])
    return best[name]


def as_json(
    name: str,
    result: str,
    needs: Needs,
    costs: Mapping[str, RunCost],
    planned: Mapping[str, float | None],
    reference: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of ledger.json.

    Args:
        name: Name of the workflow.
        result: The node whose model is the result.
        needs: The graph.
        costs: Node -> cost of its run.
        planned: Node -> FLOPs of all its steps; None if unknown.
        reference: `Planned.as_json` of the run that the workflow replaces, which is not run.
    """
    own = with_all_needed(needs, result)
    used = {other for node in needs for other in needs[node]}
    # Baselines: nodes that no other node needs, and that the result does not need.
    ends = [node for node in needs if node not in own and node not in used]
    total = [planned[node] for node in own]
    return {
        "workflow": name,
        "nodes": {n: {**asdict(costs[n]), "planned_flops": planned[n]} for n in needs},
        "result": {
            "node": result,
            **asdict(total_cost(needs, costs, result)),
            "planned_flops": None if None in total else sum(f for f in total if f is not None),
        },
        "others": {node: asdict(total_cost(needs, costs, node)) for node in ends},
        "reference": None if reference is None else dict(reference),
    }
