"""The training loop. It handles steps, not losses; to change it, copy it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quadriga.contracts import Executor, StepOutput
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
    """Run every step from `start` to the end of the plan.

    Steps run in segments that end at a checkpoint, an evaluation or the end of the run; one ends
    early where a rank asks for a checkpoint. Within a segment an executor may run ahead of its
    outputs; at the end of a segment no work is in flight, so that the state saved and evaluated
    there is the state after exactly that step. The step's number determines its batches, so a
    resumed run equals an uninterrupted one.

    Args:
        executor: Runs the optimizer steps; its state is that after `start` steps.
        loader: Yields this rank's micro-batches of any steps.
        plan: Number of steps, and where segments end.
        start: Finished steps.
        journal: Logs the outputs of the steps.
        checkpoints: Saves the state.
        evaluate: Called with the finished steps, after a checkpoint of that step; returns metrics.
        preemption: The stop signals; by default the run never stops early.
        phase_timer: Records when the state is saved and evaluated.
        profiler: Profiles some of the steps.

    Raises:
        Preempted: A rank received a stop signal; the state after the last step is saved.
        UserError: The loss is not finite, the data cannot be read or a checkpoint not written.
        RollBack: A step was bad, and the run must return to its last checkpoint.
    """
    preemption, phase_timer = preemption or Preemption(), phase_timer or PhaseTimer()
    batches = loader.batches(range(start, plan.total_steps))
    done = start
    while done < plan.total_steps:
        segment = next(segments(plan, done))
        for output in executor.run(batches, segment.steps):
            journal.step(output)
            if profiler is not None:
                profiler.step()
        done = output.step + 1
        is_whole = done == segment.steps.stop
        saves = output.stop or output.save or (is_whole and segment.save)
        if saves:
            with phase_timer.during("save"):
                _save(output, executor, journal, checkpoints)
        if output.stop:
            raise preemption.preempted(done)
        if is_whole and segment.evaluate:
            with phase_timer.during("evaluate"), preemption.leave_at_once(done if saves else None):
                checkpoints.report(done, evaluate(done))
                journal.evaluated(done)
    with phase_timer.during("save"):
        checkpoints.wait(final=True)


def _save(
    output: StepOutput, executor: Executor, journal: Journal, checkpoints: CheckpointStore
) -> None:
    """Save the state after a step; wait until it is on disk if the run stops."""
    done = output.step + 1
    checkpoints.save(done, executor)
    journal.add_stall(checkpoints.take_stall())
    checkpoints.report(done, {name: float(v) for name, v in output.metrics.items()})
    if output.stop:
        checkpoints.wait(final=True)
