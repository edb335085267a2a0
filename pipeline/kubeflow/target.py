"""What a command shall run: a pipeline of ours, a compiled file, or what has been uploaded; and with which values."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.step import UserError

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Kubeflow, Version
    from pipeline.kubeflow.package import Package
    from pipeline.options import Options

PipelineName = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="The pipeline facedetect, or a compiled YAML file.")
]
Profile = Annotated[str, typer.Option(help="tao, cpu, cpu-real or micro: whose values count; tao where none is said.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a pipeline parameter; @FILE stands for its content."),
]
Data = Annotated[str, typer.Option(help="The data: an https:// or s3:// URI that the cluster can read.")]
Uploaded = Annotated[
    bool, typer.Option("--uploaded", help="PIPELINE names an uploaded pipeline: its newest version, or NAME@VERSION.")
]
Experiment = Annotated[str, typer.Option(help="The experiment it belongs to.", show_default=False)]
ServiceAccount = Annotated[str, typer.Option(help="What the stages run as.", show_default=False)]


def chosen(
    api: "Kubeflow", pipeline: str, profile: str, uploaded: bool, options: "Options"
) -> tuple["Package", "Version | None"]:
    """Returns the pipeline to run, and its version where an uploaded one is wanted.

    Raises:
        UserError: There is none.
    """
    if not uploaded:
        return package_of_name(pipeline, profile, options), None
    from pipeline.kubeflow.package import from_documents

    name, _, wanted = pipeline.partition("@")
    found = api.pipeline(name)
    if found is None:
        raise UserError(f"{name}: no pipeline of this name is uploaded; see gridbox list pipelines")
    version = api.version(found, wanted)
    if version is None:
        raise UserError(f"{pipeline}: no such version is uploaded; upload one with gridbox upload")
    return from_documents(f"version {version.name}", version.spec), version


def package_of_name(pipeline: str, profile: str, options: "Options") -> "Package":
    """Returns a pipeline of ours, compiled with a profile's values as defaults, or that of a compiled file.

    Raises:
        UserError: There is none, or it is no compiled pipeline.
    """
    from pipeline import compiling as cli
    from pipeline.kubeflow.package import read

    if pipeline not in cli.PIPELINES and Path(pipeline).suffix in (".yaml", ".yml"):
        return read(Path(pipeline))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pipeline.yaml")
        cli.compile_to(pipeline, file, profile or "tao", options)
        return read(file)


def argument_values(
    package: "Package", pipeline: str, data: str, profile: str, assignments: Sequence[str] | None, uploaded: bool
) -> dict[str, Any]:
    """Returns checked values of the parameters that differ from the pipeline's defaults.

    Raises:
        UserError: A name or value is wrong, or a path of this machine is given where the cluster must read it.
    """
    from pipeline import compiling as cli
    from pipeline.parameters import parse_assignments
    from pipeline.profiles import profile as profile_values

    is_compiled_here = pipeline in cli.PIPELINES and not uploaded
    values = dict(profile_values(profile)) if profile and not is_compiled_here else {}
    values |= {"data_uri": data} if data else {}
    values |= parse_assignments(assignments or (), package.types)
    for unknown in sorted(set(values) - set(package.types)):
        raise UserError(f"{package.origin}: the pipeline has no parameter {unknown}")
    for name, value in values.items():
        if name.endswith("_uri") and value and "://" not in str(value):
            raise UserError(
                f"{name}: {value} is a path here, which the cluster does not see; give an s3:// or https:// URI"
            )
    cli.check_arguments(package.name, values)
    return values
