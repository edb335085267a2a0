"""What the commands for Kubeflow share: options that say where it is, a server that answers, and how things look."""

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.step import UserError

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Kubeflow, Server
    from pipeline.kubeflow.cluster import Cluster
    from pipeline.kubeflow.sources import Sources
    from pipeline.settings import Configuration

# Where an installation for one user runs everything, and any installation its own servers.
SYSTEM_NAMESPACE = "kubeflow"
PANEL = "Where Kubeflow is (see gridbox config)"


class Form(StrEnum):
    """How something is printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


Output = Annotated[Form, typer.Option("-o", "--output", help="For people, or for programs.")]
Limit = Annotated[int, typer.Option(min=1, help="How many of the newest to show.")]

_CONNECTION: dict[str, Any] = {
    "endpoint": Annotated[str, typer.Option(help="Its URL: the UI, or the API server.", rich_help_panel=PANEL)],
    "namespace": Annotated[str, typer.Option("-n", "--namespace", help="That of the runs.", rich_help_panel=PANEL)],
    "token_file": Annotated[str, typer.Option(help="File with a bearer token.", rich_help_panel=PANEL)],
    "ca_file": Annotated[str, typer.Option(help="Certificates to trust (PEM).", rich_help_panel=PANEL)],
    "context": Annotated[str, typer.Option(help="Context of the kubeconfig.", rich_help_panel=PANEL)],
}


def connected(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say where Kubeflow is, and hands the command what they and the settings come to."""

    @functools.wraps(function)
    def command(**given: Any) -> None:  # noqa: ANN401 - typer's values
        from pipeline.settings import load

        function(load({name: given.pop(name) for name in _CONNECTION}), **given)

    own = list(inspect.signature(function).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default="")
        for name, annotation in _CONNECTION.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + added
    # typer reads what a command takes from these two.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


@dataclass(frozen=True, slots=True)
class Session:
    """A Kubeflow that has answered."""

    configuration: "Configuration"
    api: "Kubeflow"
    server: "Server"

    def link(self, page: str) -> str:
        """Returns the address of a page of the UI, or nothing where the UI's address is not known."""
        base = self.configuration.settings.ui or (self.configuration.endpoint() if self.server.is_ui else "")
        return f"{base.rstrip('/')}/#/{page}" if base else ""

    def cluster(self) -> "Cluster":
        """Returns the Kubernetes beneath."""
        from pipeline.kubeflow.cluster import Cluster

        return Cluster(self.configuration.settings.context)

    def sources(self) -> "Sources":
        """Returns what tells of a run's stages and pods."""
        from pipeline.kubeflow.sources import Sources

        return Sources(self.api, self.cluster, self.pod_namespace)

    @property
    def pod_namespace(self) -> str:
        """Where the pods of the runs are."""
        return self.configuration.settings.namespace or SYSTEM_NAMESPACE


def open_session(configuration: "Configuration") -> Session:
    """Returns the Kubeflow of these settings, once it has answered.

    Raises:
        UserError: It does not answer as Kubeflow, or keeps users apart and no namespace is set.
        StageError: It cannot be reached.
    """
    from pipeline.kubeflow.api import Kubeflow
    from pipeline.kubeflow.connection import Connection

    api = Kubeflow(Connection(configuration), configuration.settings.namespace)
    server = api.server()
    if server.is_shared and not api.namespace:
        raise UserError(
            f"{configuration.endpoint()} keeps several users apart: set namespace in gridbox.toml, "
            "GRIDBOX_NAMESPACE or --namespace"
        )
    return Session(configuration, api, server)


def echo_link(session: Session, page: str) -> None:
    """Says where a page of the UI is, where that is known."""
    if link := session.link(page):
        typer.echo(f"see it at {link}")


def when(time: datetime | None) -> str:
    """Returns a time in this machine's zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M}" if time else "-"


def document(content: object, form: Form) -> None:
    """Prints something for programs."""
    if form is Form.json:
        print(json.dumps(content, indent=2))
        return
    import yaml

    print(yaml.safe_dump(content, sort_keys=False), end="")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], form: Form = Form.table) -> None:
    """Prints columns as wide as they need to be, or a list of objects for programs."""
    if form is not Form.table:
        document([dict(zip(titles, row, strict=True)) for row in rows], form)
        return
    if not rows:
        typer.echo("none")
        return
    printable = [
        ["".join(letter for letter in cell if letter.isprintable()) for cell in row] for row in (titles, *rows)
    ]
    widths = [max(len(row[column]) for row in printable) for column in range(len(titles))]
    for row in printable:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
