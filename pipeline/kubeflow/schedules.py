"""`gridbox schedule`: runs at times."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.step import UserError
from pipeline.arguments import Assignments, PipelineName, WorkflowCommand
from pipeline.kubeflow.session import Form, Limit, Output, Session, connected, echo_link, open_session, table, when
from pipeline.kubeflow.target import (
    Data,
    Experiment,
    Profile,
    ServiceAccount,
    Uploaded,
    compiled_target,
    uploaded_target,
)

if TYPE_CHECKING:
    from pipeline.settings import Configuration

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DESCRIPTORS = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly")

app = typer.Typer(help="Start runs at times: create, list, enable, disable, delete.", no_args_is_help=True)

ScheduleName = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule's id or name.")]


@app.command("create", cls=WorkflowCommand)
@connected
def schedule_create_command(
    configuration: "Configuration",
    pipeline: PipelineName,
    cron: Annotated[
        str,
        typer.Option(help="When, in the five fields of cron (the server's time, mostly UTC), or @daily and the like."),
    ] = "",
    every: Annotated[str, typer.Option(help="How often: 30m, 12h or 7d.")] = "",
    data: Data = "",
    profile: Profile = "",
    assignments: Assignments = None,
    uploaded: Uploaded = False,
    name: Annotated[str, typer.Option(help="Name of the schedule; by default the pipeline's.")] = "",
    experiment: Experiment = "",
    service_account: ServiceAccount = "",
) -> None:
    """Run a pipeline again and again. It is uploaded, so that each run has the same version; never two at a time.

    gridbox schedule create facedetect --cron "0 3 * * 1" --data s3://faces/wider
    """
    from pipeline.kubeflow.runs import Submission, upload

    trigger = trigger_of(cron, every)
    local = None if uploaded else compiled_target(pipeline, configuration.options(), data, profile, assignments)
    session = open_session(configuration)
    target = local or uploaded_target(session.api, pipeline, data, profile, assignments)
    name = name or target.package.name
    if session.api.has_schedule(name):
        raise UserError(f"{name}: there is a schedule of this name; give another --name, or delete that one first")
    submission = Submission(
        name=name,
        package=target.package,
        version=target.version or upload(session.api, target.package)[0],
        arguments=target.arguments,
        experiment_id=session.api.experiment(experiment or configuration.settings.experiment),
        service_account=service_account or configuration.settings.service_account,
    )
    # Without no_catchup, a schedule that was off for a week would start a week's runs at once.
    extra = {"mode": "ENABLE", "trigger": trigger, "max_concurrency": "1", "no_catchup": True}
    created = session.api.create_schedule(submission.body() | extra)
    typer.echo(f"schedule {created.name}: {created.trigger}, {created.id}")
    echo_link(session, f"recurringrun/details/{created.id}")


@app.command("list")
@connected
def schedule_list_command(configuration: "Configuration", limit: Limit = 20, output: Output = Form.table) -> None:
    """List the newest schedules."""
    list_schedules(open_session(configuration), limit, output)


@app.command("enable")
@connected
def schedule_enable_command(configuration: "Configuration", schedule: ScheduleName) -> None:
    """Let a schedule start runs again."""
    _switch(configuration, schedule, enabled=True)


@app.command("disable")
@connected
def schedule_disable_command(configuration: "Configuration", schedule: ScheduleName) -> None:
    """Keep a schedule from starting runs."""
    _switch(configuration, schedule, enabled=False)


@app.command("delete")
@connected
def schedule_delete_command(configuration: "Configuration", schedule: ScheduleName) -> None:
    """Delete a schedule; the runs that it has started stay."""
    api = open_session(configuration).api
    found = api.find_schedule(schedule)
    api.delete_schedule(found.id)
    typer.echo(f"schedule {found.name}: deleted")


def _switch(configuration: "Configuration", schedule: str, enabled: bool) -> None:
    api = open_session(configuration).api
    found = api.find_schedule(schedule)
    api.enable_schedule(found.id, enabled)
    typer.echo(f"schedule {found.name}: {'enabled' if enabled else 'disabled'}")


def trigger_of(cron: str, every: str) -> dict[str, Any]:
    """Returns the trigger as the API wants it.

    Raises:
        UserError: Neither or both are given, or it is written in another way.
    """
    if bool(cron) == bool(every):
        raise UserError('say when: either --cron "0 3 * * 1" or --every 12h')
    if every:
        found = re.fullmatch(r"([1-9]\d*)([smhd])", every)
        if not found:
            raise UserError(f"--every {every}: write it like 30m, 12h or 7d")
        return {"periodic_schedule": {"interval_second": str(int(found[1]) * _UNITS[found[2]])}}
    words = cron.split()
    if len(words) == 5:
        # Kubeflow's cron begins with seconds, and takes five fields for a shortened form of its own: without this,
        # "0 3 * * *" would start a run in every hour.
        words = ["0", *words]
    if len(words) != 6 and not (len(words) == 1 and words[0] in _DESCRIPTORS):
        raise UserError(
            f'--cron "{cron}": write five fields (minute hour day month weekday) or {", ".join(_DESCRIPTORS)}'
        )
    return {"cron_schedule": {"cron": " ".join(words)}}


def list_schedules(session: Session, limit: int, form: Form) -> None:
    """Shows the newest schedules."""
    rows = [
        [each.name, "enabled" if each.is_enabled else "disabled", each.trigger, when(each.created), each.id]
        for each in session.api.schedules(limit)
    ]
    table(("schedule", "state", "when", "created", "id"), rows, form)
