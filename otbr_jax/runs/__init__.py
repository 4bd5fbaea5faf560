"""Plans on disk and devices: stages with their identities, checkpoints, loops that resume, progress."""
