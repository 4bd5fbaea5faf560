"""How things are computed: convolutions that are fast on each device, what devices share, what a pass takes."""
