"""The pure building blocks of detectors and defences, one verb each."""
