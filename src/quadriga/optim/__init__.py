"""Optimizers: a file of this folder is a kind, those that share a file stand below."""
