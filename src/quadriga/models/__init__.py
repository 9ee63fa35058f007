"""Architectures: no loss, no distribution."""
