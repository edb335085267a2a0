"""The Triton release that serves: the one place that names it. A TensorRT plan must have been built in the same one."""

TRITON_RELEASE = "24.10"
# The TensorRT inside that release: https://docs.nvidia.com/deeplearning/frameworks/support-matrix
TENSORRT_VERSION = "10.5.0"
# NVIDIA's image of the release, with OpenCV and our pre- and post-processing in it.
TRITON_IMAGE = f"ghcr.io/gridbox/triton:{TRITON_RELEASE}-0.1.0"
