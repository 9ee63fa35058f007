"""Shared parts of modular training: cuts, the meta model, weight sources, initialisation."""
