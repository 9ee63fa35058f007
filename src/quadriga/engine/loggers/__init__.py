"""Places that a run's numbers go to, one file each."""
