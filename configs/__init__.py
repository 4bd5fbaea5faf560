"""Config files: each returns the settings of one run."""
