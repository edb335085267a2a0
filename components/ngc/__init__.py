"""Models of NVIDIA's registry NGC as artifacts of a pipeline."""
