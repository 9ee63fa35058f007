"""Evaluation protocols, one per file: each maps a frozen model to named metrics."""
