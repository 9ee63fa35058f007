"""The command `quadriga glue`."""
