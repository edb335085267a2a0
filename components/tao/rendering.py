"""Spec templates: which there are, what fills them, and a reader of TAO's protobuf text."""

import collections
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Set

from components.step import UserError

# Where the families lie; each has its own templates, which travel with it.
FAMILIES = Path(__file__).resolve().parent.parent
_TEMPLATE_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
_PLACEHOLDER = re.compile(r"\$\{([^}\n]*)\}")


def template_text(template: str) -> str:
    """Returns a spec template: the text itself, or a built-in template by its name, as `facedetect/train`.

    Raises:
        UserError: There is no template of this name.
    """
    if not _TEMPLATE_NAME.fullmatch(template):
        return template
    files = {"/".join((file.parent.name, file.stem)): file for file in FAMILIES.glob("*/specs/*/*.txt")}
    if template not in files:
        known = ", ".join(sorted(files)) or "none here"
        raise UserError(f"spec {template}: there is no such template; there are {known}")
    return files[template].read_text(encoding="utf-8")


def placeholders(template: str) -> Set[str]:
    """Returns the names that stand as `${name}` in a spec template."""
    return set(_PLACEHOLDER.findall(template))


def render(template: str, values: Mapping[str, Any], what: str = "spec") -> str:
    """Fills the `${name}` of a spec template. Values are escaped for a quoted string of protobuf text.

    Raises:
        UserError: A placeholder has no value, or is not closed.
    """
    for name in sorted(placeholders(template) - set(values)):
        raise UserError(what + ": ${" + name + "} has no value; known are " + ", ".join(sorted(values)))
    if "${" in _PLACEHOLDER.sub("", template):
        raise UserError(what + ": a ${ is not closed by } on its line")
    return _PLACEHOLDER.sub(lambda match: _escaped(values[match.group(1)]), template)


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"')


_LOOSE = "spec: the braces do not match; `spec check`, a task of the open engine, names the line"
_SPEC_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[{}:;,]|[^\s{}:;,#"']+""")


def parse_spec(text: str) -> Dict[str, List[Any]]:
    """Reads protobuf text without a schema, as far as TAO's specs use it: by field name, its values in their order.

    A value is a text, or for a message such a dictionary.

    Raises:
        UserError: A brace is missing or stands alone.
    """
    tokens = collections.deque(token for token in _SPEC_TOKEN.findall(text) if token[0] not in "#:;,")
    message: Dict[str, List[Any]] = {}
    around: List[Dict[str, List[Any]]] = []
    while tokens:
        name = tokens.popleft()
        if name == "}" and around:
            message = around.pop()
        elif name in "{}" or not tokens:
            raise UserError(_LOOSE)
        elif tokens[0] == "{":
            tokens.popleft()
            around.append(message)
            inner: Dict[str, List[Any]] = {}
            message.setdefault(name, []).append(inner)
            message = inner
        else:
            value = tokens.popleft()
            message.setdefault(name, []).append(value[1:-1] if value[0] in "\"'" else value)
    if around:
        raise UserError(_LOOSE)
    return message


def only(message: Mapping[str, Any], *path: str) -> Dict[str, Any]:
    """The message at a path of fields; empty where there is none."""
    for name in path:
        message = (message.get(name) or [{}])[-1]
    return dict(message)
