"""Runs a typer application as a program: one line and the right exit code for every mistake."""

from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.main import get_command

from components import step


def run(app: typer.Typer, argv: Sequence[str], name: str, prepare: Callable[[Sequence[str]], list[str]] = list) -> int:
    """Runs `app` for a person or, with `--executor-input`, for Kubeflow.

    Args:
        app: The application.
        argv: The command line without the program's name.
        name: The program's name.
        prepare: Carries out options that all commands share and returns the other words.

    Returns:
        The exit code of `components.step.run`; wrong usage is 2.
    """

    def program(arguments: list[str]) -> int:
        try:
            words = prepare(arguments) or ["--help"]
            return int(get_command(app).main(words, prog_name=name, standalone_mode=False) or 0)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else name
            raise step.UserError(f"{error.format_message()} (see '{command} --help')".replace("\n", " ")) from error
        except typer.Abort:
            raise KeyboardInterrupt from None

    def flags_of(words: list[str]) -> set[str]:
        command: Any = get_command(app)
        for word in words:
            command = getattr(command, "commands", {}).get(word, command)
        return {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}

    return step.run(argv, program, name, flags_of)
