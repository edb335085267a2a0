# Every target does its own set-up: a fresh Debian 12 with Python 3.11 and make is enough.
PYTHON ?= python3.11
VENV   ?= .venv
RUN    ?= # options for `make run`, for example RUN="--data DIR"
IMAGES ?= cpu gpu triton client
REGISTRY ?= # where `make images push` names and pushes images, for example REGISTRY=registry.example/team
BUILD  ?= # options of `docker build` for `make images`, for example BUILD="--build-arg BASE_IMAGE=MIRROR"

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c requirements.lock
# Without an NVIDIA GPU, PyTorch's CPU index (where it can be reached) saves some gigabytes of CUDA libraries.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null || $(PYTHON) -c "import urllib.request as r; \
	r.urlopen('$(CPU_INDEX)/torch/', timeout=4); print('--index-url $(CPU_INDEX)')" 2>/dev/null)

.PHONY: help run setup test test-long test-containers test-cluster bench lint images push wheelhouse clean
help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

run: $(VENV)/.run ## Train, prune, retrain, quantise and score a face detector here (synthetic faces; RUN="--data DIR").
	$(BIN)/gridbox run facedetect $(RUN)

setup: $(VENV)/.setup ## Install everything: the engine, the pipelines, tests and linters.

test: $(VENV)/.setup ## The quick tests, some minutes.
	$(BIN)/python -m pytest -m "not long and not containers" -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.setup ## The long proofs: full runs, kills in every stage.
	$(BIN)/python -m pytest -m long

test-containers: $(VENV)/.setup build/wheelhouse/.cpu ## The workflow in an image that is built offline (root).
	@command -v dockerd >/dev/null && command -v debootstrap >/dev/null || { \
		echo "Docker's daemon or debootstrap is missing: installing Debian's docker.io and debootstrap"; \
		apt-get update -qq && \
		RUNLEVEL=1 apt-get install -y -qq --no-install-recommends docker.io iptables debootstrap; } || \
		echo "they could not be installed: the tests will be skipped"
	$(BIN)/python -m pytest -m containers tests/test_containers.py

test-cluster: $(VENV)/.setup ## A Kubeflow and a KServe, by gridbox.toml and the kubeconfig (CHECKS="submit slow", WORKFLOW=…).
	WORKFLOW="$(WORKFLOW)" CHECKS="$(CHECKS)" $(BIN)/python -m pytest tests/cluster/suite.py --durations=0 \
		-o junit_family=xunit1 --junitxml=build/test-cluster/junit.xml

bench: $(VENV)/.setup ## The benchmarks; each prints a ratio from one interleaved run.
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

lint: $(VENV)/.setup ## Style, types, doors between the rooms, Python 3.8 where it is promised.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --no-tips --target=3.8- --violations components/step.py components/tao \
		components/detectnet_v2/stage.py

images: ## The container images; those that cannot be built are named at the end (IMAGES="cpu client", BUILD=…).
	PYTHON=$(PYTHON) REGISTRY=$(REGISTRY) containers/build.sh $(IMAGES) -- $(BUILD)

push: ## Push them, and write their digests into gridbox.toml and manifests: make images push REGISTRY=registry.example/team
	$(PYTHON) containers/push.py "$(REGISTRY)" $(IMAGES)

wheelhouse: $(IMAGES:%=build/wheelhouse/.%) ## What the images install, for a build without a network (IMAGES=…).

clean: ## Remove runs and caches, not the virtual environment.
	rm -rf runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "Python's venv module is missing: installing Debian's python3-venv"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; }
	$(PYTHON) -m venv $(VENV)

build/wheelhouse/.%: Dockerfile pyproject.toml requirements.lock containers/wheelhouse.py | $(BIN)/python
	$(BIN)/python containers/wheelhouse.py $*
	@touch $@

$(VENV)/.run: $(BIN)/python pyproject.toml requirements.lock
	@index="$(TORCH_INDEX)"; test -z "$$index" || { \
		echo "PyTorch from its own index, everything else from PyPI"; $(PIP) --no-deps $$index torch; }
	$(PIP) --editable '.[engine,pipeline]'
	@touch $@

$(VENV)/.setup: $(VENV)/.run
	$(PIP) --editable '.[engine,pipeline,serving,deploy,test,lint]'
	@ldconfig -p | grep -q 'libpython3\.11\.so\.1\.0' || { echo "Triton's Python backend needs libpython3.11: installing it"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends libpython3.11; } || \
		echo "libpython3.11 could not be installed: the tests of the local Triton will be skipped"
	@command -v chromium >/dev/null || { echo "the report is tested in a browser: installing Debian's chromium"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "chromium could not be installed: the test of the report in a browser will be skipped"
	$(PIP) --no-deps nvidia-pytriton  # its tritonserver only: its own pins would hold everything else back
	@touch $@
