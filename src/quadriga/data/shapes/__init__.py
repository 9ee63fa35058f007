"""Procedural scenes: what is in one, its picture, its language."""
