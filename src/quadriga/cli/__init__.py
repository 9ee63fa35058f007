"""The rim: argv and environ to a run. Strings become objects here and in config kinds only."""
