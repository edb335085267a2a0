"""A table of `gridbox.toml` becomes a dataclass of texts and numbers with defaults."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from components.step import UserError
from pipeline.parameters import nearest

Table = TypeVar("Table")
_WORDS = {str: "text in quotes", int: "a whole number", float: "a number"}


def read_table(kind: type[Table], table: object, name: str, origin: str) -> Table:
    """Reads a table.

    Args:
        kind: The dataclass.
        table: The content of the table.
        name: What the table is called.
        origin: The file, for messages.

    Raises:
        UserError: It has an unknown entry, or one of another type.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{origin}: {name}: write a table, [{name}]")
    known: dict[str, Any] = {each.name: type(each.default) for each in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for entry, given in table.items():
        if entry not in known:
            raise UserError(f"{origin}: [{name}] {entry}: there is no such setting; {nearest(entry, known)}")
        is_whole = known[entry] is float and type(given) is int
        value = float(given) if is_whole else given
        if type(value) is not known[entry]:
            raise UserError(f"{origin}: [{name}] {entry}: write {_WORDS[known[entry]]}")
        values[entry] = value
    return kind(**values)
