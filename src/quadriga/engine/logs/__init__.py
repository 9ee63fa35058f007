"""What a run writes down: console, metrics, events, times, status."""
