"""The command line of Deep Incubation."""
