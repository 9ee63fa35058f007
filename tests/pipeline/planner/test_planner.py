"""The planner against an exhaustive search, its own limits, and what stages really hold."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from errors import assert_says, refuses
from pipeline_fakes import words_run
from plan_fakes import LINKS, made_profile
from quadriga.engine.build import build_on_meta
from quadriga.errors import UserError
from quadriga.optim.parts.groups import make_state, partial_optimizer
from quadriga.pipeline.planner.cost import Candidate, Costs, Placement
from quadriga.pipeline.planner.profile import Network, Profile, UnitCost, make_units, sizes
from quadriga.pipeline.planner.search import Planner, Ranking, steady_state
from quadriga.pipeline.planner.timeline import Times, simulate
from quadriga.pipeline.runtime.versions import FlatGradients, WeightVersions
from quadriga.pipeline.schedules import SCHEDULES

MUCH = 2**40


def costs_of(profile: Profile, candidate: Candidate) -> Costs:
    plain = profile.at(candidate.micro_batch, "none")
    full = profile.at(candidate.micro_batch, "full") if candidate.recompute == "full" else None
    assert plain is not None
    placement = Placement(profile.network, candidate.width, candidate.depth)
    return Costs(profile, plain, full, candidate, placement)


def everything(planner: Planner) -> Ranking:
    return planner.rank(10**6)


@pytest.mark.parametrize("schedule", ["1f1b", "2bw"])
def test_memory_of_weights_is_what_the_executor_holds(schedule: str) -> None:
    config = words_run()
    units = make_units(config, torch.device("cpu"), "none")
    parts, shared = sizes(units, config.optim)
    profile = made_profile(input=parts[0], block=parts[1], head=parts[2], shared_bytes=shared)
    depths = (1, 2, 1)
    costs = costs_of(profile, Candidate(1, 3, 2, 4, "none", schedule))
    objective = build_on_meta(config).to_empty(device="cpu")
    objective.initialise(1)
    everything = dict(objective.named_parameters())
    for number, stage in enumerate(objective.stages(depths)):
        versions = WeightVersions(stage, 1 + SCHEDULES[schedule].delay)
        memory = costs.memory(number, depths[number])
        held = [p for module in versions.modules for p in module.parameters()]
        assert memory.weights == sum(p.nbytes for p in held)
        buffers = [FlatGradients(versions.parameters) for _ in range(versions.count)]
        assert memory.gradients == sum(buffer.flat.nbytes for buffer in buffers)
        optimizer = partial_optimizer(config.optim, everything, versions.parameters)
        make_state(optimizer, versions.parameters.values())
        states = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
        assert memory.optimizer == sum(value.nbytes for value in states)


def test_memory_of_activations_by_hand() -> None:
    profile = made_profile()
    plain = [costs_of(profile, Candidate(1, 2, 2, 4, "none", s)) for s in ("1f1b", "gpipe")]
    # Stage 0: the input part and one block keep 200 + 2000; two (four) are in flight.
    assert plain[0].memory(0, 1).activations == 2 * (2200 + 20)
    assert plain[1].memory(0, 1).activations == 4 * (2200 + 20)
    assert plain[0].memory(0, 1).boundary == 2 * 200  # places for gradients
    assert plain[0].memory(1, 3).boundary == (1 + 1) * 200  # inputs
    again = costs_of(profile, Candidate(1, 2, 2, 4, "full", "gpipe"))
    assert again.memory(0, 1).activations == 4 * 20 + 2200
    assert again.memory(1, 3).activations == 4 * 20 + 6000 + 1400  # the last one as well
    whole = costs_of(profile, Candidate(2, 1, 2, 4, "full", "none")).memory(0, 4)
    assert whole.activations == 20 + 200 + 1400 + 4 * 200 + 2000
    assert whole.weights == 4000 + 4 * 1000 + 400
    assert whole.optimizer == 2 * whole.weights


def test_recomputation_costs_a_forward_pass_but_on_the_last_stage() -> None:
    costs = costs_of(made_profile(), Candidate(1, 2, 2, 4, "full", "1f1b"))
    assert costs.passes(0, 2) == (5.0, 10.0 + 5.0)
    assert costs.passes(1, 2) == (7.0, 14.0)


def test_messages_take_the_time_of_a_core() -> None:
    slow = LINKS.override({"within.bandwidth": 100.0, "overlaps": False})
    candidate = Candidate(2, 2, 1, 4, "none", "1f1b")
    costs = costs_of(made_profile(network=slow), candidate)
    assert costs.transfer == (1.0,)
    assert costs.passes(0, 2) == (2.5 + 0.5, 5.0 + 0.5)
    times = costs.times((2, 2))
    assert times.beside == ()
    # The ring of two copies sends each byte once; the tied table is summed as well.
    assert times.step == (6000 / 100 + 4000 / 100, 6400 / 100 + 4000 / 100)


@pytest.mark.parametrize(
    "network",
    [LINKS, LINKS.override({"within.bandwidth": 50.0}),
     LINKS.override({"within.bandwidth": 500.0, "overlaps": False})],
)  # fmt: skip
def test_the_best_are_the_best_of_all(network: Network) -> None:
    planner = Planner(made_profile(network=network), ranks=4, batch_size=16, memory=MUCH)
    every = everything(planner)
    assert len(every.plans) == every.considered > 30
    seconds = [float(f"{plan.step_seconds:.6e}") for plan in every.plans]
    assert seconds == sorted(seconds)
    assert planner.rank(5).plans == every.plans[:5]
    for plan in every.plans:
        candidate = plan.candidate
        assert candidate.width * candidate.micro_batch * candidate.micro_batches == 16
        assert candidate.width * candidate.depth == 4
        assert sum(plan.depths) == 4
        assert plan.samples_per_second == pytest.approx(16 / plan.step_seconds)
        assert 0 <= plan.bubble < 1
    found = {(p.candidate.depth, p.candidate.schedule) for p in every.plans}
    assert found == {(1, "none"), *((d, s) for d in (2, 4) for s in SCHEDULES)}


def test_heavy_ends_get_fewer_blocks() -> None:
    heavy = UnitCost(forward=4.0, backward=8.0, kept=0)
    profile = made_profile(blocks=12, sizes=(1,))
    measurement = profile.measurements[0].model_copy(update={"head": heavy})
    profile = profile.model_copy(update={"measurements": (measurement,)})
    planner = Planner(profile, ranks=4, batch_size=16, memory=MUCH)
    candidate = Candidate(1, 4, 1, 16, "none", "2bw")
    plan = planner.predict(candidate)
    assert plan.depths == (4, 4, 4, 0)
    equal = planner.predict(candidate, (3, 3, 3, 3))
    assert plan.step_seconds < equal.step_seconds


def test_nothing_exceeds_the_memory() -> None:
    generous = everything(Planner(made_profile(), 4, 16, MUCH))
    limit = sorted(plan.most_memory for plan in generous.plans)[len(generous.plans) // 3]
    tight = everything(Planner(made_profile(), 4, 16, limit))
    assert tight.considered < generous.considered
    assert all(plan.most_memory <= limit for plan in tight.plans)
    assert tight.refusals
    for refusal in tight.refusals:
        assert refusal.need is None or refusal.need > limit
        assert refusal.reason.startswith("needs ")


def test_the_smallest_need_is_enough() -> None:
    with refuses("--memory", "depth 4", "raise"):
        Planner(made_profile(), 4, 16, 1).rank(3)
    needs = [
        refusal.need for limit in (1,) for refusal in _refusals(limit) if refusal.need is not None
    ]
    least = min(needs)
    assert everything(Planner(made_profile(), 4, 16, least)).considered >= 1
    with pytest.raises(UserError):
        Planner(made_profile(), 4, 16, least - 1).rank(3)


def _refusals(limit: int) -> list:
    planner = Planner(made_profile(), 4, 16, limit)
    evaluated = [planner._evaluate(*group) for group in planner._classes()]
    assert not any(fitting for fitting, _ in evaluated)
    return [refusal for _, refusal in evaluated if refusal is not None]


def test_too_few_micro_batches_are_a_reason() -> None:
    ranking = everything(Planner(made_profile(), 4, 2, MUCH))
    reasons = {r.reason for r in ranking.refusals if (r.depth, r.schedule) == (4, "2bw")}
    (reason,) = reasons
    assert_says(reason, "4 micro-batches", "2")
    (reason,) = {r.reason for r in ranking.refusals if r.depth == 1}
    assert_says(reason, "train.batch_size=2", "4 copies")


def test_a_model_that_cannot_be_cut_is_planned_whole() -> None:
    ranking = everything(Planner(made_profile(), 4, 16, MUCH, whole_only="it has a teacher"))
    assert {plan.candidate.depth for plan in ranking.plans} == {1}
    assert {refusal.reason for refusal in ranking.refusals} == {"it has a teacher"}


def test_no_batch_for_so_many_ranks() -> None:
    with refuses("train.batch_size", "7 ranks", "16"):
        Planner(made_profile(), 7, 16, MUCH).rank(1)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_many_micro_batches_are_simulated_with_fewer(name: str) -> None:
    costs = costs_of(made_profile(), Candidate(1, 3, 1, 60, "none", name))
    times = dataclasses.replace(costs.times((2, 1, 1)), beside=(9.0, 3.0, 9.0))
    assert isinstance(times, Times)
    seconds, bubble = steady_state(costs, times, 60)
    steps = 6 if name == "2bw" else 3
    timeline = simulate(costs.schedule, times, 60, steps)
    assert seconds == pytest.approx(timeline.step_seconds, rel=2e-3)
    assert bubble == pytest.approx(timeline.bubble, abs=2e-3)
    assert not math.isnan(bubble)
