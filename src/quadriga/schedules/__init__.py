"""Learning-rate schedules: multipliers that are functions of `Progress`."""

KINDS = {
    "linear": "quadriga.schedules.curves:LinearConfig",
    "polynomial": "quadriga.schedules.curves:PolynomialConfig",
    "step_decay": "quadriga.schedules.curves:StepDecayConfig",
    "tanh": "quadriga.schedules.curves:TanhConfig",
    "warmup_cosine": "quadriga.schedules.curves:WarmupCosineConfig",
    "warmup_stable_decay": "quadriga.schedules.curves:WarmupStableDecayConfig",
}
"""Kinds of `ScheduleConfig` that share a file: name -> ``module:Class``, imported when used."""
