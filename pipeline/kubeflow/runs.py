"""Starting runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.kubeflow.api import Kubeflow, Version
from pipeline.kubeflow.connection import Document, Refused
from pipeline.package import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a run or a schedule shall do.

    Attributes:
        name: How it is called in Kubeflow.
        package: The pipeline.
        version: Its uploaded version; None sends the pipeline along.
        arguments: Values of parameters that differ from the pipeline's defaults.
        experiment_id: Where it belongs.
        service_account: What its stages run as; empty for the installation's own.
    """

    name: str
    package: Package
    version: Version | None
    arguments: Mapping[str, Any]
    experiment_id: str
    service_account: str = ""

    def body(self) -> Document:
        """Returns the object to post."""
        body: Document = {
            "display_name": self.name,
            "experiment_id": self.experiment_id,
            "runtime_config": {"parameters": dict(self.arguments)},
        }
        if self.version:
            reference = {"pipeline_id": self.version.pipeline_id, "pipeline_version_id": self.version.id}
            body["pipeline_version_reference"] = reference
        else:
            body["pipeline_spec"] = self.package.document()
        return body | ({"service_account": self.service_account} if self.service_account else {})


def upload(api: Kubeflow, package: Package) -> tuple[Version, bool]:
    """Uploads a pipeline as a new version, unless this very content is there already.

    Returns:
        The version, and whether it is new.
    """
    pipeline = api.pipeline(package.name)
    if pipeline is None:
        described = str(package.spec["pipelineInfo"].get("description", ""))
        pipeline = api.create_pipeline(package.name, described)
    if known := api.version(pipeline, package.version_name):
        return known, False
    try:
        return api.upload_version(pipeline, package), True
    except Refused as error:
        # The same content was uploaded concurrently.
        known = api.version(pipeline, package.version_name) if error.status == 409 else None
        if known is None:
            raise
        return known, False
