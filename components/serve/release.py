"""What serves: gridbox's and Triton's release, the image that holds both, and how its server is started.

The one place that names them; tests hold manifests, chart, Compose file and Dockerfile against it.
"""

# As in pyproject.toml. The models before and after the network are code of this release, half of it in the image.
GRIDBOX_VERSION = "0.1.0"
# Triton 2.71 with ONNX Runtime 1.27 and Python 3.12: the first release that has the fixes of all of NVIDIA's security
# bulletins known here (the last asks for "r26.07 or later"). A TensorRT plan must have been built in the same one.
# The server on this machine is another (`components.serve.wheel`: 24.10), and listens on the loopback interface only.
TRITON_RELEASE = "26.07"
# The TensorRT inside TRITON_RELEASE, as far as command lines and formats depend on it; the release says the rest.
TENSORRT_VERSION = "11"
# NVIDIA's image of the release, with OpenCV and our pre- and post-processing in it.
TRITON_IMAGE = f"ghcr.io/gridbox/triton:{TRITON_RELEASE}-{GRIDBOX_VERSION}"

# What only an administrator of the server would use, and an attacker to read its memory, load code or fill its disk.
# What a client needs stays open: health, metadata, configuration, inference.
RESTRICTED_INTERFACES = ("shared-memory", "model-repository", "statistics", "trace", "logging")
_RESTRICTION = f"{','.join(RESTRICTED_INTERFACES)}:administrator=$key"
# Triton can only ask for a header with a certain value. This one is random at each start and known to nobody.
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
# Fails when a process of a Python model has died. Triton stays "ready", answers every request to that model with an
# error, and never starts the process again; but neither does it ask how its child ended, so the kernel still lists it.
LIVENESS_COMMAND = ("sh", "-c", "! grep -qs '(triton_python_b) Z' /proc/[0-9]*/stat")
