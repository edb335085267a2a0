"""The evidence of a deployed model's score, kept in the store beside its published version.

The live InferenceService says where its model lies, and that leads to the evidence: `<base>/evidence/<version>.npz`.
So the next deployment's quality gate can pair the two models without being told anything.
"""

import sys
import tempfile
from pathlib import Path

from components.measure.evidence import FILE, write_evidence
from components.objects import open_objects
from components.publication import EVIDENCE
from components.serve.gate import ScoredModel, with_evidence
from components.serve.marks import PATIENCE, place_of
from components.step import UserError
from components.store import retried


def keep_evidence(storage_uri: str, scored: ScoredModel) -> None:
    """Keeps the evidence of a score, if it has any. What goes wrong is said; it costs the next gate its paired test."""
    place = place_of(storage_uri)
    if scored.evidence is None or place is None:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, FILE)
            write_evidence(file, {scored.model: scored.evidence})
            content, objects = file.read_bytes(), open_objects(place.base, PATIENCE)
            retried(lambda: objects.write(_name(place.version), content), objects.uri, PATIENCE)
    except (UserError, OSError) as error:
        _warn(f"the evidence of the score was not kept, and the next gate goes by the plain margin: {error}")


def find_evidence(storage_uri: str, scored: ScoredModel) -> ScoredModel:
    """Adds the evidence that was kept for a served model; none where there is none, and what goes wrong is said."""
    place = place_of(storage_uri)
    if place is None:
        return scored
    try:
        objects = open_objects(place.base, PATIENCE)
        found = retried(lambda: objects.read(_name(place.version)), objects.uri, PATIENCE)
        if found is None:
            return scored
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, FILE)
            file.write_bytes(found[0])
            return with_evidence(scored, file)
    except (UserError, OSError) as error:
        _warn(f"the evidence of {scored.model} cannot be used: {error}")
        return scored


def _name(version: str) -> str:
    return f"{EVIDENCE}{version}.npz"


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)
