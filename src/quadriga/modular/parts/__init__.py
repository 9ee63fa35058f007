"""What modular training shares: cuts, the meta model, sources, starts."""
