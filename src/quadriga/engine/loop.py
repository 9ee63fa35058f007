"""The loop. It knows steps and never losses; whoever outgrows it copies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quadriga.contracts import Executor
from quadriga.data.reading.loader import Loader
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.faults.preemption import Preemption
from quadriga.engine.logs.journal import Journal
from quadriga.engine.logs.profile import Profiler
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_plan import RunPlan, segments


def train(
    executor: Executor,
    loader: Loader,
    plan: RunPlan,
    start: int,
    journal: Journal,
    checkpoints: CheckpointStore,
    evaluate: Callable[[int], Mapping[str, float]],
    preemption: Preemption | None = None,
    phase_timer: PhaseTimer | None = None,
    profiler: Profiler | None = None,
) -> None:
    """Make every step from `start` to the end of the plan.

    Steps run in segments, cut where something else happens: a checkpoint, an evaluation, the
    end. Inside a segment an executor may run ahead of what it has reported; at a segment's end
    it is quiet, so that what is saved and evaluated there is the state after exactly that step.
    A step's batches follow from its number, so a run goes on as if it had never stopped.

    Args:
        executor: Makes optimizer steps; its state is that after `start` steps.
        loader: Gives this rank's micro-batches of any steps.
        plan: How many steps there are and where they are cut.
        start: Steps that are already made.
        journal: Writes down what the steps report.
        checkpoints: Keeps the state.
        evaluate: Called with the number of finished steps, returns metrics by name; where a
            checkpoint is due at the same step, after it was taken.
        preemption: Whether the run is to stop early; by default it never is.
        phase_timer: Told when the state is saved and when it is evaluated.
        profiler: Records some of the steps.

    Raises:
        Preempted: A rank was asked to stop; the state after the last step is saved.
        UserError: The loss is not finite, the data cannot be read or a checkpoint not written.
        RollBack: A step was bad, and the run is to go back to its last checkpoint.
    """
    preemption, phase_timer = preemption or Preemption(), phase_timer or PhaseTimer()
    batches = loader.batches(range(start, plan.total_steps))
    for segment in segments(plan, start):
        for output in executor.run(batches, segment.steps):
            journal.step(output)
            if profiler is not None:
                profiler.step()
        done = output.step + 1
        if segment.save or output.stop:
            with phase_timer.during("save"):
                checkpoints.save(done, executor)
                journal.add_stall(checkpoints.take_stall())
                checkpoints.report(done, {name: float(v) for name, v in output.metrics.items()})
                if output.stop:
                    checkpoints.wait(final=True)
        if output.stop:
            raise preemption.preempted(done)
        if segment.evaluate:
            saved = done if segment.save else None
            with phase_timer.during("evaluate"), preemption.leave_at_once(saved):
                checkpoints.report(done, evaluate(done))
    with phase_timer.during("save"):
        checkpoints.wait(final=True)
