"""Reads external text and JSON: complete and of the right types, or refused with file, entry and field."""

import codecs
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from components.step import UserError

# Control characters, and surrogates, as JSON and file names that are not UTF-8 may hold.
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_WHOLE = re.compile(r"\s*-?\d{1,18}\s*")
_LIMIT = 2.0**63
_NUMERIC = (int, float, str)


def decode_text(content: bytes, source: str) -> str:
    """Decodes UTF-8, or UTF-16 with a byte-order mark, which is removed; `source` is the name in messages.

    Raises:
        UserError: It is in another encoding; the message names the line.
    """
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        found = f"not UTF-8 text (byte 0x{content[error.start]:02x}, Latin-1 perhaps)"
        raise UserError(f"{source}:{number}: {found}; save the file as UTF-8") from error


def read_bytes(file: Path) -> bytes:
    """Reads a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def read_text(file: Path) -> str:
    """Reads a text file; see `read_bytes` and `decode_text`."""
    return decode_text(read_bytes(file), str(file))


def parse_json(text: str, source: str) -> Any:  # noqa: ANN401 - the caller checks its content
    """Parses JSON.

    Raises:
        UserError: It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: no JSON text: {error}") from error


def read_json(file: Path) -> Any:  # noqa: ANN401 - as above
    """Reads a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(file), str(file))


def to_number(value: object) -> float | None:
    """Returns the number that a value is or spells; None for others, for booleans and for Python's own 1_000."""
    if not isinstance(value, _NUMERIC) or isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of an external file.

    Attributes:
        place: The file and the entry, for messages.
        fields: Values of any type; null counts as absent.
    """

    place: str
    fields: Mapping[str, object]

    def text(self, field: str, default: str | None = None) -> str:
        """Returns a string, or a number as string."""
        value = self._given(field, default)
        if isinstance(value, bool) or not isinstance(value, _NUMERIC) or CONTROL.search(str(value)):
            self._refuse(field, value, "a text of one line")
        return str(value)

    def number(self, field: str, default: float | None = None, *, finite: bool = True) -> float:
        """Returns a number, which may be a string; with `finite`, neither `nan` nor beyond 2 to the power of 63."""
        return self._number(field, self._given(field, default), finite)

    def whole(self, field: str, default: int | None = None) -> int:
        """Returns a whole number, written as 1, 1.0 or "1"."""
        value = self._given(field, default)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            return int(value)  # a float would round a long one
        number = self._number(field, value, True)
        if not number.is_integer():
            self._refuse(field, value, "a whole number")
        return value if isinstance(value, int) else int(number)

    def flag(self, field: str) -> bool:
        """Returns whether a field is true or a number other than 0; an absent one is false."""
        value = self.fields.get(field)
        return value if isinstance(value, bool) else self.whole(field, 0) != 0

    def box(self, field: str, *, finite: bool = True) -> list[float]:
        """Returns four numbers."""
        value = self._given(field, None)
        if not isinstance(value, list) or len(value) != 4:
            self._refuse(field, value, "a list of four numbers")
        return [self._number(f"{field}[{index}]", number, finite) for index, number in enumerate(value)]

    def entries(self, field: str) -> list["Entry"]:
        """Returns the objects of a list."""
        return entries(self._given(field, None), f"{self.place}: {field}")

    def _given(self, field: str, default: object) -> object:
        value = self.fields.get(field)
        if value is None and default is None:
            raise UserError(f"{self.place}: {field} is missing")
        return default if value is None else value

    def _number(self, field: str, value: object, finite: bool) -> float:
        number = to_number(value)
        if number is None:
            self._refuse(field, value, "a number")
        if finite and not abs(number) < _LIMIT:
            self._refuse(field, value, "a finite number below 2^63")
        return number

    def _refuse(self, field: str, value: object, wanted: str) -> NoReturn:
        raise UserError(f"{self.place}: {field} is {reprlib.repr(value)}; {wanted} is needed")


def entries(rows: object, place: str) -> list[Entry]:
    """Returns the objects of a JSON list; a UserError says that it is none."""
    if not isinstance(rows, list):
        raise UserError(f"{place} is {reprlib.repr(rows)}; a list of objects is needed")
    return [entry(row, f"{place}[{index}]") for index, row in enumerate(rows)]


def entry(document: object, place: str) -> Entry:
    """Returns a JSON object; a UserError says that it is none."""
    if not isinstance(document, dict):
        raise UserError(f"{place} is {reprlib.repr(document)}; an object is needed")
    return Entry(place, document)
