"""The container images in which stages run: the one place that names them."""

OPEN_ENGINE = "ghcr.io/gridbox/gridbox:0.1.0"
# The same with CUDA's PyTorch.
OPEN_ENGINE_GPU = f"{OPEN_ENGINE}-gpu"
# NVIDIA's last one with TensorFlow 1, and so with DetectNet_v2.
TAO_TOOLKIT = "nvcr.io/nvidia/tao/tao-toolkit:5.0.0-tf1.15.5"
