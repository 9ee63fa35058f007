"""Sampling, reading and batching: which samples a step has, and how they reach the device."""
