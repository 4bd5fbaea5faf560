"""What runs: training, stages on disk, devices, the pipeline and its results."""
