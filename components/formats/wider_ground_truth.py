"""The official ground truth of the WIDER FACE evaluation: `wider_face_val.mat` and the Easy, Medium and Hard lists.

The files are MATLAB's, read with SciPy (an optional package, loaded when it is needed). Each holds a cell for each
image, by event; a list names the faces of an image that belong to it by their number from 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.step import UserError

FACES_FILE = "wider_face_val.mat"
LISTS = {name: f"wider_{name}_val.mat" for name in ("easy", "medium", "hard")}
ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")


@dataclass(frozen=True, slots=True)
class OfficialFaces:
    """All annotated faces, image by image.

    Attributes:
        names: [I] `<event>/<image>`, without a suffix.
        counts: [I] number of faces.
        boxes: [T, 4] x, y, width, height in pixels; ten are without area, one has a negative size, which the protocol
            needs.
        attributes: By name of `ATTRIBUTES`, [T]; values as in `components.formats.wider.Face`.
        lists: By name of `LISTS`, [T] whether the face belongs to it.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    attributes: Mapping[str, NDArray[np.int64]]
    lists: Mapping[str, NDArray[np.bool_]]


def read_ground_truth(folder: Path) -> OfficialFaces:
    """Reads the four files.

    Raises:
        UserError: One is missing, cannot be read, or is not about the same images; or SciPy is not installed.
    """
    faces = _load(folder / FACES_FILE, ("event_list", "file_list", "face_bbx_list"))
    events = [str(cell[0]) for cell in faces["event_list"].ravel()]
    files = [[str(cell[0]) for cell in event.ravel()] for event in faces["file_list"].ravel()]
    names = tuple(f"{event}/{file}" for event, inside in zip(events, files, strict=True) for file in inside)
    boxes = list(_cells(faces["face_bbx_list"]))
    counts = np.array([len(image) for image in boxes], np.int64)
    if len(boxes) != len(names):
        raise UserError(f"{folder / FACES_FILE}: {len(names)} images, but faces for {len(boxes)}; fetch it again")
    attributes = {
        name: np.concatenate([np.zeros(0, np.int64), *(cell.ravel() for cell in _cells(faces[f"{name}_label_list"]))])
        for name in ATTRIBUTES
        if f"{name}_label_list" in faces
    }
    lists = {name: _members(folder / file, names, counts) for name, file in LISTS.items()}
    rows = np.concatenate([np.zeros((0, 4)), *(image.reshape(-1, 4) for image in boxes)])
    return OfficialFaces(names, counts, rows, {k: v.astype(np.int64) for k, v in attributes.items()}, lists)


def _members(file: Path, names: tuple[str, ...], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns [T] whether each face is in a list."""
    chosen = [cell.ravel().astype(np.int64) for cell in _cells(_load(file, ("gt_list",))["gt_list"])]
    if len(chosen) != len(names):
        raise UserError(f"{file}: lists {len(chosen)} images, {FACES_FILE} {len(names)}; they do not belong together")
    begins = np.concatenate([[0], np.cumsum(counts)])
    members = np.zeros(int(begins[-1]), bool)
    for index, numbers in enumerate(chosen):
        if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= counts[index]:
            raise UserError(f"{file}: {names[index]}: a face has a number beyond its {counts[index]} faces")
        members[begins[index] + numbers - 1] = True
    return members


def _cells(events: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yields what the cell of each image holds."""
    for event in events.ravel():
        yield from event.ravel()


def _load(file: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UserError(f"{file}: MATLAB's files need SciPy; pip install 'gridbox[evaluation]'") from error
    try:
        content: dict[str, Any] = loadmat(str(file))
    except (OSError, ValueError, TypeError, MatReadError) as error:
        raise UserError(f"{file}: missing or not MATLAB's: {error}; fetch the official ground truth again") from error
    missing = [name for name in wanted if name not in content]
    if missing:
        raise UserError(f"{file}: holds no {', '.join(missing)}; is it the official ground truth?")
    return content
