"""Foreign namings of weights, one library each."""
