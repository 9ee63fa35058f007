"""One file is one paper: its config and its objective."""
