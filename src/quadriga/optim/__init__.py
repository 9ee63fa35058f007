"""Optimizers and, in `schedules`, the learning rate as a pure function of progress."""
