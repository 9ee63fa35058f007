"""Exports a run's weights for other libraries, and checks that the exports compute the same."""
