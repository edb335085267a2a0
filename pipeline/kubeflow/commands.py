"""The commands for Kubeflow: each asks for little, says what it does, and teaches by one example."""

import functools
import sys
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from components.step import StageError
from pipeline.arguments import Assignments, PipelineName, WorkflowCommand
from pipeline.catalogue import FIRST
from pipeline.kubeflow import schedules
from pipeline.kubeflow.session import (
    Form,
    Limit,
    Output,
    Session,
    connected,
    document,
    echo_link,
    open_session,
    table,
    when,
)
from pipeline.kubeflow.target import (
    Data,
    Experiment,
    NoCache,
    Profile,
    ServiceAccount,
    Uploaded,
    bound_package,
    compiled_target,
    uploaded_target,
)

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Run
    from pipeline.settings import Configuration

app = typer.Typer()
app.add_typer(schedules.app, name="schedule", rich_help_panel="Kubeflow")


RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or its name (then the newest one).")]


@app.command("upload", cls=WorkflowCommand, rich_help_panel="Kubeflow")
@connected
def upload_command(
    configuration: "Configuration", pipeline: PipelineName, profile: Profile = "", assignments: Assignments = None
) -> None:
    """Upload a pipeline: as a new one, or as a new version of it. The same content is uploaded once.

    gridbox upload facedetect --profile cpu
    """
    from pipeline.kubeflow.runs import upload

    package = bound_package(pipeline, configuration.options(), profile, assignments)
    session = open_session(configuration)
    version, is_new = upload(session.api, package)
    typer.echo(f"{version.name}: {'uploaded' if is_new else 'is there already, with this very content'}")
    echo_link(session, f"pipelines/details/{version.pipeline_id}/version/{version.id}")


@app.command("submit", cls=WorkflowCommand, rich_help_panel="Kubeflow")
@connected
def submit_command(
    configuration: "Configuration",
    pipeline: PipelineName,
    data: Data = "",
    profile: Profile = "",
    assignments: Assignments = None,
    uploaded: Uploaded = False,
    name: Annotated[str, typer.Option(help="Name of the run; by default the pipeline's and the time.")] = "",
    experiment: Experiment = "",
    service_account: ServiceAccount = "",
    no_cache: NoCache = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start the run, and leave it to itself.")] = False,
) -> None:
    """Run a pipeline in Kubeflow and follow it to its end; the exit code tells how it ended.

    Ctrl-C stops the following, not the run.

    gridbox submit facedetect --data s3://faces/wider --set train_epochs=40
    """
    from pipeline.kubeflow.runs import Submission

    local = None if uploaded else compiled_target(pipeline, configuration.options(), data, profile, assignments)
    session = open_session(configuration)
    target = local or uploaded_target(session.api, pipeline, data, profile, assignments)
    if no_cache:
        target = target.without_cache()
    run = session.api.create_run(
        Submission(
            name=name or f"{target.package.name}-{datetime.now():%Y%m%d-%H%M%S}",
            package=target.package,
            version=target.version,
            arguments=target.arguments,
            experiment_id=session.api.experiment(experiment or configuration.settings.experiment),
            service_account=service_account or configuration.settings.service_account,
        ).body()
    )
    typer.echo(f"run {run.name}: {run.id}")
    echo_link(session, f"runs/details/{run.id}")
    if no_wait:
        typer.echo(f"follow it with: gridbox wait {run.id}")
        return
    _follow(session, run, target.package.stages())


@app.command("wait", rich_help_panel="Kubeflow")
@connected
def wait_command(configuration: "Configuration", run: RunName) -> None:
    """Follow a run to its end, as `gridbox submit` does.

    gridbox wait facedetect-20261121-093000
    """
    session = open_session(configuration)
    found = session.api.find_run(run)
    _follow(session, found, _stages(session, found))


def _stages(session: Session, run: "Run") -> dict[str, str]:
    """Returns the stages of a run, by their path; of one whose pipeline is gone, what its workflow or details say."""
    package = session.api.package_of(run)
    return package.stages() if package else session.sources().stages(run)


def _follow(session: Session, run: "Run", stages: dict[str, str]) -> None:
    from pipeline.kubeflow.connection import Unavailable
    from pipeline.kubeflow.following import Follower, word

    follower = Follower(session, stages, functools.partial(print, flush=True))
    try:
        ended = follower.follow(run)
    except KeyboardInterrupt:
        again = f"follow it with 'gridbox wait {run.id}', end it with 'gridbox cancel {run.id}'"
        print(f"gridbox: the run goes on in Kubeflow; {again}", file=sys.stderr)
        raise
    except Unavailable as error:
        raise StageError(f"{error}; the run goes on without: gridbox wait {run.id}") from error
    follower.conclude(ended)
    typer.echo(f"run {ended.name}: {word(ended.state)}")


@app.command("list", rich_help_panel="Kubeflow")
@connected
def list_command(
    configuration: "Configuration",
    kind: Annotated[Literal["runs", "pipelines", "schedules"], typer.Argument(help="What to list.")] = "runs",
    limit: Limit = 20,
    output: Output = Form.table,
) -> None:
    """List the newest runs, pipelines or schedules.

    gridbox list pipelines
    """
    session = open_session(configuration)
    if kind == "schedules":
        schedules.list_schedules(session, limit, output)
    elif kind == "pipelines":
        rows = [[each.name, when(each.created), each.id] for each in session.api.pipelines(limit)]
        table(("pipeline", "created", "id"), rows, output)
    else:
        from pipeline.kubeflow.following import word

        found = session.api.runs(limit)
        table(
            ("run", "state", "created", "time", "id"),
            [[each.name, word(each.state), when(each.created), _took(each), each.id] for each in found],
            output,
        )


@app.command("logs", rich_help_panel="Kubeflow")
@connected
def logs_command(
    configuration: "Configuration",
    run: RunName,
    stage: Annotated[str, typer.Argument(help="By default the stages that failed, or else all.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more, for as long as the stage runs (asks Kubernetes).")
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show the lines of Kubeflow's launcher, too.")] = False,
) -> None:
    """Show what a run's stages have printed: the last try of each.

    gridbox logs facedetect-20261121-093000 train
    """
    from pipeline.kubeflow import logs
    from pipeline.kubeflow.workflow import StageState

    session = open_session(configuration)
    found = session.api.find_run(run)
    stages, sources = _stages(session, found), session.sources()
    latest = {each.task: each for each in sources.attempts(found) if not each.is_driver or each.has_failed}
    stopped = {path: StageState("FAILED") for path, each in latest.items() if each.is_driver}
    for path in logs.chosen(sources.states(found, stages) | stopped, stages, stage):
        attempt = latest.get(path)
        if attempt is None or attempt.phase in ("Skipped", "Omitted"):
            typer.echo(f"== {stages[path]}: no pod ran it (taken from the cache, or not begun) ==")
            continue
        driver = ", its driver" if attempt.is_driver else ""
        typer.echo(f"== {stages[path]}{driver}: {attempt.phase.lower()}, pod {attempt.pod} ==")
        lines = (
            session.cluster().log(session.pod_namespace, attempt.pod, follow=True)
            if follow
            else logs.text(session, found, attempt)
        )
        for line in lines if show_all or attempt.is_driver else logs.own(lines):
            print(line, flush=True)


@app.command("cancel", rich_help_panel="Kubeflow")
@connected
def cancel_command(configuration: "Configuration", run: RunName) -> None:
    """End a run. Stages that have ended keep their results.

    gridbox cancel facedetect-20261121-093000
    """
    from pipeline.kubeflow.api import ENDED
    from pipeline.kubeflow.following import word

    session = open_session(configuration)
    found = session.api.find_run(run)
    if found.state in ENDED:
        typer.echo(f"run {found.name}: {word(found.state)} already, nothing to cancel")
        return
    session.api.terminate(found.id)
    typer.echo(f"run {found.name}: is being cancelled; see it end with: gridbox wait {found.id}")


@app.command("doctor", cls=WorkflowCommand, rich_help_panel="Kubeflow")
@connected
def doctor_command(
    configuration: "Configuration",
    pipeline: PipelineName = FIRST,
    profile: Profile = "",
    assignments: Assignments = None,
    output: Output = Form.table,
) -> None:
    """Look whether Kubeflow and its cluster have what a pipeline needs; exit code 1 when something is missing.

    Nothing is changed, but for a file in the store that is removed again.

    gridbox doctor facedetect
    """
    from pipeline.kubeflow.doctor import examine

    target = compiled_target(pipeline, configuration.options(), "", profile, assignments)
    found = []
    for finding in examine(configuration, target.package, target.arguments):
        found.append(finding)
        if output is Form.table:
            print(f"{finding.state:<8}{finding.subject}: {finding.text}", flush=True)
            print(f"{'':<8}-> {finding.mend}\n" if finding.mend else "", end="", flush=True)
    if output is not Form.table:
        document([asdict(finding) for finding in found], output)
    if failures := sum(finding.state == "fail" for finding in found):
        raise StageError(f"{failures} of the checks failed")


@app.command("config", rich_help_panel="Kubeflow")
@connected
def config_command(configuration: "Configuration", output: Output = Form.table) -> None:
    """Show the settings and who has set them: gridbox.toml, then the environment, then flags.

    gridbox config --namespace team-a
    """
    from pipeline.settings import Settings

    rows = [
        [each.name, str(getattr(configuration.settings, each.name)) or "-", configuration.origins[each.name]]
        for each in fields(Settings)
    ]
    credential = configuration.credential()
    rows.append(["token", "set" if credential else "not set", credential.origin if credential else "-"])
    table(("setting", "value", "set by"), rows, output)


def _took(run: "Run") -> str:
    from pipeline.progress import duration

    if not run.created:
        return "-"
    return duration(((run.finished or datetime.now(UTC)) - run.created).total_seconds())
