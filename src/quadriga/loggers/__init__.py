"""Other places that a run's numbers go to, one file each, and all of a run as one."""
