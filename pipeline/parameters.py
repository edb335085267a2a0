"""Parameters of a workflow, each declared once; values for them are checked before anything starts."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from components.step import UserError

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
_KFP_TYPES: Mapping[type, str] = {
    str: "STRING",
    int: "NUMBER_INTEGER",
    float: "NUMBER_DOUBLE",
    bool: "BOOLEAN",
    list: "LIST",
    dict: "STRUCT",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a pipeline.

    Attributes:
        range: Its type, annotated with its range as pydantic has it.
        default: Its default value.
        help: What it does.
        is_of_run: Whether a run may change it; the others are bound when the pipeline is compiled.
        is_open_only: Whether NVIDIA's program does not know it, and so must be left with the default.
    """

    range: Any
    default: Any
    help: str
    is_of_run: bool
    is_open_only: bool = False

    @property
    def type(self) -> type:
        """Its Python type: str, int, float, bool, list or dict."""
        base = get_args(self.range)[0] if get_origin(self.range) is Annotated else self.range
        return str if self.literals else get_origin(base) or base

    @property
    def kfp_type(self) -> str:
        """Its type in Kubeflow's words."""
        return _KFP_TYPES[self.type]

    @property
    def literals(self) -> tuple[str, ...]:
        """The values that it may have, where they are a fixed set."""
        return get_args(self.range) if get_origin(self.range) is Literal else ()

    @property
    def range_words(self) -> str:
        """Its range in words."""
        from pydantic import TypeAdapter

        return _describe(TypeAdapter(self.range).json_schema())


def of_run(range: Any, default: Any, help: str, *, is_open_only: bool = False) -> Parameter:  # noqa: ANN401
    """Declares a parameter that a person changes between two runs."""
    return Parameter(range, default, help, is_of_run=True, is_open_only=is_open_only)


def bound(range: Any, default: Any, help: str, *, is_open_only: bool = False) -> Parameter:  # noqa: ANN401
    """Declares a parameter that is bound when the pipeline is compiled."""
    return Parameter(range, default, help, is_of_run=False, is_open_only=is_open_only)


def parse_assignments(assignments: Sequence[str], types: Mapping[str, str]) -> dict[str, Any]:
    """Turns `name=value` texts into values of the parameters' types. `@file` stands for the file's content.

    Args:
        assignments: What the user wrote.
        types: By name, the KFP type of every parameter of the pipeline.

    Raises:
        UserError: No `=`, an unknown name, a value of another type, or a file that cannot be read.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set {assignment}: write name=value")
        if name not in types:
            raise UserError(f"--set {name}: no such parameter; {nearest(name, types)}")
        values[name] = _parse(name, _content(name, text), types[name])
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests names for an unknown one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


def _content(name: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--set {name}: {text[1:]} cannot be read: {error}") from error


def _parse(name: str, text: str, kfp_type: str) -> Any:  # noqa: ANN401 - of the parameter's type
    try:
        if kfp_type == "NUMBER_INTEGER":
            return int(text)
        if kfp_type == "NUMBER_DOUBLE":
            return float(text)
        if kfp_type == "BOOLEAN":
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text.lower()]
        if kfp_type in ("LIST", "STRUCT"):
            return json.loads(text)
    except (ValueError, KeyError) as error:
        wanted = {"NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number", "BOOLEAN": "true or false"}
        raise UserError(f"--set {name}={text}: must be {wanted.get(kfp_type, 'JSON')}") from error
    return text


def check_ranges(values: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    """Checks values against the ranges of a pipeline's parameters.

    Raises:
        UserError: A value is out of its range; the message says the range.
    """
    from pydantic import TypeAdapter, ValidationError

    for name, value in values.items():
        try:
            TypeAdapter(parameters[name].range).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            shown = f"={first['input']}" if "\n" not in str(first["input"]) else ""
            if first["type"] == "value_error":
                reason = str(first["ctx"]["error"])
            else:
                reason = f"must be {parameters[name].range_words}"
            raise UserError(f"parameter {name}{shown}: {reason}") from error


def _describe(schema: Mapping[str, Any]) -> str:
    """Says in words what a JSON schema allows."""
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if "pattern" in schema:
        return f"like {schema['pattern']}"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text",
        "object": "a JSON object of texts",
        "array": "a JSON list of objects",
    }
    parts = [words.get(schema["type"], schema["type"])]
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "multipleOf": "divisible by"}
    parts += [f"{word} {schema[key]}" for key, word in limits.items() if key in schema]
    return " ".join(parts)
