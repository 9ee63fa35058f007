"""What goes wrong: hangs, signals, bad steps, and how a run recovers."""
