"""The command `gridbox`. Imports are late: an image that runs a stage has no kfp, and `--help` should be quick."""

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import components
from components import program
from components.step import StageError, UserError, write_json
from pipeline.arguments import PROFILES, Assignments, PipelineName, Workflow, WorkflowCommand
from pipeline.catalogue import DATA, PUBLISHED, TARGET, WORKFLOWS, PipelineDefinition, definition, profile_values
from pipeline.kubeflow import commands as kubeflow
from pipeline.kubeflow.session import Form, Output, document, table
from pipeline.options import Engine, Engines, Options, parse_engines

if TYPE_CHECKING:
    from pipeline.local import RunSettings
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
        from pipeline.package import write_resources

        write_resources(output)
    typer.echo(f"{output}: the pipeline {pipeline} with the values of profile {profile or workflow.profile}")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib import metadata

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
    from pipeline.settings import load

    wanted = _Request(pipeline, data, profile, assignments or [], keep_serving)
    engines, has_double = _engines_here(engine)
    options = Options(engines=engines, images=load().images)
    console = Console(file=sys.stdout)
    settings = RunSettings(
        runs, wanted.run_name(name), resume, has_double=has_double, images=options.images, console=console
    )
    try:
        with RunServer(settings.folder / LOGS / SERVER_LOG) as server:
            with locked(settings.folder) as lock:
                _run(wanted, options, settings, lock, server)
            if keep_serving:
                server.serve_on(settings.folder)
    except StageFailure as failure:
        raise (UserError if failure.code == 2 else StageError)(str(failure)) from failure
    except KeyboardInterrupt:
        again = f"gridbox run {pipeline} --name {settings.name} --runs {runs} --resume"
        print(f"gridbox: interrupted; go on with: {again}", file=sys.stderr)
        raise


@dataclass(frozen=True, slots=True)
class _Request:
    """What a person wants to run on this machine: a workflow, or a compiled file."""

    pipeline: str
    data: str
    profile: str
    assignments: Sequence[str]
    keep_serving: bool

    @property
    def workflow(self) -> PipelineDefinition | None:
        """The workflow; None for a compiled file."""
        return definition(self.pipeline) if self.pipeline in WORKFLOWS else None

    @property
    def has_values(self) -> bool:
        """Whether it says any value of a parameter."""
        return bool(self.data or self.profile or self.assignments)

    def profile_here(self, workflow: PipelineDefinition) -> str:
        """The profile whose values hold on this machine."""
        return self.profile or workflow.local_profiles[bool(self.data)]

    def run_name(self, name: str) -> str:
        """Returns the name of the run.

        Raises:
            UserError: The one that is given is no name of a folder.
        """
        if not name and (workflow := self.workflow):
            name = f"{workflow.name}-{self.profile_here(workflow)}"
        name = name or Path(self.pipeline).stem
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"--name {name}: use letters, digits, '.', '_' and '-' only")
        return name


def _engines_here(text: str) -> tuple[Engines, bool]:
    """Reads `--engine` of a run on this machine; returns the engines, and whether there is a double among them.

    Raises:
        UserError: It names NVIDIA's program, which cannot run as a process here.
    """
    engines = parse_engines(text.replace(DOUBLE, Engine.tao))
    if Engine.tao in text.replace(DOUBLE, ""):
        raise UserError(f"--engine {text}: NVIDIA's program runs in its own image only; here there is {DOUBLE}")
    return engines, DOUBLE in text


def _run(wanted: _Request, options: Options, settings: "RunSettings", lock: int, server: "RunServer") -> None:
    from pipeline.compiled import load
    from pipeline.local import ARGUMENTS_FILE, PIPELINE_FILE, run_pipeline

    file = settings.folder / PIPELINE_FILE if wanted.workflow else Path(wanted.pipeline)
    given = settings.folder / ARGUMENTS_FILE
    if settings.resume and given.is_file() and not wanted.has_values:
        arguments = json.loads(given.read_text(encoding="utf-8"))
    else:
        arguments = _arguments(wanted, file, options, settings.runs)
        write_json(given, arguments)
    if wanted.keep_serving:
        if TARGET not in load(file, True, settings.images).parameters:
            raise UserError(f"{file}: the pipeline has no parameter {TARGET}, so there is nothing to keep serving")
        arguments |= {TARGET: "local"}
    run_pipeline(file, arguments, settings, lock, server)
    report = settings.folder / "report.html"
    settings.console.print(f"results: {settings.folder}", markup=False, highlight=False, soft_wrap=True)
    if report.exists():
        settings.console.print(f"report:  {report}", markup=False, highlight=False, soft_wrap=True)


def _arguments(wanted: _Request, file: Path, options: Options, runs: Path) -> dict[str, Any]:
    """Compiles a workflow to `file`, and returns the checked values that differ from the file's defaults."""
    from pipeline.compiled import load
    from pipeline.compiling import check_arguments, compile_to
    from pipeline.parameters import parse_assignments
    from pipeline.transport import check_transport

    values: dict[str, Any] = {}
    if workflow := wanted.workflow:
        name, known = workflow.name, workflow.types
    else:
        compiled = load(file, True, options.images)
        name, known = compiled.name, compiled.parameters
        values = profile_values(name, wanted.profile) if wanted.profile else {}
    values |= {DATA: wanted.data} if wanted.data else {}
    if PUBLISHED in known:
        values |= {PUBLISHED: str((runs / "published").absolute())}
    values |= parse_assignments(wanted.assignments, known)
    for unknown in sorted(set(values) - set(known)):
        raise UserError(f"{file}: the pipeline has no parameter {unknown}, or it was bound when the file was compiled")
    values = {name: absolute(name, value) for name, value in values.items()}
    if workflow:
        values, bound = workflow.split(values)
        compile_to(name, file, wanted.profile_here(workflow), options, bound)
        workflow.complete(wanted.profile_here(workflow), bound | values)
    check_arguments(name, values)
    check_transport(values)
    if name in WORKFLOWS:
        options.check(definition(name), values)
    return values


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
