"""Runs a typer application as a program: one line and the right exit code for every mistake."""

from collections.abc import Sequence

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
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else name
            raise step.UserError(f"{error.format_message()} (see '{command} --help')".replace("\n", " ")) from error
        except typer.Abort:
            raise KeyboardInterrupt from None

    return step.run(argv, program, name)
