"""The tasks of GLUE and their official files."""
