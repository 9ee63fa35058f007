"""Which samples a step takes, and how they are read and batched."""
