"""Neuron graphs: layers and the layers that feed them, traced from a network or stated by hand."""
