"""A compiled pipeline as Kubeflow takes it: for a run, for an upload, or as custom resources."""

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.step import UserError, publish

Document = dict[str, Any]

# Between the keys of the tasks that lie in one another.
SEPARATOR = "."
RESOURCE_VERSION = "pipelines.kubeflow.org/v2beta1"
DIGEST_LETTERS = 12
# Those in C where PyYAML has them: ten times as fast.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled pipeline.

    Attributes:
        origin: Where it comes from, for messages.
        spec: The pipeline's specification.
        platform: What is said of Kubernetes beside it: secrets, node selectors, volumes; often empty.
    """

    origin: str
    spec: Document
    platform: Document

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def version_name(self) -> str:
        """A name for exactly this content: uploading the same twice finds the first."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LETTERS]}"

    @property
    def parameters(self) -> dict[str, Document]:
        """By name, what is declared of each parameter: its type, its default, its description."""
        return dict((self.spec["root"].get("inputDefinitions") or {}).get("parameters") or {})

    @property
    def types(self) -> dict[str, str]:
        """By name, the type of each parameter, in the words of `compiled.CompiledPipeline`."""
        return {name: str(declared.get("parameterType", "STRING")) for name, declared in self.parameters.items()}

    def document(self) -> Document:
        """Returns the object that the API calls a pipeline specification."""
        return {"pipeline_spec": self.spec, "platform_spec": self.platform} if self.platform else self.spec

    def text(self) -> bytes:
        """Returns the YAML file to upload."""
        documents = [self.spec, self.platform] if self.platform else [self.spec]
        return str(yaml.dump_all(documents, Dumper=DUMPER, sort_keys=True)).encode()

    def stages(self) -> dict[str, str]:
        """Returns the tasks that run a container: by their path (`learn.train`), how `gridbox run` calls them here.

        Two that are called the same in different sub-pipelines are told apart by their path.
        """
        found = dict(_stages(self.spec["root"]["dag"], self.spec.get("components") or {}, ""))
        often = {name for name, count in Counter(found.values()).items() if count > 1}
        return {path: path if name in often else name for path, name in found.items()}

    def without_cache(self) -> "Package":
        """Returns the same pipeline without Kubeflow's cache."""
        spec = copy.deepcopy(self.spec)
        for component in (spec["root"], *(spec.get("components") or {}).values()):
            for task in (component.get("dag") or {}).get("tasks", {}).values():
                task["cachingOptions"] = {}  # what kfp writes for set_caching_options(False)
        return Package(self.origin, spec, self.platform)


def read(path: Path) -> Package:
    """Reads a compiled pipeline from a file.

    Raises:
        UserError: It cannot be read, or is something else.
    """
    try:
        documents = [each for each in yaml.load_all(path.read_text(encoding="utf-8"), Loader=LOADER) if each]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a compiled pipeline: this is no YAML: {' '.join(str(error).split())[:200]}"
        ) from error
    if documents and isinstance(documents[0], dict) and documents[0].get("kind") in ("Pipeline", "PipelineVersion"):
        raise UserError(f"{path}: these are custom resources for kubectl; compile without --kubernetes")
    return from_documents(str(path), *documents[:2])


def from_documents(origin: str, spec: Any = None, platform: Any = None) -> Package:  # noqa: ANN401 - from outside
    """Makes a package of what a file or the API holds.

    Raises:
        UserError: This is no compiled pipeline.
    """
    if isinstance(spec, dict) and isinstance(spec.get("pipeline_spec"), dict):  # as the API gives both back
        spec, platform = spec["pipeline_spec"], spec.get("platform_spec")
    package = Package(origin, spec or {}, platform or {})
    try:
        _ = package.name, package.stages(), package.types, package.platform.get("platforms")
        _ = package.spec["deploymentSpec"]["executors"].values()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{origin}: not a compiled pipeline (make one with `gridbox compile`)") from error
    return package


def resources(package: Package) -> str:
    """Returns a pipeline as custom resources: for installations that keep pipelines in Kubernetes, and for GitOps.

    Their namespace is left to `kubectl -n` and to kustomize.
    """
    described = {"description": text} if (text := package.spec["pipelineInfo"].get("description")) else {}
    pipeline = {
        "apiVersion": RESOURCE_VERSION,
        "kind": "Pipeline",
        "metadata": {"name": package.name},
        "spec": {"displayName": package.name, **described},
    }
    version = {
        "apiVersion": RESOURCE_VERSION,
        "kind": "PipelineVersion",
        "metadata": {"name": package.version_name},
        "spec": {
            "displayName": package.version_name,
            "pipelineName": package.name,
            "pipelineSpec": package.spec,
            **({"platformSpec": package.platform} if package.platform else {}),
            **described,
        },
    }
    return str(yaml.dump_all([pipeline, version], Dumper=DUMPER, sort_keys=True))


def write_resources(file: Path) -> None:
    """Replaces a compiled file by the pipeline's custom resources."""
    text = resources(read(file))
    with publish(file) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _stages(dag: Document, components: Mapping[str, Document], above: str) -> list[tuple[str, str]]:
    stages: list[tuple[str, str]] = []
    for key, task in dag["tasks"].items():
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            stages += _stages(component["dag"], components, f"{above}{key}{SEPARATOR}")
        else:
            shown = str((task.get("taskInfo") or {}).get("name") or key)
            stages.append((above + str(key), stage_name(shown)))
    return stages


def stage_name(shown: str) -> str:
    """Returns what a stage is called here, and what its folder is, by the name that Kubeflow shows."""
    return re.sub(r"[^a-z0-9]+", "-", shown.lower()).strip("-")
