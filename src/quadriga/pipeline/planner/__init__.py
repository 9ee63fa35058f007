"""Where to cut a model: profile, cost, search, simulation."""
