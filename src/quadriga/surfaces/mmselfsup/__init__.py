"""The documented command line of mmselfsup: ``tools/train.py`` on Python-syntax configs."""
