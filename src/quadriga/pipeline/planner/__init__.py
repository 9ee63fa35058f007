"""The planner of a model's cut into stages: profile, cost, search, simulation."""
