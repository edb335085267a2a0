# The images of gridbox. All of them: make images. One alone: docker build --target cpu -t NAME . (BuildKit is needed;
# in Docker 20.10 to 22 it is there with DOCKER_BUILDKIT=1.) Without a network, from wheels gathered beforehand:
#   make wheelhouse; make images BUILD="--network none --build-arg PIP_NO_INDEX=1"
#
# Base images, here and nowhere else. A mirror of yours: --build-arg BASE_IMAGE=…, or .env for Docker Compose. A release
# pins them by digest, behind the tag, as NAME:TAG@sha256:…; the registry is asked for it with
#   docker buildx imagetools inspect NAME:TAG --format '{{.Manifest.Digest}}'
# No digest has been asked for yet: until somebody with access to the registries has, the tags stand alone.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3

# --- what pip installs from: the lists, and the wheels of a build without a network (containers/wheelhouse.py)
FROM scratch AS requirements
COPY pyproject.toml requirements.lock build/wheelhouse* /

FROM scratch AS code
COPY pyproject.toml README.md LICENSE /
COPY components /components
COPY pipeline /pipeline

# --- python: what cpu, gpu and client share. Nothing is written but to /tmp, so the root may be read-only and the user
# --- any other; no ENTRYPOINT, since Kubeflow gives the whole command
FROM ${BASE_IMAGE} AS python
ARG BASE_IMAGE
LABEL org.opencontainers.image.source="https://github.com/gridbox/gridbox" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# pip's own settings, for the build only: no index at all, or another one.
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
ARG PIP_NO_CACHE_DIR=1
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_ROOT_USER_ACTION=ignore
# A volume mounted on /models starts out as the user's, whichever image mounts it first: the triton image does the same.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp gridbox && install --directory --owner=10001 /models
WORKDIR /tmp
ENV HOME=/tmp TMPDIR=/tmp XDG_CACHE_HOME=/tmp/.cache TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/torchinductor \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# --- cpu: what every stage of the pipelines runs in. No kfp inside: only whoever compiles needs it. In all three,
# --- what gridbox needs comes first: that layer is large and changes only with pyproject.toml and requirements.lock
FROM python AS cpu
LABEL org.opencontainers.image.title="gridbox" \
      org.opencontainers.image.description="The open engine on a CPU: the stages of the pipelines"
# PyTorch without CUDA, and nothing else, comes from an index of its own.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=requirements,target=/requirements,rw touch /requirements/README.md /requirements/LICENSE && \
    pip install --find-links /requirements/cpu --index-url "${TORCH_INDEX}" --no-deps \
        --constraint /requirements/requirements.lock torch && \
    pip install --find-links /requirements/cpu \
        --constraint /requirements/requirements.lock "/requirements[engine,serving,deploy]"
RUN --mount=type=bind,from=requirements,target=/requirements --mount=type=bind,from=code,target=/code,rw \
    pip install --find-links /requirements/cpu --no-deps --force-reinstall /code
USER 10001
CMD ["gridbox", "--help"]

# --- gpu: the same engine with PyTorch's CUDA build, which brings CUDA along; the driver is the node's
FROM python AS gpu
LABEL org.opencontainers.image.title="gridbox on a GPU" \
      org.opencontainers.image.description="The open engine with CUDA: the stages of the pipelines that train"
RUN --mount=type=bind,from=requirements,target=/requirements,rw touch /requirements/README.md /requirements/LICENSE && \
    pip install --find-links /requirements/gpu \
        --constraint /requirements/requirements.lock "/requirements[engine,serving,deploy]"
RUN python3 -c "import torch; assert torch.version.cuda, 'the index or the wheelhouse has a PyTorch without CUDA'"
RUN --mount=type=bind,from=requirements,target=/requirements --mount=type=bind,from=code,target=/code,rw \
    pip install --find-links /requirements/gpu --no-deps --force-reinstall /code
# What NVIDIA's container toolkit mounts from the node.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
CMD ["gridbox", "--help"]

# --- client: JupyterLab with the demo notebook
FROM python AS client
LABEL org.opencontainers.image.title="gridbox client" \
      org.opencontainers.image.description="JupyterLab with gridbox's client of a Triton endpoint"
RUN --mount=type=bind,from=requirements,target=/requirements,rw touch /requirements/README.md /requirements/LICENSE && \
    pip install --find-links /requirements/client \
        --constraint /requirements/requirements.lock "/requirements[serving]" "jupyterlab"
RUN --mount=type=bind,from=requirements,target=/requirements --mount=type=bind,from=code,target=/code,rw \
    pip install --find-links /requirements/client --no-deps --force-reinstall /code
COPY notebooks /opt/gridbox/notebooks
USER 10001
# The notebooks are copied to where they can be changed; images are mounted on /images. JupyterLab takes its token from
# JUPYTER_TOKEN and makes one up without it.
CMD ["sh", "-ec", "mkdir -p /tmp/notebooks && cp /opt/gridbox/notebooks/* /tmp/notebooks/ && \
    ln -sfn /images /tmp/notebooks/images && \
    exec jupyter lab --ip=0.0.0.0 --port=8888 --no-browser --ServerApp.root_dir=/tmp/notebooks"]

# --- triton: NVIDIA's server and what the Python models before and after the network need
FROM ${TRITON_IMAGE} AS triton
ARG TRITON_IMAGE
LABEL org.opencontainers.image.title="gridbox Triton" \
      org.opencontainers.image.description="NVIDIA Triton with OpenCV and gridbox's grid code" \
      org.opencontainers.image.source="https://github.com/gridbox/gridbox" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${TRITON_IMAGE}"
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
# The versions with which a model is scored, OpenCV's above all: it decodes and resizes here, too. NumPy 2 is safe, since
# models take and give tensors by DLPack (components/serve/models/tensors.py). ONNX is for plans in half precision.
RUN --mount=type=bind,from=requirements,target=/requirements PIP_BREAK_SYSTEM_PACKAGES=1 \
    pip install --no-cache-dir --ignore-installed --find-links /requirements/triton \
        --constraint /requirements/requirements.lock "numpy" "opencv-python-headless" "onnx"

WORKDIR /opt/gridbox
COPY components/__init__.py components/step.py components/
COPY components/formats/__init__.py components/formats/images.py components/formats/
COPY components/measure/__init__.py components/measure/boxes.py components/measure/
COPY components/decode components/decode
COPY components/serve/__init__.py components/serve/release.py components/serve/tensorrt.py \
    components/serve/half_precision.py components/serve/
COPY components/serve/models components/serve/models
COPY components/vision/__init__.py components/vision/inputs.py components/vision/threads.py components/vision/
# The Python backend takes no notice of PYTHONPATH, and KServe refuses it; a .pth file is found by every interpreter.
RUN python3 -c "import site; open(site.getsitepackages()[0] + '/gridbox.pth', 'w').write('/opt/gridbox\n')" \
    && python3 -m compileall -q components \
    && python3 -c "import components.formats.images, components.decode.grid, components.vision.inputs" \
    && python3 -c "import components.serve.half_precision"

RUN install --directory --owner=10001 /models
# The user that NVIDIA's image has for this purpose.
USER 1000
ENV HOME=/tmp TMPDIR=/tmp OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000 8001 8002
