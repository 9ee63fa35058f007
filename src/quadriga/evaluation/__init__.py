"""One file is one protocol: a frozen model to named metrics."""
