"""Runs a typer application as a program: one line and the right exit code for every mistake."""

from collections.abc import Sequence

import click
import typer
from typer.main import get_command

from components import step


def run(app: typer.Typer, argv: Sequence[str], name: str) -> int:
    """Runs `app` for a person or, with `--executor-input`, for Kubeflow.

    Args:
        app: The application.
        argv: The command line without the program's name.
        name: The program's name.

    Returns:
        The exit code of `components.step.run`; wrong usage is 2.
    """

    def program(arguments: list[str]) -> int:
        try:
            return int(get_command(app).main(arguments, prog_name=name, standalone_mode=False) or 0)
        except click.ClickException as error:
            context = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
            raise step.UserError(f"{error.format_message()} (see '{context} --help')".replace("\n", " ")) from error
        except click.Abort:
            raise KeyboardInterrupt from None

    return step.run(argv, program, name)
