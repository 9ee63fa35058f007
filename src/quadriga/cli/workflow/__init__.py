"""The commands `quadriga run` and `quadriga status`."""
