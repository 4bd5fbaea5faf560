"""Detectors: whether a network is backdoored, and for which class. One method a file; see `detector.Detector`."""
