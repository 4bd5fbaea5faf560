"""What is measured on a GPU or TPU; `benchmarks/on_device.sh` runs it part by part."""
