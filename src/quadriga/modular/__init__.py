"""Models whose modules are trained apart and assembled (Ni et al., "Deep Incubation", 2023)."""
