"""What deployments leave in the store: which versions may be served again, and the pointer to the promoted one."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from components import publication
from components.publication import VERSIONS
from components.step import UserError
from components.store import RetryPolicy

_STORAGE_URI = re.compile(rf"(?P<base>.+)/{VERSIONS}(?P<version>[^/]+)/")
# The store may be unreachable from where a model is deployed; that costs a warning, not minutes.
PATIENCE = RetryPolicy(attempts=2, pause=0.5, timeout=15)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a published version lies.

    Attributes:
        base: Below which it was published.
        version: Its name.
    """

    base: str
    version: str


def place_of(storage_uri: str) -> Place | None:
    """Returns where a served model was published; None where it was put there by other means."""
    found = _STORAGE_URI.match(storage_uri)
    return Place(**found.groupdict()) if found else None


def hold(holder: str, storage_uris: Iterable[str]) -> None:
    """Has `gridbox store prune` spare these versions, until the holder names others."""
    versions: dict[str, list[str]] = {}
    for place in filter(None, map(place_of, storage_uris)):
        versions.setdefault(place.base, []).append(place.version)
    for base, names in versions.items():
        try:
            publication.hold(base, holder, names, PATIENCE)
        except UserError as error:
            _warn(f"gridbox store prune may remove what {holder} serves or served before: {error}")


def point_at(storage_uri: str) -> None:
    """Makes the promoted version the one that `gridbox store resolve` names."""
    place = place_of(storage_uri)
    if place is None:
        return
    try:
        publication.point(place.base, place.version, PATIENCE)
    except UserError as error:
        _warn(f"the store still names another version than {place.version} as the promoted one: {error}")


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)
