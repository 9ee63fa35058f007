"""Quadriga pre-trains transformers: four kinds of pre-training on one engine."""

__version__ = "0.1.0"
