"""Checks values for pipeline parameters before anything starts."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.step import UserError

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


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
            raise UserError(f"--set {name}: no such parameter; {_nearest(name, types)}")
        values[name] = _parse(name, _content(name, text), types[name])
    return values


def _nearest(name: str, types: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, types, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(types))}"


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


def check_ranges(values: Mapping[str, Any], ranges: type) -> None:
    """Checks values against the typed dictionary of a pipeline's parameter ranges.

    Raises:
        UserError: A value is out of its range; the message says the range.
    """
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(ranges)
    try:
        adapter.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        shown = f"={first['input']}" if "\n" not in str(first["input"]) else ""
        if first["type"] == "value_error":
            reason = str(first["ctx"]["error"])
        else:
            reason = f"must be {_describe(adapter.json_schema()['properties'][name])}"
        raise UserError(f"parameter {name}{shown}: {reason}") from error


def literals_of(ranges: type) -> dict[str, list[str]]:
    """Returns the values of every parameter that has a fixed set of them."""
    properties = TypeAdapter(ranges).json_schema()["properties"]
    return {name: schema["enum"] for name, schema in properties.items() if "enum" in schema}


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
        "object": "a JSON object of texts",
        "array": "a JSON list of objects",
    }
    parts = [words.get(schema["type"], schema["type"])]
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "multipleOf": "divisible by"}
    parts += [f"{word} {schema[key]}" for key, word in limits.items() if key in schema]
    return " ".join(parts)
