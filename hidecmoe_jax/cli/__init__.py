"""The command line: one thin file a sub-command, each a function whose docstring and hints are its help."""
