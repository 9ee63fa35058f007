"""The command line: turns argv and the environment into runs.

Only this package and the kinds of configs turn strings into objects.
"""
