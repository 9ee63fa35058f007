"""Several runs: their graph, directory, launcher, ledger."""
