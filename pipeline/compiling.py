"""Compiles a workflow: its parameters' values are checked, and all but those of a run become constants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.step import publish
from components.store import s3_endpoint
from pipeline.catalogue import WORKFLOWS, definition
from pipeline.options import Backend, Options
from pipeline.parameters import Parameter, check_ranges


def check_arguments(pipeline: str, values: Mapping[str, Any]) -> None:
    """Checks values of a workflow's parameters; of other pipelines no ranges are known.

    Raises:
        UserError: A value is out of range, or a spec has an unknown placeholder.
    """
    if pipeline in WORKFLOWS:
        check_ranges(values, definition(pipeline).parameters)


def compile_to(
    pipeline: str, output: Path, profile: str, options: Options, values: Mapping[str, Any] | None = None
) -> None:
    """Compiles a workflow.

    Args:
        pipeline: Its name.
        output: The file to write.
        profile: Name of the profile whose values hold where `values` has none; empty for the workflow's own.
        options: Which stages there are.
        values: Of parameters: those of a run become the file's defaults, the others are bound.

    Raises:
        UserError: There is no such workflow or profile, or a value is out of range.
    """
    from pipeline.building import build
    from pipeline.compiled import dump
    from pipeline.transport import check_transport

    workflow = definition(pipeline)
    chosen = workflow.profile_values(profile or workflow.profile) | dict(values or {})
    check_ranges(chosen, workflow.parameters)
    check_transport(chosen)
    options.check(workflow, chosen)
    if options.placement.store_endpoint:
        s3_endpoint(options.placement.store_endpoint, "store_endpoint")
    complete = workflow.complete(profile, chosen)
    function = build(workflow, options, complete)
    _describe_inputs(function.pipeline_spec.root.input_definitions.parameters, workflow.parameters, options.backend)
    info, changed = function.pipeline_spec.pipeline_info, workflow.split(chosen)[1]
    if told := _told(changed):
        info.description = f"{info.description} Bound when it was compiled: {told}."
    with publish(output) as scratch:
        scratch.write_text(dump(function), encoding="utf-8")


def _describe_inputs(inputs: Any, declared: Mapping[str, Parameter], backend: Backend) -> None:  # noqa: ANN401
    """Completes kfp's declaration of the parameters: what each does, and the values to choose from."""
    from google.protobuf import struct_pb2

    for name, declaration in inputs.items():
        declaration.description = declared[name].help
        if backend is not Backend.v2_15:
            declaration.literals.extend(struct_pb2.Value(string_value=each) for each in declared[name].literals)


def _told(values: Mapping[str, Any]) -> str:
    """Says values in one line; of a text of many lines only that there is one."""
    shown = ((name, "(a text)" if "\n" in str(value) else value) for name, value in sorted(values.items()))
    return ", ".join(f"{name}={value}" for name, value in shown)
