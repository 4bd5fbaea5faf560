"""Other people's networks: PyTorch and safetensors files in and out, and functions of any JAX library."""
