"""Foreign file layouts of weights."""
