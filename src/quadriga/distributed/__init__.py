"""Processes, ranks and collectives."""
