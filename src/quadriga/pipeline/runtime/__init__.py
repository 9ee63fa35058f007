"""Carrying a schedule out: stages, point-to-point exchange, weight versions, executors."""
