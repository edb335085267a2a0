"""The outcomes behind a score, kept in one file of arrays, so that it can be compared with another model's later.

A score alone cannot say whether a difference is chance. With what each image contributed, two models that were scored
on the same images at different times can be resampled together (see `components.measure.uncertainty`).
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.measure.uncertainty import CurveOutcomes, MeanOutcomes, RatioOutcomes
from components.step import UserError

FILE = "score_evidence.npz"
_HEADER, _LAYOUT = "header", 1
_KINDS: Mapping[str, type[CurveOutcomes | RatioOutcomes]] = {"curve": CurveOutcomes, "ratio": RatioOutcomes}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One model's outcomes.

    Attributes:
        digest: Of the images, in their order, and of the rules of the score; equal ones can be paired.
        classes: By class name, the outcomes.
    """

    digest: str
    classes: Mapping[str, CurveOutcomes | RatioOutcomes]

    @property
    def outcomes(self) -> MeanOutcomes:
        """Those of the score: the mean over the classes that have objects."""
        return MeanOutcomes(list(self.classes.values()))


def digest_of(images: Sequence[str], rules: Mapping[str, Any]) -> str:
    """Returns the digest of the names of the images, in their order, and of the rules by which they were scored."""
    return hashlib.sha256(json.dumps([list(images), rules], sort_keys=True).encode()).hexdigest()


def write_evidence(file: Path, models: Mapping[str, Evidence]) -> None:
    """Writes the evidence of models, the last one being the one that is read by default; equal content, equal bytes."""
    header = {
        "layout": _LAYOUT,
        "models": [
            {"name": name, "digest": evidence.digest, "classes": list(evidence.classes), **_kind(evidence)}
            for name, evidence in models.items()
        ],
    }
    arrays: dict[str, NDArray[Any]] = {_HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for number, evidence in enumerate(models.values()):
        for place, outcomes in enumerate(evidence.classes.values()):
            arrays |= {f"{number}.{place}.{part.name}": getattr(outcomes, part.name) for part in fields(outcomes)}
    with file.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_evidence(file: Path, model: str = "") -> Evidence:
    """Reads the evidence of one model; of the last one where none is named.

    Raises:
        UserError: The file is damaged, or holds no such model.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            header = json.loads(arrays[_HEADER].tobytes())
            models = header["models"] if header["layout"] == _LAYOUT else []
            names = [str(entry["name"]) for entry in models]
            if not names or (model and model not in names):
                raise UserError(f"{file}: no evidence of {model or 'any model'} that this release reads is here")
            number = names.index(model) if model else len(names) - 1
            kind = _KINDS[models[number].get("kind", "curve")]
            classes = {
                str(name): _checked(kind, {part.name: arrays[f"{number}.{place}.{part.name}"] for part in fields(kind)})
                for place, name in enumerate(models[number]["classes"])
            }
            if not classes or len({outcomes.images for outcomes in classes.values()}) != 1:
                raise ValueError("its classes are not about the same images")
            return Evidence(str(models[number]["digest"]), classes)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged evidence of a score: {error}; evaluate the model again") from error


def _kind(evidence: Evidence) -> dict[str, str]:
    """Returns what the header says of outcomes that are no curves, which are the oldest kind."""
    kinds = {name for name, kind in _KINDS.items() for each in evidence.classes.values() if type(each) is kind}
    return {"kind": kinds.pop()} if kinds - {"curve"} else {}


def _checked(
    kind: type[CurveOutcomes | RatioOutcomes], arrays: Mapping[str, NDArray[Any]]
) -> CurveOutcomes | RatioOutcomes:
    """Takes nothing for granted: the file may come from anywhere, and NumPy reads from wherever an index points."""
    outcomes = kind(**arrays)
    if isinstance(outcomes, RatioOutcomes):
        whole = outcomes.total.ndim == outcomes.objects.ndim == 1 and outcomes.objects.dtype.kind == "i"
        if not whole or len(outcomes.total) != outcomes.images or not np.isfinite(outcomes.total).all():
            raise ValueError("its parts do not belong together")
        return outcomes
    if any(values.ndim != 1 or values.dtype.kind != "i" for values in arrays.values()):
        raise ValueError("an array is not a row of whole numbers")
    for image, steps in ((outcomes.image, outcomes.steps), (outcomes.right_image, outcomes.right_steps)):
        inside = not len(image) or 0 <= image.min() <= image.max() < outcomes.images
        begin_right = len(steps) == 0 or (steps[0] == 0 and steps[-1] < len(image) and bool((np.diff(steps) > 0).all()))
        if not (inside and begin_right):
            raise ValueError("an index points beyond its images or steps")
    if len(outcomes.steps) != len(outcomes.right_steps) or (outcomes.objects < 0).any():
        raise ValueError("its parts do not belong together")
    return outcomes
