# The images of gridbox. Base images are arguments: mirror them, or pin them by digest.
#   docker build --target cpu -t ghcr.io/gridbox/gridbox:0.1.0 .
#   docker build --target triton -t ghcr.io/gridbox/triton:24.10-0.1.0 .
#   docker build --target client -t ghcr.io/gridbox/client:0.1.0 .
ARG BASE=python:3.11-slim-bookworm
ARG TRITON=nvcr.io/nvidia/tritonserver:24.10-py3

# --- cpu: what every stage of the pipelines runs in. No kfp inside: only whoever compiles needs it -------------------
FROM ${BASE} AS cpu
LABEL org.opencontainers.image.title="gridbox" \
      org.opencontainers.image.description="The open engine on a CPU: the stages of the pipelines" \
      org.opencontainers.image.source="https://github.com/gridbox/gridbox" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /opt/gridbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY components components
COPY pipeline pipeline
RUN pip install --no-cache-dir -c requirements.lock --extra-index-url https://download.pytorch.org/whl/cpu \
        ".[engine,serving]"

# Kubeflow mounts its volumes with the group of the pod; nothing is written into the image itself.
# A volume mounted on /models starts out as the user's.
RUN useradd --uid 10001 --create-home gridbox && install --directory --owner=10001 /models
USER 10001
WORKDIR /home/gridbox
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
CMD ["gridbox", "--help"]

# --- triton: NVIDIA's server and what the Python models before and after the network need ----------------------------
FROM ${TRITON} AS triton
LABEL org.opencontainers.image.title="gridbox Triton" \
      org.opencontainers.image.description="NVIDIA Triton with OpenCV and gridbox's grid code" \
      org.opencontainers.image.source="https://github.com/gridbox/gridbox"

# NumPy below 2: the Python backend of this release hands NumPy 2 empty outputs and wrong inputs, without an error.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir numpy==1.26.4 opencv-python-headless==4.11.0.86

WORKDIR /opt/gridbox
COPY components/__init__.py components/step.py components/
COPY components/formats/__init__.py components/formats/images.py components/formats/
COPY components/measure/__init__.py components/measure/boxes.py components/measure/
COPY components/grid components/grid
COPY components/serve/__init__.py components/serve/release.py components/serve/tensorrt.py components/serve/
COPY components/serve/models components/serve/models
# The Python backend takes no notice of PYTHONPATH, and KServe refuses it; a .pth file is found by every interpreter.
RUN python3 -c "import site; open(site.getsitepackages()[0] + '/gridbox.pth', 'w').write('/opt/gridbox\n')" \
    && python3 -c "import components.formats.images, components.grid.clustering, components.grid.decode"

# The user that NVIDIA's image has for this purpose.
USER 1000
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000 8001 8002

# --- client: JupyterLab with the demo notebook ------------------------------------------------------------------------
FROM ${BASE} AS client
LABEL org.opencontainers.image.title="gridbox client" \
      org.opencontainers.image.description="JupyterLab with gridbox's client of a Triton endpoint" \
      org.opencontainers.image.source="https://github.com/gridbox/gridbox" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /opt/gridbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY components components
COPY pipeline pipeline
RUN pip install --no-cache-dir -c requirements.lock ".[serving]" "jupyterlab>=4.4,<5"

RUN useradd --uid 10001 --create-home gridbox
COPY --chown=10001:10001 notebooks /home/gridbox/notebooks
USER 10001
WORKDIR /home/gridbox
# JupyterLab takes its token from JUPYTER_TOKEN and makes one up without it.
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--ServerApp.root_dir=/home/gridbox/notebooks"]
