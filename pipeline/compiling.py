"""Compiles a pipeline of ours: its parameters' values are checked, and all but those of a run become constants."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.step import UserError, publish
from components.store import s3_endpoint
from pipeline.options import Backend, Options

if TYPE_CHECKING:
    from pipeline.parameters import Parameter

PIPELINES = ("facedetect",)


def parameters_of(pipeline: str) -> Mapping[str, "Parameter"]:
    """Returns the parameters of a pipeline of ours, those of a run and those that are bound.

    Raises:
        UserError: There is no such pipeline.
    """
    if pipeline not in PIPELINES:
        raise UserError(
            f"{pipeline}: no such pipeline; there is {', '.join(PIPELINES)} (or give a compiled .yaml file)"
        )
    declared: Mapping[str, Parameter] = importlib.import_module(f"pipeline.{pipeline}_parameters").PARAMETERS
    return declared


def parameter_types(pipeline: str) -> dict[str, str]:
    """Returns the type of each parameter of a pipeline of ours, in Kubeflow's words."""
    return {name: each.kfp_type for name, each in parameters_of(pipeline).items()}


def split_values(pipeline: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of a run's parameters, and those of the parameters that are bound."""
    declared = parameters_of(pipeline)
    of_run = {name: value for name, value in values.items() if declared[name].is_of_run}
    return of_run, {name: value for name, value in values.items() if name not in of_run}


def check_arguments(pipeline: str, values: Mapping[str, Any]) -> None:
    """Checks values of a pipeline of ours; of other pipelines no ranges are known.

    Raises:
        UserError: A value is out of range, or a spec has an unknown placeholder.
    """
    if pipeline in PIPELINES:
        from pipeline.parameters import check_ranges

        check_ranges(values, parameters_of(pipeline))


def compile_to(
    pipeline: str, output: Path, profile: str, options: Options, values: Mapping[str, Any] | None = None
) -> None:
    """Compiles a pipeline.

    Args:
        pipeline: Its name.
        output: The file to write.
        profile: Name of the profile whose values hold where `values` has none.
        options: Which stages there are.
        values: Of parameters: those of a run become the file's defaults, the others are bound.

    Raises:
        UserError: There is no such pipeline or profile, or a value is out of range.
    """
    from pipeline.compiled import dump
    from pipeline.profiles import profile as profile_values
    from pipeline.transport import check_transport

    declared = parameters_of(pipeline)
    chosen = profile_values(profile) | dict(values or {})
    check_arguments(pipeline, chosen)
    check_transport(chosen)
    options.check(chosen)
    if options.placement.store_endpoint:
        s3_endpoint(options.placement.store_endpoint, "store_endpoint")
    complete = {name: each.default for name, each in declared.items()} | chosen
    function = importlib.import_module(f"pipeline.{pipeline}").define(options, complete)
    _declare_inputs(function.pipeline_spec.root.input_definitions.parameters, declared, options.backend)
    info, changed = function.pipeline_spec.pipeline_info, split_values(pipeline, chosen)[1]
    if told := _told(changed):
        info.description = f"{info.description} Bound when it was compiled: {told}."
    of_run, _ = split_values(pipeline, complete)
    with publish(output) as scratch:
        scratch.write_text(dump(function, of_run), encoding="utf-8")


def _declare_inputs(inputs: Any, declared: Mapping[str, "Parameter"], backend: Backend) -> None:  # noqa: ANN401
    """Completes kfp's declaration of the parameters: what each does, and the values to choose from."""
    from google.protobuf import struct_pb2

    for name, declaration in inputs.items():
        declaration.is_optional, declaration.description = True, declared[name].help
        if backend is not Backend.v2_15:
            declaration.literals.extend(struct_pb2.Value(string_value=each) for each in declared[name].literals)


def _told(values: Mapping[str, Any]) -> str:
    """Says values in one line; of a text of many lines only that there is one."""
    shown = ((name, "(a text)" if "\n" in str(value) else value) for name, value in sorted(values.items()))
    return ", ".join(f"{name}={value}" for name, value in shown)
