"""Foreign names of weights, one file per library."""
