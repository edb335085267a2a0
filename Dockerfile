# The open engine on a CPU: what every stage of the pipelines runs in. No kfp inside: only whoever compiles needs it.
#   docker build --target cpu -t ghcr.io/gridbox/gridbox:0.1.0 .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS cpu

WORKDIR /opt/gridbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY components components
COPY pipeline pipeline
RUN pip install --no-cache-dir -c requirements.lock --extra-index-url https://download.pytorch.org/whl/cpu ".[engine]"

# Kubeflow mounts its volumes with the group of the pod; nothing is written into the image itself.
RUN useradd --uid 10001 --create-home gridbox
USER 10001
WORKDIR /home/gridbox
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
CMD ["gridbox", "--help"]
