"""Carrying a schedule out: stages, links, weight versions, executors."""
