"""What protocols share: frozen features, accuracy."""
