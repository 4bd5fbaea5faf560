"""Command-line programs: flags in, exit status out."""
