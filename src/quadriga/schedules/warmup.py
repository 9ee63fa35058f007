"""What the schedules share: the linear warm-up, and how far a run is in its decay."""

from __future__ import annotations

from quadriga.contracts import Progress, ScheduleConfig


def steps_of(epochs: float, progress: Progress) -> int:
    """Return a length in epochs as the nearest number of optimizer steps."""
    return round(epochs * progress.dataset_size / progress.batch_size)


def warmup_length(config: ScheduleConfig, progress: Progress) -> int:
    """Return the length of the warm-up in optimizer steps."""
    return config.warmup_steps or steps_of(config.warmup_epochs, progress)


def warmup_factor(config: ScheduleConfig, progress: Progress) -> float | None:
    """Return the multiplier of the peak learning rate inside the warm-up, None after it.

    With the warm-up's length W and start factor s, step t < W has ``s + (1 - s) t / (W - 1)``:
    the peak is reached at the last step of the warm-up.
    """
    warmup = warmup_length(config, progress)
    if progress.step >= warmup:
        return None
    rise = progress.step / (warmup - 1) if warmup > 1 else 1.0
    return config.start_factor + (1.0 - config.start_factor) * rise


def share_after_warmup(config: ScheduleConfig, progress: Progress) -> float:
    """Return which share of the steps after the warm-up is over, from 0 to 1.

    With the warm-up's length W and T steps in all: ``(t - W) / (T - W)``.
    """
    warmup = warmup_length(config, progress)
    remaining = max(1, progress.total_steps - warmup)
    return min(1.0, (progress.step - warmup) / remaining)


def share_of_decay(config: ScheduleConfig, progress: Progress, under_warmup: bool) -> float:
    """Return which share of the decay is over, from 0 to 1.

    Args:
        config: The schedule.
        progress: A step after the warm-up.
        under_warmup: Whether the decay is as long as the run: ``t / T`` at step t of T; if not, it
            begins where the warm-up ends (`share_after_warmup`).
    """
    if not under_warmup:
        return share_after_warmup(config, progress)
    return min(1.0, progress.step / max(1, progress.total_steps))
