"""Typed, frozen configs: values, kinds, overrides, and where each value came from."""
