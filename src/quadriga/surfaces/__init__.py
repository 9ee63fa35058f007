"""Documented command lines of other systems."""
