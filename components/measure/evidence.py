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

from components.measure.uncertainty import CurveScore, MeanScore
from components.step import UserError

FILE = "score_evidence.npz"
_HEADER, _LAYOUT = "header", 1
_ARRAYS = tuple(field.name for field in fields(CurveScore))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One model's outcomes.

    Attributes:
        digest: Of the images, in their order, and of the rules of the score; equal ones can be paired.
        classes: By class name, the outcomes.
    """

    digest: str
    classes: Mapping[str, CurveScore]

    @property
    def score(self) -> MeanScore:
        """The mean average precision over the classes that have objects."""
        return MeanScore(list(self.classes.values()))


def digest_of(images: Sequence[str], rules: Mapping[str, Any]) -> str:
    """Returns the digest of the names of the images, in their order, and of the rules by which they were scored."""
    return hashlib.sha256(json.dumps([list(images), rules], sort_keys=True).encode()).hexdigest()


def write_evidence(file: Path, models: Mapping[str, Evidence]) -> None:
    """Writes the evidence of models, the last one being the one that is read by default; equal content, equal bytes."""
    header = {
        "layout": _LAYOUT,
        "models": [
            {"name": name, "digest": evidence.digest, "classes": list(evidence.classes)}
            for name, evidence in models.items()
        ],
    }
    arrays: dict[str, NDArray[Any]] = {_HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for number, evidence in enumerate(models.values()):
        for place, score in enumerate(evidence.classes.values()):
            arrays |= {f"{number}.{place}.{name}": getattr(score, name) for name in _ARRAYS}
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
            classes = {
                str(name): _curve_score({part: arrays[f"{number}.{place}.{part}"] for part in _ARRAYS})
                for place, name in enumerate(models[number]["classes"])
            }
            if not classes or len({score.images for score in classes.values()}) != 1:
                raise ValueError("its classes are not about the same images")
            return Evidence(str(models[number]["digest"]), classes)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged evidence of a score: {error}; evaluate the model again") from error


def _curve_score(arrays: Mapping[str, NDArray[Any]]) -> CurveScore:
    """Takes nothing for granted: the file may come from anywhere, and NumPy reads from wherever an index points."""
    if any(values.ndim != 1 or values.dtype.kind != "i" for values in arrays.values()):
        raise ValueError("an array is not a row of whole numbers")
    score = CurveScore(**arrays)
    for image, steps in ((score.image, score.steps), (score.right_image, score.right_steps)):
        inside = not len(image) or 0 <= image.min() <= image.max() < score.images
        begin_right = len(steps) == 0 or (steps[0] == 0 and steps[-1] < len(image) and bool((np.diff(steps) > 0).all()))
        if not (inside and begin_right):
            raise ValueError("an index points beyond its images or steps")
    if len(score.steps) != len(score.right_steps) or (score.objects < 0).any():
        raise ValueError("its parts do not belong together")
    return score
