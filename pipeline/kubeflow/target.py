"""What a command shall run: a pipeline of ours, a compiled file, or what has been uploaded; and with which values."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.step import UserError
from pipeline.arguments import PROFILES
from pipeline.catalogue import DATA, NAMES, WORKFLOWS, definition, profile_values
from pipeline.parameters import parse_assignments

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Kubeflow, Version
    from pipeline.options import Options
    from pipeline.package import Package

Profile = Annotated[
    str, typer.Option(help=f"The profile whose values count; by default the workflow's first: {PROFILES}.")
]
Data = Annotated[str, typer.Option(help="The data: an https:// or s3:// URI that the cluster can read.")]
Uploaded = Annotated[
    bool, typer.Option("--uploaded", help="PIPELINE names an uploaded pipeline: its newest version, or NAME@VERSION.")
]
Experiment = Annotated[str, typer.Option(help="The experiment it belongs to.", show_default=False)]
ServiceAccount = Annotated[str, typer.Option(help="What the stages run as.", show_default=False)]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every stage, without Kubeflow's cache.")]


@dataclass(frozen=True, slots=True)
class Target:
    """What to run.

    Attributes:
        package: The pipeline.
        version: Its uploaded version; None where it is sent along, or uploaded first.
        arguments: Values of its run parameters that differ from its defaults.
    """

    package: "Package"
    version: "Version | None"
    arguments: Mapping[str, Any]

    def without_cache(self) -> "Target":
        """Returns the same without Kubeflow's cache.

        Raises:
            UserError: It has been uploaded, and so is as it is.
        """
        if self.version:
            raise UserError(f"--no-cache: an uploaded pipeline keeps its cache; give its compiled file, or {NAMES}")
        return replace(self, package=self.package.without_cache())


def compiled_target(
    pipeline: str, options: "Options", data: str = "", profile: str = "", assignments: Sequence[str] | None = None
) -> Target:
    """Returns a pipeline of ours, compiled with a profile's values, or that of a compiled file. No request is made.

    Parameters of ours that no form of a run shows are bound in the file that is compiled.

    Raises:
        UserError: There is none, or it is no compiled pipeline, or a name or value is wrong.
    """
    from pipeline.compiling import check_arguments
    from pipeline.package import read

    if _is_file(pipeline):
        package = read(Path(pipeline))
        return Target(package, None, argument_values(package, data, profile, assignments))
    given = ({DATA: data} if data else {}) | _parsed(pipeline, assignments)
    arguments, bound = definition(pipeline).split(given)
    package = _compiled(pipeline, options, profile, bound)
    check_arguments(pipeline, arguments)
    definition(pipeline).complete(profile, given)
    _check_readable(package, arguments)
    return Target(package, None, arguments)


def bound_package(pipeline: str, options: "Options", profile: str, assignments: Sequence[str] | None) -> "Package":
    """Returns a pipeline to upload: all values that are given are bound in it, or its defaults.

    Raises:
        UserError: There is none, or it is no compiled pipeline, or a name or value is wrong.
    """
    from pipeline.package import read

    if not _is_file(pipeline):
        return _compiled(pipeline, options, profile, _parsed(pipeline, assignments))
    if assignments:
        raise UserError(f"--set: {pipeline} is compiled already; set values when compiling, or for a run of it")
    return read(Path(pipeline))


def uploaded_target(
    api: "Kubeflow", pipeline: str, data: str, profile: str, assignments: Sequence[str] | None
) -> Target:
    """Returns an uploaded pipeline: its newest version, or NAME@VERSION.

    Raises:
        UserError: There is none, or a name or value is wrong.
    """
    from pipeline.package import from_documents

    name, _, wanted = pipeline.partition("@")
    found = api.pipeline(name)
    if found is None:
        raise UserError(f"{name}: no pipeline of this name is uploaded; see gridbox list pipelines")
    version = api.version(found, wanted)
    if version is None:
        raise UserError(f"{pipeline}: no such version is uploaded; upload one with gridbox upload")
    package = from_documents(f"version {version.name}", version.spec)
    return Target(package, version, argument_values(package, data, profile, assignments))


def argument_values(package: "Package", data: str, profile: str, assignments: Sequence[str] | None) -> dict[str, Any]:
    """Returns checked values of the parameters that differ from a compiled pipeline's defaults.

    Raises:
        UserError: A name or value is wrong, or is bound in the file, or a path of this machine is given where the
            cluster must read it.
    """
    from pipeline.compiling import check_arguments

    types = package.types
    known = definition(package.name).types if package.name in WORKFLOWS else {}
    values = profile_values(package.name, profile) if profile else {}
    values |= {DATA: data} if data else {}
    values |= parse_assignments(assignments or (), {**known, **types})
    for name in sorted(set(values) - set(types)):
        if name in known:
            raise UserError(f"{name}: is bound in {package.origin}; compile, or submit {package.name}, with its value")
        raise UserError(f"{package.origin}: the pipeline has no parameter {name}")
    check_arguments(package.name, values)
    _check_readable(package, values)
    return values


def _check_readable(package: "Package", values: Mapping[str, Any]) -> None:
    """Refuses what would not arrive, and paths of this machine; a folder that a volume claim mounts is the stages'."""
    from pipeline.kubeflow.needs import mounts
    from pipeline.transport import check_transport

    check_transport(values)
    folders = mounts(package)
    for name, value in values.items():
        if not name.endswith("_uri") or not value or "://" in str(value):
            continue
        if not any(str(value) == folder or str(value).startswith(f"{folder}/") for folder in folders):
            raise UserError(
                f"{name}: {value} is a path here, which the cluster does not see; give an s3:// or https:// URI"
                + (f", or a path below {' or '.join(sorted(folders))}" if folders else ", or set data_claim")
            )


def _is_file(pipeline: str) -> bool:
    return pipeline not in WORKFLOWS and Path(pipeline).suffix in (".yaml", ".yml")


def _parsed(pipeline: str, assignments: Sequence[str] | None) -> dict[str, Any]:
    return parse_assignments(assignments, definition(pipeline).types) if assignments else {}


def _compiled(pipeline: str, options: "Options", profile: str, bound: dict[str, Any]) -> "Package":
    from pipeline.compiling import compile_to
    from pipeline.package import read

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pipeline.yaml")
        compile_to(pipeline, file, profile, options, bound)
        return read(file)
