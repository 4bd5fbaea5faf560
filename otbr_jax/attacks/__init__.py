"""Backdoor attacks: pure functions on images, and how they poison a training set."""
