"""Plans on disk and devices: stages, identities, checkpoints, loops."""
