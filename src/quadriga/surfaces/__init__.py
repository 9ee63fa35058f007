"""Command lines that other systems document, on this project's engine."""
