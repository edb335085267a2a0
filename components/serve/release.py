"""What serves: gridbox's and Triton's release, the image that holds both, and how its server is started.

The one place that names them; tests hold manifests, chart, Compose file and Dockerfile against it.
"""

# Of pyproject.toml. The models before and after the network are this release's code, in the repository and in the image.
GRIDBOX_VERSION = "0.1.0"
# The first release with every fix that NVIDIA's security bulletins of 2025 and 2026 name, and the newest whose source was
# read: Triton 2.71, ONNX Runtime 1.27, Python 3.12. A TensorRT plan must have been built in the same one.
TRITON_RELEASE = "26.07"
# Of the wheel nvidia-pytriton, for this machine's loopback interface only; there is no later one.
WHEEL_RELEASE = "24.10"
# The TensorRT inside TRITON_RELEASE, as far as command lines and formats depend on it; the release says the rest.
TENSORRT_VERSION = "11"
# NVIDIA's image of the release, with OpenCV and our pre- and post-processing in it.
TRITON_IMAGE = f"ghcr.io/gridbox/triton:{TRITON_RELEASE}-{GRIDBOX_VERSION}"

# What only an administrator of the server would use. Whoever could, could read memory of the server's, load code or fill
# disks; what a client needs (health, metadata, configuration, inference) stays open.
RESTRICTED_INTERFACES = ("shared-memory", "model-repository", "statistics", "trace", "logging")
_RESTRICTION = f"{','.join(RESTRICTED_INTERFACES)}:administrator=$key"
# Triton can only ask for a header with a certain value. This one is drawn at each start, and nobody is told it.
_START = (
    "read -r key </proc/sys/kernel/random/uuid && "
    f'exec tritonserver "--http-restricted-api={_RESTRICTION}" "--grpc-restricted-protocol={_RESTRICTION}" "$@"'
)
# How a server is started wherever others than its owner reach it; where models lie and ports follow.
SERVER_ARGUMENTS = (
    "sh",
    "-c",
    _START,
    "tritonserver",
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--exit-timeout-secs=30",
)
