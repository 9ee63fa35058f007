"""Execution of a schedule: stages, point-to-point exchange, weight versions, executors."""
