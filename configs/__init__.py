"""Config files: each returns the settings of a program."""
