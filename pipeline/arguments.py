"""Arguments and options that several commands have, and whose help names the workflows of the catalogue."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.catalogue import NAMES, WORKFLOWS, definition

# Stands in a help text for the profiles of the workflows.
PROFILES = "{profiles}"

Workflow = Annotated[str, typer.Argument(metavar="WORKFLOW", help=f"Its name: {NAMES}.")]
PipelineName = Annotated[str, typer.Argument(help=f"A workflow ({NAMES}), or a compiled YAML file.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a pipeline parameter; @FILE stands for its content."),
]


class WorkflowCommand(TyperCommand):
    """A command whose help names the profiles; the workflows, which take a moment to load, are loaded only for that."""

    def format_help(self, *given: Any) -> None:  # noqa: ANN401 - click's
        """Writes the help."""
        for parameter in self.params:
            if PROFILES in (text := getattr(parameter, "help", None) or ""):
                parameter.help = text.replace(PROFILES, _profiles())  # type: ignore[attr-defined]
        super().format_help(*given)


def _profiles() -> str:
    of_each: Mapping[str, str] = {name: ", ".join(definition(name).profiles) for name in WORKFLOWS}
    return "; ".join(f"{name} has {profiles}" for name, profiles in of_each.items())
