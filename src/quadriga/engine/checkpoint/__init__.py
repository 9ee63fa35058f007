"""What of a run is saved, and how it is written, verified, read and kept."""
