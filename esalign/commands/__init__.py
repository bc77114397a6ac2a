"""One file per command of the command line, as functions from a configuration to what it leaves behind."""
