"""The proof that a run that was killed and resumed equals one that was not."""
