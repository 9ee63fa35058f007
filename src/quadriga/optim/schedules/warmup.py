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
