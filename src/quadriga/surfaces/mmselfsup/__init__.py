"""The command lines and configs of mmselfsup."""
