"""Models whose modules are trained independently and then assembled ("Deep Incubation", 2023)."""
