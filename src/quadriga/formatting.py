"""Numbers as people read them: counts, operations, bytes, durations and measurements."""

from __future__ import annotations

import math

_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def count(value: float) -> str:
    """Format a number of things: ``112_345_678`` is ``112.3 M``, ``999`` is ``999``."""
    number, prefix = _scaled(value, 1000, _DECIMAL)
    return f"{number} {prefix}".rstrip()


def flops(value: float) -> str:
    """Format a number of floating-point operations: ``17.6 GFLOP``."""
    number, prefix = _scaled(value, 1000, _DECIMAL)
    return f"{number} {prefix}FLOP"


def bytes_(value: float) -> str:
    """Format a number of bytes in powers of 1024: ``3.2 GiB``."""
    number, prefix = _scaled(value, 1024, _BINARY)
    return f"{number} {prefix}B"


def duration(seconds: float) -> str:
    """Format a duration with two units at most: ``1 h 02 min``, ``42 s``, ``350 ms``.

    Args:
        seconds: Any number; an infinite or undefined one (no estimate yet) is ``unknown``.
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if round(seconds * 1000) < 1000:
        return f"{round(seconds * 1000)} ms"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    # Rounded to the smaller unit first: 59 min 59.8 s is an hour, not 59 min 60 s.
    whole, minutes, hours = (round(seconds / unit) for unit in (1, 60, 3600))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def reading(metric: str) -> tuple[float, str]:
    """Return the factor and the unit for showing a metric.

    Accuracies of an objective, in training and ``held_out``, are fractions in [0, 1]; those of the
    other protocols are percentages already.

    Args:
        metric: ``PROTOCOL.NAME`` of an evaluation metric, or the name of a training metric.
    """
    protocol, _, name = metric.rpartition(".")
    if protocol == "" or protocol.startswith(("held_out", "module_")):
        return (100.0, "%") if "accuracy" in name else (1.0, "")
    percent = name.startswith(("top", "accuracy", "f1", "recall", "mean_average_precision"))
    return 1.0, "%" if percent else ""


def measured(metric: str, value: float) -> str:
    """Format a metric: an accuracy as ``97.78 %``, a loss as ``0.3859``.

    Args:
        metric: As for `reading`.
        value: The value as logged, before the factor of `reading`.
    """
    factor, unit = reading(metric)
    return f"{value * factor:.2f} {unit}" if unit else f"{value:.4g}"


def _scaled(value: float, base: int, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """Return the number with one decimal and the prefix of its power of `base`."""
    power = 0
    scaled = float(value)
    # Compared as it will be written: 999,960 is 1.0 M, not 1000.0 k.
    while round(abs(scaled), 1) >= base and power < len(prefixes) - 1:
        scaled /= base
        power += 1
    if power == 0 and scaled == int(scaled):
        return str(int(scaled)), prefixes[0]
    return f"{scaled:.1f}", prefixes[power]
