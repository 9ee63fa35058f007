"""The command line: turns argv and the environment into runs.

Only this package, `quadriga.recipes.find` and the kinds of configs turn strings into objects.
"""
