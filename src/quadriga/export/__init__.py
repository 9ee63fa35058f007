"""A run's weights to other libraries, and the check that they compute the same."""
