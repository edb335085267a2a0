"""The command `gridbox`. Imports are late: an image that runs a stage has no kfp, and `--help` should be quick."""

import importlib
import json
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import components
from components import program
from components.step import StageError, UserError, write_json
from pipeline.arguments import PROFILES, Assignments, PipelineName, Workflow, WorkflowCommand
from pipeline.catalogue import DATA, PUBLISHED, TARGET, WORKFLOWS, definition, profile_values
from pipeline.kubeflow import commands as kubeflow
from pipeline.kubeflow.session import Form, Output, document, table
from pipeline.options import Engine, Engines, Options, parse_engines

if TYPE_CHECKING:
    from pipeline.local import RunSettings, StageFailure
    from pipeline.serving import RunServer

# By the word after `gridbox`, the module whose typer application it calls. A family's is found by its folder.
_COMMANDS = sorted(Path(components.__file__).parent.glob("*/commands.py"))
FAMILIES = {
    **{file.parent.name: f"components.{file.parent.name}.commands" for file in _COMMANDS},
    "compare": "components.evaluate.compare_command",
    "detect": "components.serve.detect_command",
    "store": "components.publication_commands",
    "preflight": "pipeline.preflight",
}
DOUBLE = "tao-double"

app = typer.Typer(
    name="gridbox",
    help="NVIDIA TAO's face workflows as portable pipelines: compile for Kubeflow, or run here.",
    epilog="The stages' own programs: gridbox " + ", ".join(FAMILIES) + " (each with --help).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Without a name of its own, so that `gridbox submit` is one of this application's commands.
app.add_typer(kubeflow.app)


def main() -> None:
    """Entry point of the command."""
    argv = sys.argv[1:]
    if argv and argv[0] in FAMILIES:
        commands = importlib.import_module(FAMILIES[argv[0]])
        words = argv[1:] or [*filter(None, [getattr(commands, "DEFAULT_COMMAND", "")])]
        sys.exit(program.run(commands.app, words, f"gridbox {argv[0]}"))
    sys.exit(program.run(app, argv, "gridbox"))


@app.command("compile", cls=WorkflowCommand)
def compile_command(
    pipeline: Workflow,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    profile: Annotated[
        str,
        typer.Option(help=f"The profile whose values become the defaults; by default the first: {PROFILES}."),
    ] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="Whose program the TAO stages call: open (ours) or tao (NVIDIA's image), perhaps with exceptions: "
            "tao,evaluate=open,export=open. Settings have this and the next two, too.",
            show_default=False,
        ),
    ] = "",
    serving: Annotated[
        str,
        typer.Option(
            help="What the deployed model runs on: cpu (ONNX Runtime) or gpu (a TensorRT plan).", show_default=False
        ),
    ] = "",
    backend: Annotated[
        str,
        typer.Option(help="The oldest Kubeflow Pipelines that shall run the file: 2.15 or 2.16.", show_default=False),
    ] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Bind a pipeline parameter, or give one of a run another default; @FILE stands for its content.",
        ),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write the custom resources Pipeline and PipelineVersion for kubectl.")
    ] = False,
) -> None:
    """Compile a pipeline to the YAML file that Kubeflow runs, and that `gridbox run` runs here.

    Some twenty parameters stay open for each run; all others are bound here, by the profile and by --set.
    `gridbox params` explains them.
    """
    from pipeline.compiling import compile_to
    from pipeline.parameters import parse_assignments
    from pipeline.settings import load

    configuration = load({"engine": engine, "serving": serving, "backend": backend})
    workflow = definition(pipeline)
    values = parse_assignments(assignments or (), workflow.types)
    compile_to(pipeline, output, profile, configuration.options(), values)
    if kubernetes:
        from pipeline.kubeflow.package import write_resources

        write_resources(output)
    typer.echo(f"{output}: the pipeline {pipeline} with the values of profile {profile or workflow.profile}")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"gridbox {metadata.version('gridbox')}")
        raise typer.Exit


@app.callback()
def gridbox(
    version: Annotated[
        bool, typer.Option("--version", help="Show which release this is.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """See `help` of the application."""


@app.command("params")
def params_command(
    workflow: Workflow,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A parameter; by default all are listed.")] = "",
    output: Output = Form.table,
) -> None:
    """Explain the parameters of a workflow: range, default, values of the profiles, and the stages that read it.

    gridbox params facedetect train_epochs
    """
    from pipeline import explaining

    chosen = definition(workflow)
    if output is not Form.table:
        told = explaining.documents(chosen, name)
        document(told[0] if name else told, output)
    elif name:
        typer.echo(explaining.text(chosen, *explaining.documents(chosen, name)))
    else:
        table(("parameter", "set for", "default", "what it does"), explaining.rows(chosen))


@app.command("run", cls=WorkflowCommand)
def run_command(
    pipeline: PipelineName,
    data: Annotated[
        str, typer.Option(help="The data: a folder, or an https:// or s3:// URI. Without it, a synthetic set is drawn.")
    ] = "",
    profile: Annotated[
        str,
        typer.Option(help=f"The profile whose values count; by default one that suits this machine: {PROFILES}."),
    ] = "",
    assignments: Assignments = None,
    name: Annotated[str, typer.Option(help="Name of the run; by default the pipeline's and the profile's.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped; its options need not be repeated.")
    ] = False,
    runs: Annotated[
        Path, typer.Option(help="The folder of all runs, of the cache, and of the published models.")
    ] = Path("runs"),
    engine: Annotated[
        str,
        typer.Option(
            help="open, or tao-double: a double of NVIDIA's program that checks how it is called and learns nothing."
        ),
    ] = "open",
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Deploy to this machine, and serve on when the run has ended.")
    ] = False,
) -> None:
    """Run a pipeline on this machine: the very file that Kubeflow would run, with no cluster and no GPU.

    Results go to runs/NAME. What has not changed since an earlier run is taken from the cache.

    gridbox run facedetect

    gridbox run facedetect --data ~/wider_face --set train_epochs=40

    gridbox run facedetect --keep-serving
    """
    from pipeline.local import LOGS, SERVER_LOG, RunSettings, StageFailure, locked
    from pipeline.serving import RunServer
    from pipeline.settings import load as load_settings

    console = Console(file=sys.stdout)
    run_name = _run_name(pipeline, data, profile, name)
    engines, has_double = _engines_here(engine)
    images = load_settings().images
    settings = RunSettings(runs, run_name, resume, has_double=has_double, images=images, console=console)
    try:
        with RunServer(settings.folder / LOGS / SERVER_LOG) as server:
            with locked(settings.folder) as lock:
                _run(
                    pipeline,
                    data,
                    profile,
                    assignments or [],
                    Options(engines=engines, images=images),
                    settings,
                    lock,
                    server,
                    keep_serving,
                )
            if keep_serving:
                server.serve_on(settings.folder)
    except StageFailure as failure:
        _explain_failure(failure)
    except KeyboardInterrupt:
        again = f"gridbox run {pipeline} --name {run_name} --runs {runs} --resume"
        print(f"gridbox: interrupted; go on with: {again}", file=sys.stderr)
        raise


def _engines_here(text: str) -> tuple[Engines, bool]:
    """Reads `--engine` of a run on this machine; returns the engines, and whether there is a double among them.

    Raises:
        UserError: It names NVIDIA's program, which cannot run as a process here.
    """
    engines = parse_engines(text.replace(DOUBLE, Engine.tao))
    if Engine.tao in text.replace(DOUBLE, ""):
        raise UserError(f"--engine {text}: NVIDIA's program runs in its own image only; here there is {DOUBLE}")
    return engines, DOUBLE in text


def _explain_failure(failure: "StageFailure") -> None:
    if failure.code == 2:
        raise UserError(str(failure)) from failure
    raise StageError(str(failure)) from failure


def _run(
    pipeline: str,
    data: str,
    profile: str,
    assignments: Sequence[str],
    options: Options,
    settings: "RunSettings",
    lock: int,
    server: "RunServer",
    keep_serving: bool,
) -> None:
    from pipeline.compiled import load
    from pipeline.local import ARGUMENTS_FILE, PIPELINE_FILE, run_pipeline

    file = settings.folder / PIPELINE_FILE if pipeline in WORKFLOWS else Path(pipeline)
    given = settings.folder / ARGUMENTS_FILE
    if settings.resume and given.is_file() and not (data or profile or assignments):
        arguments = json.loads(given.read_text(encoding="utf-8"))
    else:
        arguments = _arguments(pipeline, file, data, profile, assignments, options, settings.runs)
        write_json(given, arguments)
    if keep_serving:
        if TARGET not in load(file, True, settings.images).parameters:
            raise UserError(f"{file}: the pipeline has no parameter {TARGET}, so there is nothing to keep serving")
        arguments |= {TARGET: "local"}
    run_pipeline(file, arguments, settings, lock, server)
    report = settings.folder / "report.html"
    settings.console.print(f"results: {settings.folder}", markup=False, highlight=False, soft_wrap=True)
    if report.exists():
        settings.console.print(f"report:  {report}", markup=False, highlight=False, soft_wrap=True)


def _arguments(
    pipeline: str, file: Path, data: str, profile: str, assignments: Sequence[str], options: Options, runs: Path
) -> dict[str, Any]:
    """Compiles a pipeline of ours to `file`, and returns the checked values that differ from the file's defaults."""
    from pipeline.compiled import load
    from pipeline.compiling import check_arguments, compile_to
    from pipeline.parameters import parse_assignments
    from pipeline.transport import check_transport

    is_ours = pipeline in WORKFLOWS
    compiled = None if is_ours else load(file, True, options.images)
    known = compiled.parameters if compiled else definition(pipeline).types
    values = profile_values(compiled.name, profile) if compiled and profile else {}
    values |= {DATA: data} if data else {}
    if PUBLISHED in known:
        values |= {PUBLISHED: str((runs / "published").absolute())}
    values |= parse_assignments(assignments, known)
    for unknown in sorted(set(values) - set(known)):
        raise UserError(f"{file}: the pipeline has no parameter {unknown}, or it was bound when the file was compiled")
    values = {name: absolute(name, value) for name, value in values.items()}
    if is_ours:
        values, bound = definition(pipeline).split(values)
        compile_to(pipeline, file, _local_profile(pipeline, data, profile), options, bound)
    name = compiled.name if compiled else pipeline
    check_arguments(name, values)
    check_transport(values)
    if name in WORKFLOWS:
        options.check(definition(name), values)
    return values


def _local_profile(pipeline: str, data: str, profile: str) -> str:
    return profile or definition(pipeline).local_profiles[bool(data)]


def _run_name(pipeline: str, data: str, profile: str, name: str) -> str:
    if not name:
        is_ours = pipeline in WORKFLOWS
        name = f"{pipeline}-{_local_profile(pipeline, data, profile)}" if is_ours else Path(pipeline).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name}: use letters, digits, '.', '_' and '-' only")
    return name


def absolute(name: str, value: object) -> object:
    """Returns a parameter's value with a local path made absolute: stages work in folders of their own.

    Raises:
        UserError: There is nothing at the path.
    """
    if not (isinstance(value, str) and value and name.endswith("_uri")) or "://" in value:
        return value
    path = Path(value).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist; give a folder or file, or an https:// or s3:// URI")
    return str(path)
