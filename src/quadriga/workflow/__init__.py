"""Workflows of several runs: their graph, directory, launcher, runner and ledger."""
