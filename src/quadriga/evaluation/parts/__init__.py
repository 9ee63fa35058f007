"""Code that protocols share: frozen features and accuracies."""
