"""Parses protobuf text with the line of every field, and reports errors in the user's terms.

protobuf's own parser stops at the first error and keeps no lines, which validation needs.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor


class MapKey(str):
    """A step of a path into a map: the entry's key, as opposed to a field's name."""

    __slots__ = ()


FieldPath = tuple[str | int, ...]
"""The way to a field: names of fields, `MapKey`s, and indices into repeated fields."""


class Problem(NamedTuple):
    """An error in a text: its line (from 1) and a message."""

    line: int
    message: str


class TextSyntaxError(ValueError):
    """The text is no protobuf text."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class Node:
    """A field as written: `value` is the text of a scalar, and None for a block, whose fields are `children`."""

    name: str
    line: int
    value: str | None = None
    children: list["Node"] = field(default_factory=list)

    def named(self, name: str) -> list["Node"]:
        """Returns the children of that name, in their order."""
        return [child for child in self.children if child.name == name]


# A word may hold ${…}, so that the brace of a variable is no mark.
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<word>(?:\$\{[^}\n]*\}|[^\s\#{}<>\[\]:;,"'])+)
      | (?P<mark>[{}<>\[\]:;,])
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE,
)
# Successors of fields of earlier releases, by message and name.
_NEW_NAMES = {
    ("ClasswiseBboxHandlerConfig", "confidence_threshold"): "it is clustering_config.dbscan_confidence_threshold now",
}
_VARIABLE = re.compile(r"\$\{([^}\n]*)\}")
_NAME = re.compile(r"[A-Za-z_]\w*")
_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "other":
            raise TextSyntaxError(Problem(line, f"a text starts with {match.group()} and does not end on its line"))
        if kind not in ("comment", "space"):
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
    yield _Token("end", "the end of the file", line)


class _Reader:
    """Recursive descent over `field: value`, `field { … }` and `field: [ … ]`."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def take(self) -> _Token:
        token = self.token
        self._next += 1
        return token

    def took(self, *marks: str) -> bool:
        if self.token.kind == "mark" and self.token.text in marks:
            self._next += 1
            return True
        return False

    def fields(self, closing: str, opened_on: int) -> list[Node]:
        """Reads fields up to the closing mark ("" for the end of the file)."""
        nodes: list[Node] = []
        while True:
            token = self.take()
            if token.kind == "mark" and token.text == closing:
                return nodes
            if token.kind == "end":
                if not closing:
                    return nodes
                problem = f"the block opened on line {opened_on} is not closed: a '{closing}' is missing"
                raise TextSyntaxError(Problem(token.line, problem))
            if token.kind != "word" or not _NAME.fullmatch(token.text):
                raise TextSyntaxError(Problem(token.line, f"a field's name is expected here, not {token.text}"))
            nodes += self._field(token)
            self.took(",", ";")

    def _field(self, name: _Token) -> list[Node]:
        colon = self.took(":")
        if colon and self.took("["):
            return self._elements(name)
        return [self._value(name, colon)]

    def _elements(self, name: _Token) -> list[Node]:
        nodes: list[Node] = []
        while not self.took("]"):
            if nodes and not self.took(","):
                raise TextSyntaxError(
                    Problem(self.token.line, f"',' or ']' is expected in the list {name.text}, not {self.token.text}")
                )
            nodes.append(self._value(name, colon=True))
        return nodes

    def _value(self, name: _Token, colon: bool) -> Node:
        token = self.take()
        if token.kind == "mark" and token.text in _CLOSING:
            return Node(name.text, name.line, children=self.fields(_CLOSING[token.text], token.line))
        if token.kind not in ("word", "text"):
            raise TextSyntaxError(Problem(token.line, f"{name.text} has no value: {token.text} stands in its place"))
        if not colon:
            raise TextSyntaxError(Problem(token.line, f"a ':' or a block is expected after {name.text}"))
        if self.token.text == ":":  # the value is the next field's name
            raise TextSyntaxError(Problem(name.line, f"{name.text} has no value"))
        parts = [token.text]
        # "a" "b" is one text, and - 1 is one number.
        while self.token.kind == token.kind and (token.kind == "text" or parts == ["-"]):
            parts.append(self.take().text)
        return Node(name.text, token.line, value=" ".join(parts))


def read(text: str) -> Node:
    """Reads protobuf text into a tree whose root has no name.

    Raises:
        TextSyntaxError: The text is no protobuf text; the error holds the line.
    """
    try:
        return Node("", 1, children=_Reader(text).fields("", 1))
    except RecursionError as error:
        raise TextSyntaxError(Problem(1, "blocks lie within blocks without end; this is no spec")) from error


def fill_variables(text: str, variables: Mapping[str, str]) -> tuple[str, list[Problem]]:
    """Fills in `${NAME}` in names and values, not in comments.

    A value cannot change the structure around it: between quotes it may hold no quote, backslash or line break, and
    outside quotes it must be one number or word.

    Args:
        text: Protobuf text with variables.
        variables: Values by name.

    Returns:
        The text, with the same lines, and the variables that could not be filled in.
    """
    problems: list[Problem] = []
    parts: list[str] = []
    line = 1
    for match in _TOKEN.finditer(text):
        part = match.group()
        if match.lastgroup in ("text", "word"):
            names = dict.fromkeys(_VARIABLE.findall(part))
            faults = [_fault_of_variable(name, variables, match.lastgroup == "text") for name in names]
            problems += [Problem(line, fault) for fault in faults if fault]
            if not any(faults):
                part = _VARIABLE.sub(lambda variable: variables[variable[1]], part)
        parts.append(part)
        line += match.group().count("\n")
    return "".join(parts), problems


def _fault_of_variable(name: str, variables: Mapping[str, str], quoted: bool) -> str:
    """Returns why a variable cannot be filled in, or "". The value is not shown: it may be a secret."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return f"${{{name}}} is not filled in: a variable's name has letters, digits and underscores"
    if name not in variables:
        mended = f"write its value, or set it: {name}=value detectnet_v2 …"
        return f"${{{name}}} is not filled in: {mended}"
    value = variables[name]
    if quoted and (re.search(r"[\x00-\x1f\x7f\"'\\]", value) or "${" in value):
        return f"${{{name}}}: its value holds a quote, a backslash, a control character or another variable"
    if not quoted and not re.fullmatch(r"[\w.+-]+", value):
        return f"${{{name}}}: outside quotes its value must be one number or word"
    return ""


def check(root: Node, descriptor: Descriptor) -> Iterator[Problem]:
    """Finds unknown fields, values of a wrong type, and duplicate blocks and entries.

    Args:
        root: The tree of a text.
        descriptor: The message that the text should be.
    """
    homes: dict[str, str] = {}
    _collect_homes(descriptor, "", homes)
    yield from _check_block(root, descriptor, "", homes)


def _collect_homes(descriptor: Descriptor, path: str, homes: dict[str, str]) -> None:
    """Adds, for every field's name, the first block that has such a field."""
    for known in descriptor.fields:
        if path:
            homes.setdefault(known.name, path)
        if known.message_type is not None and not known.message_type.GetOptions().map_entry:
            _collect_homes(known.message_type, f"{path}.{known.name}" if path else known.name, homes)


def _check_block(node: Node, descriptor: Descriptor, path: str, homes: Mapping[str, str]) -> Iterator[Problem]:
    yield from _repetitions(node, descriptor, path)
    for child in node.children:
        known = descriptor.fields_by_name.get(child.name)
        if known is None:
            hint = nearest(child.name, [f.name for f in descriptor.fields])
            if child.name in homes:
                hint = f"it belongs in {homes[child.name]}"
            hint = _NEW_NAMES.get((descriptor.name, child.name), hint)
            yield Problem(child.line, f"{path or descriptor.name} has no field '{child.name}'; {hint}")
            continue
        child_path = f"{path}.{child.name}" if path else child.name
        if known.message_type is None:
            yield from _check_scalar(child, known, child_path)
        elif child.value is not None:
            yield Problem(child.line, f"{child_path} is a block: write {child.name} {{ … }}, not {child.value}")
        elif known.message_type.GetOptions().map_entry and not child.named("key"):
            yield Problem(child.line, f'{child_path} needs a key: write {child.name} {{ key: "…" value … }}')
        else:
            yield from _check_block(child, known.message_type, child_path, homes)


def _repetitions(node: Node, descriptor: Descriptor, path: str) -> Iterator[Problem]:
    """Finds duplicates; scalars may be given twice, see `overridden`."""
    prefix = f"{path}." if path else ""
    first: dict[str, Node] = {}
    for child in node.children:
        known = descriptor.fields_by_name.get(child.name)
        if known is None:
            continue
        if known.is_repeated:
            keys = child.named("key") if known.message_type and known.message_type.GetOptions().map_entry else []
            identity = f"{child.name}[{keys[0].value}]" if keys else f"{child.name}#{id(child)}"
        else:
            identity = child.name
        before = first.setdefault(identity, child)
        if before is not child and (known.is_repeated or known.message_type is not None):
            yield Problem(child.line, f"{prefix}{identity} is given twice, first on line {before.line}; keep one")
        if known.containing_oneof and (other := _rival(known, first)):
            rival = f"'{other.name}' (line {other.line})"
            yield Problem(child.line, f"{prefix}{child.name} and {rival} exclude each other; keep one")


def overridden(node: Node, descriptor: Descriptor, path: FieldPath = ()) -> Iterator[Problem]:
    """Finds scalars given twice in a text that passes `check`: the last one counts, as for TAO."""
    for name in dict.fromkeys(child.name for child in node.children):
        known, given = descriptor.fields_by_name[name], node.named(name)
        if known.message_type is not None:
            for child in given:
                yield from overridden(child, known.message_type, (*path, name))
        elif not known.is_repeated and len(given) > 1:
            text = f"is given twice, first on line {given[0].line}; the last one counts, {given[-1].value}"
            yield Problem(given[-1].line, f"{display((*path, name))} {text}")


def _rival(known: FieldDescriptor, first: Mapping[str, Node]) -> Node | None:
    assert known.containing_oneof is not None
    rivals = (first.get(member.name) for member in known.containing_oneof.fields if member.name != known.name)
    return next((node for node in rivals if node), None)


def _check_scalar(node: Node, known: FieldDescriptor, path: str) -> Iterator[Problem]:
    if node.value is None:
        yield Problem(node.line, f"{path} takes a value, not a block: write {node.name}: …")
        return
    if _is_valid(node.value, known):
        return
    options: list[str] = []
    if known.enum_type is not None:
        options = [value.name for value in known.enum_type.values]
    elif known.type == FieldDescriptor.TYPE_BOOL:
        options = ["true", "false"]
    wanted = " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]])) or _KINDS[known.type]
    hint = _close(node.value.strip("\"'"), options) if options else None
    yield Problem(node.line, f"{path} must be {wanted}, not {node.value}" + (f"; did you mean {hint}?" if hint else ""))


_KINDS = {
    FieldDescriptor.TYPE_STRING: "a text in quotes",
    FieldDescriptor.TYPE_UINT32: "a whole number of at least 0",
    FieldDescriptor.TYPE_INT32: "a whole number",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_DOUBLE: "a number",
}


def _is_valid(value: str, known: FieldDescriptor) -> bool:
    if known.enum_type is not None:  # proto3 would take any number for an enum
        return any(value in (option.name, str(option.number)) for option in known.enum_type.values)
    assert known.containing_type is not None  # only extensions have none
    message = message_factory.GetMessageClass(known.containing_type)()
    try:
        text_format.Parse(f"{known.name}: {value}", message)
    except text_format.ParseError:
        return False
    return True


def nearest(name: str, valid: Sequence[str]) -> str:
    """Returns "did you mean 'x'?" for the valid name nearest to `name`, or the list of valid names."""
    close = _close(name, valid)
    return f"did you mean '{close}'?" if close else f"the valid names are {', '.join(valid)}"


def _close(name: str, valid: Iterable[str]) -> str | None:
    by_lower = {option.lower(): option for option in valid}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def locate(root: Node, path: FieldPath) -> tuple[int, str | None]:
    """Finds where a field was written.

    Args:
        root: The tree of the text.
        path: The field's path, for example `("cost_function_config", "target_classes", 0, "name")`, or
            `("dataset_config", "target_class_mapping", MapKey("face"))`.

    Returns:
        The line of the field, or of the nearest enclosing block that was written; and the field's value as written,
        None where it was not written or is a block.
    """
    line, candidates = root.line, [root]
    for step in path:
        if isinstance(step, int):
            found = candidates[step : step + 1]
        elif isinstance(step, MapKey):
            entries = [entry for entry in candidates if (entry.named("key")[0].value or "")[1:-1] == step]
            line = entries[0].line if entries else line
            found = [value for entry in entries for value in entry.named("value")]
        else:
            found = candidates[0].named(step)
        if not found:
            return line, None
        line, candidates = found[0].line, found
    is_name = path and isinstance(path[-1], str) and not isinstance(path[-1], MapKey)
    last = candidates[-1] if is_name and candidates[0].value is not None else candidates[0]
    return (last.line if is_name else line), last.value


def display(path: FieldPath) -> str:
    """Returns a path for messages, for example `target_class_config["face"].clustering_config`."""
    text = ""
    for step in path:
        if isinstance(step, MapKey):
            text += f'["{step}"]'
        elif isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text
