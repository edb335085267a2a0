"""Which family a model is of, and how that family is served: by convention, so that no family is named here.

The manifest of an exported model (and the description beside a bare ONNX file) may name its `family`, a folder of
`components`; its module `served` has `PREFIX`, with which the names of the served models begin, and
`served(file, settings)`, which describes the ONNX file `file` as a `ServedTask`.
"""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from components.serve.task import ServedTask, ensemble_of
from components.step import MANIFEST, UserError
from components.vision.predictor import description_file

if TYPE_CHECKING:
    from components.serve.config import RepositorySettings

# Of models whose description names none: it is the oldest family, and its exports do not.
DEFAULT = "detectnet_v2"


class Family(Protocol):
    """The module `served` of a family."""

    PREFIX: str

    def served(self, file: Path, settings: "RepositorySettings") -> ServedTask:
        """Returns how an exported model is served.

        Raises:
            UserError: The model cannot be served.
        """
        ...


def family(name: str = DEFAULT) -> Family:
    """Returns the module of a family.

    Raises:
        UserError: There is no such family, or it cannot be served.
    """
    module = f"components.{name}.served"
    try:
        return cast("Family", importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise UserError(f"family {name!r}: this release has no {module}, which says how it is served") from error


def family_of(file: Path) -> str:
    """Returns the family of an exported model, an ONNX file."""
    manifest = file.parent / MANIFEST
    for place, within in ((manifest, "settings"), (description_file(file), "")):
        if place.is_file():
            try:
                document = json.loads(place.read_text(encoding="utf-8"))
                return str((document[within] if within else document).get("family", DEFAULT))
            except (ValueError, LookupError, AttributeError) as error:
                raise UserError(f"{place}: not a readable description of a model: {error}") from error
    return DEFAULT


def default_ensemble() -> str:
    """Returns the model that clients ask for where they name none."""
    return ensemble_of(family().PREFIX)
