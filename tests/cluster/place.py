"""The cluster under test, and what the checks share: a served first version, and where everything is."""

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from cluster import serving, workflow
from cluster.bench import Bench
from cluster.commands import Kubectl, follow, gridbox
from pipeline.package import read

SERVICE = "gridbox-test"
MINUTES = 60.0


@dataclass
class Place:
    """One cluster.

    Attributes:
        settings: Of the suite.
        configuration: Of gridbox.
        workflow: The workflow that is run.
        folder: For files.
        state: What an earlier call has left on purpose.
    """

    settings: object
    configuration: object
    workflow: str
    folder: Path
    state: dict

    @cached_property
    def kubectl(self):
        """`kubectl` for this cluster."""
        return Kubectl(self.configuration.settings.context)

    @cached_property
    def has_kserve(self):
        """Whether there is a KServe; without one, nothing is deployed."""
        return self.kubectl.get("/apis/serving.kserve.io/v1beta1") is not None

    @property
    def runs(self):
        """The namespace in which runs run."""
        return self.configuration.settings.namespace or "kubeflow"

    @property
    def account(self):
        """The account that stages run as."""
        given = self.configuration.settings
        return given.service_account or ("default-editor" if given.namespace else "pipeline-runner")

    @property
    def namespace(self):
        """The namespace in which models are served."""
        return self.settings.namespace

    @property
    def store(self):
        """Below which this suite publishes, and nobody else."""
        return f"{self.settings.store.rstrip('/')}/{self.namespace}"

    @property
    def triton(self):
        """The image that serves."""
        return self.configuration.images.triton

    def seconds(self, usual):
        """Returns how long something may take."""
        return self.settings.seconds(usual)

    def values(self, **changed):
        """Returns `--set` for the workflow: served in a namespace of the suite's, small, and never refused."""
        wanted = {
            "deploy_target": "kserve" if self.has_kserve else "manifest",
            "deploy_base": self.store,
            "deploy_name": SERVICE,
            "deploy_namespace": self.namespace,
            "deploy_backend": self.settings.backend,
            "deploy_image": self.triton,
            "deploy_cpu": self.settings.cpu,
            "deploy_memory": self.settings.memory,
            "deploy_timeout": f"{self.seconds(5 * MINUTES):g}",
            # Pictures that nobody has drawn before: a first run computes everything.
            "data_seed": str(self.state.setdefault("seed", int(time.time()))),
            # Nothing that trains for seconds is better than its neighbour for certain.
            "deploy_max_points_lost": "100",
            "deploy_accept_incomparable": "true",
        } | changed
        return [word for name, value in wanted.items() for word in ("--set", f"{name}={value}")]

    @cached_property
    def package(self):
        """The workflow as compiled for this cluster."""
        file = self.folder / "workflow.yaml"
        gridbox("compile", self.workflow, "--profile", self.settings.profile, *self.values(), "-o", file).ok()
        return read(file)

    @cached_property
    def cacheable(self):
        """The tasks whose results Kubeflow may take from its cache."""
        components = self.package.spec["components"]
        dags = [each["dag"] for each in (self.package.spec["root"], *components.values()) if "dag" in each]
        return {
            name
            for dag in dags
            for name, task in dag["tasks"].items()
            if task.get("cachingOptions", {}).get("enableCache")
            and "executorLabel" in components[task["componentRef"]["name"]]
        }

    def submit(self, name, until=None, cwd=None, **changed):
        """Submits the workflow and follows it; each sample is (stages ended, bytes of the Workflow)."""

        def look(followed):
            found = workflow.find(self.kubectl, self.runs, followed.run_id)
            return (len(ended_stages(followed.text)), workflow.size(found)) if found else None

        words = ("submit", self.workflow, "--profile", self.settings.profile, *self.values(**changed))
        words = (*words, "--name", f"{SERVICE}-{name}")
        return follow(*words, look=look, timeout=self.seconds(40 * MINUTES), until=until, cwd=cwd)

    def workflow_of(self, run_id):
        """Returns the Argo Workflow of a run."""
        return workflow.find(self.kubectl, self.runs, run_id)

    def service(self):
        """Returns the InferenceService, or None."""
        return serving.service(self.kubectl, self.namespace, SERVICE)

    def keep(self, **values):
        """Remembers something for a later call."""
        self.state.update(values)
        (self.folder / "state.json").write_text(json.dumps(self.state, indent=1))

    def client(self, bench):
        """Returns a client that asks the served model all the time."""
        return bench.client(self.service().url, self.settings.model)

    def bench(self):
        """Returns the pod from which commands run inside the cluster."""
        return Bench(
            self.kubectl, self.runs, self.account, self.configuration.images.open, self.configuration.placement
        )

    def deploy(self, bench, fault, image="", canary=0, timeout=5 * MINUTES):
        """Publishes a version with a fault and deploys it from the bench.

        Returns:
            The command that has ended, when it ended by the bench's clock, and the version's digest.
        """
        folder = f"/tmp/{fault}-{os.urandom(4).hex()}"
        digest = bench.script("version", self.service().storage_uri, fault, folder)["digest"]
        options = {
            "published": f"{folder}/published", "evaluation": f"{folder}/evaluation",
            "deployment": f"{folder}/deployment", "target": "kserve", "name": SERVICE, "namespace": self.namespace,
            "image": image or self.triton, "cpu": self.settings.cpu, "memory": self.settings.memory,
            "max-points-lost": 100, "canary-percent": canary, "timeout": self.seconds(timeout),
        }  # fmt: skip
        words = " ".join(f"--{name}={value}" for name, value in options.items())
        command = f"gridbox serve deploy --accept-incomparable {words}"
        return *bench.timed(command, timeout=self.seconds(timeout) + 120), digest

    def left(self):
        """Yields what is left in the cluster."""
        yield f"runs named {SERVICE}-… and the uploaded pipeline {self.workflow} in Kubeflow"
        if self.settings.keep:
            yield f"namespace {self.namespace} and objects below {self.store}, as asked (TEST_CLUSTER_KEEP)"


def ended_stages(text):
    """Returns the stages of which `submit` has said that they ended, in their order."""
    return list(dict.fromkeys(re.findall(r"^\[ *\d+/\d+\] ([\w-]+): (?:done|cached)", text, re.MULTILINE)))


def toml_with_claim(configuration_file, claim):
    """Returns the text of a settings file in which training keeps its checkpoints in a claim."""
    text = Path(configuration_file).read_text(encoding="utf-8") if configuration_file else ""
    lines = [line for line in text.splitlines() if not line.strip().startswith("checkpoint_claim")]
    with contextlib.suppress(ValueError):
        lines.insert(lines.index("[placement]") + 1, f'checkpoint_claim = "{claim}"')
        return "\n".join(lines) + "\n"
    return "\n".join([*lines, "[placement]", f'checkpoint_claim = "{claim}"', ""])


def gateway_api(kubectl):
    """Whether this KServe routes through Gateway API, without which a canary gets no share of the traffic."""
    path = "/api/v1/configmaps?fieldSelector=metadata.name%3Dinferenceservice-config"
    (found,) = kubectl.get(path)["items"]
    return yaml.safe_load(found["data"]["ingress"]).get("enableGatewayApi") is True
