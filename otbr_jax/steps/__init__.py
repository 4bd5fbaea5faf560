"""The pure building blocks of methods, one verb each."""
