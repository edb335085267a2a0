"""Reads ground truth and predictions of every layout as flat arrays of one kind.

| given as truth | taken for |
|---|---|
| folder with `wider_face_val.mat` | the official ground truth of WIDER FACE, with Easy, Medium and Hard |
| folder with `wider_face_split` (or its zip archive), or a `*_bbx_gt.txt` file | WIDER FACE's annotations |
| folder with `training` or `validation` | a KITTI set |
| `.json` file | COCO annotations |

| given as predictions | taken for |
|---|---|
| `.jsonl` file, or folder with `detections.jsonl` | what `gridbox evaluate score` and `gridbox serve detect` write |
| `.json` file | COCO results |
| folder of `.txt` files of 15 or 16 columns, or with `labels` | KITTI labels with scores |
| folder of folders with `.txt` files, or `.zip` file | WIDER FACE's detections |

A file that is neither a label nor named like an image (a README) is left out.

What cannot be right is left out, and named and counted in `Findings`; where `strict` is asked for, it ends the reading.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from components.formats import coco
from components.formats.kitti import IGNORED_CLASS, SPLITS, Label, parse_labels, read_split
from components.formats.listing import IMAGE_SUFFIXES, list_files
from components.formats.reading import Entry, decode_text, entry, parse_json, read_bytes, read_text, to_number
from components.formats.wider import ANNOTATIONS, WiderImage, WiderSource, parse_annotations
from components.formats.wider_ground_truth import ATTRIBUTES, FACES_FILE, read_ground_truth
from components.formats.wider_predictions import read_predictions as read_wider_predictions
from components.measure.boxes import Floats
from components.measure.dataset import ANY_CLASS, Booleans, Integers, Predictions, Truth, offsets_of
from components.step import UserError

DETECTIONS_FILE = "detections.jsonl"
FACE = "face"
_NO_CLASS, _LEFT_OUT_IMAGE = -1, -2
_LEFT_OUT = "files left out, which are no predictions"


@dataclass
class Findings:
    """What was remarkable about the input.

    Attributes:
        strict: Whether faults end the reading.
        faults: By what is wrong, how often: it was left out.
        notes: By what is worth knowing, how often.
        examples: By fault or note, the first place.
    """

    strict: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def fault(self, what: str, count: int, example: str) -> None:
        """Counts what was left out because it cannot be right."""
        self._add(self.faults, what, count, example)

    def note(self, what: str, count: int, example: str) -> None:
        """Counts what may surprise."""
        self._add(self.notes, what, count, example)

    def _add(self, counter: Counter[str], what: str, count: int, example: str) -> None:
        if count:
            counter[what] += count
            self.examples.setdefault(what, example)

    def lines(self) -> list[str]:
        """Returns a sentence for each, faults first."""
        return [
            f"{count} {what} (first: {self.examples[what]})"
            for counter in (self.faults, self.notes)
            for what, count in counter.items()
        ]

    def raise_if_strict(self, source: Path | str) -> None:
        """Ends the reading of `source` where there are faults and none is allowed.

        Raises:
            UserError: Names all faults.
        """
        if self.strict and self.faults:
            faults = "; ".join(self.lines()[: len(self.faults)])
            raise UserError(f"{source}: {faults}; mend the input, or leave out --strict to go on without these")


def read_truth(source: Path, findings: Findings, split: str = "validation") -> Truth:
    """Reads ground truth; see the table above.

    Boxes without area are kept as regions in which nothing counts: nothing can find them (the official protocol of
    WIDER FACE, which counts pixels, counts them all the same). So are faces that the annotators flagged invalid, and
    the one face of negative size in the official ground truth.

    Args:
        source: A file or a folder.
        findings: Where to count what is remarkable.
        split: `training` or `validation`, where there are both.

    Raises:
        UserError: It is none of these, malformed, or without any image; or it has faults and none is allowed.
    """
    truth = _judged(_open_truth(source, split), findings)
    if not truth.images:
        raise UserError(f"{source}: no images are listed; there is nothing to measure on")
    if truth.regions.all():
        findings.fault("truth without any object", 1, str(source))
    empty = np.flatnonzero(np.bincount(truth.image_of_box[~truth.regions], minlength=len(truth.images)) == 0)
    findings.note("images without objects", len(empty), truth.images[empty[0]] if len(empty) else "")
    findings.raise_if_strict(source)
    return truth


def read_labelled(
    folder: Path, split: str, class_names: Sequence[str], *, wider: bool, ignore_regions: bool
) -> tuple[Truth, dict[str, int]]:
    """Reads what a network can find in a data set: the objects of its classes.

    Args:
        folder: A KITTI set, or a WIDER FACE folder in its official layout.
        split: `training` or `validation`.
        class_names: The network's classes.
        wider: Whether the folder is WIDER FACE's.
        ignore_regions: Whether nothing counts inside `dontcare` labels, or faces that the annotators flagged invalid.
            Otherwise they are objects to be found.

    Returns:
        The ground truth, and counts of what was left out, for example labels of other classes.

    Raises:
        UserError: It cannot be read or is empty, or which class a label is of is unknown.
    """
    if wider and len(class_names) != 1:
        raise UserError(f"--wider: this model has {len(class_names)} classes, WIDER FACE labels only faces")
    if not ignore_regions and len(class_names) != 1:
        raise UserError(
            f"--no-ignore-regions: this model has {len(class_names)} classes, and a {IGNORED_CLASS} label does not "
            "say which it is; leave the option out"
        )
    truth = _wider_truth(WiderSource(folder).images(split)) if wider else _kitti_truth(folder, split)
    if not truth.images:
        raise UserError("no images to score: the chosen split is empty; check the data set and the split's name")
    skipped: dict[str, int] = {}
    if wider:
        truth = replace(truth, class_names=tuple(class_names))
    for index, name in enumerate(truth.class_names):
        if name not in class_names:
            skipped[f"labels of class {name}"] = int((truth.classes == index).sum())
    truth = replace(truth, attributes={}).of_classes(class_names)
    has_area: Booleans = np.all(truth.boxes[:, 2:] > truth.boxes[:, :2], axis=1)
    if wider or not has_area.all():
        skipped["faces without area" if wider else "labels without area"] = int((~has_area).sum())
    truth = truth.where(has_area)
    if not ignore_regions:
        nowhere = np.zeros_like(truth.regions)
        truth = replace(truth, regions=nowhere, classes=np.where(truth.regions, 0, truth.classes))
    return truth, skipped


def _open_truth(source: Path, split: str) -> Truth:
    if source.suffix == ".json":
        return _coco_truth(coco.read_annotations(source))
    if source.is_file() and source.name.endswith("_bbx_gt.txt"):
        return _wider_truth(parse_annotations(read_bytes(source), str(source)))
    if (source / FACES_FILE).is_file():
        return _official_truth(source)
    if (source / ANNOTATIONS).is_dir() or (source / f"{ANNOTATIONS}.zip").is_file():
        return _wider_truth(WiderSource(source).annotations(split))
    if any((source / name).is_dir() for name in SPLITS):
        return _kitti_truth(source, split)
    raise UserError(
        f"{source}: no truth here; give a KITTI set, a WIDER FACE folder or *_bbx_gt.txt, the folder of the official "
        f"{FACES_FILE}, or COCO's .json"
    )


def _official_truth(folder: Path) -> Truth:
    faces = read_ground_truth(folder)
    regions = faces.attributes.get("invalid", np.zeros(len(faces.boxes), np.int64)) == 1
    classes = np.zeros(len(faces.boxes), np.int64)
    boxes, offsets = _corners(faces.boxes), offsets_of(faces.counts)
    return Truth(faces.names, offsets, boxes, (FACE,), classes, regions, faces.attributes, faces.lists, singles=regions)


def _wider_truth(images: Sequence[WiderImage]) -> Truth:
    faces = [face for image in images for face in image.faces]
    boxes = _corners(np.array([face.box for face in faces], np.float64).reshape(-1, 4))
    attributes = {name: np.array([getattr(face, name) for face in faces], np.int64) for name in ATTRIBUTES}
    offsets = offsets_of(np.array([len(image.faces) for image in images], np.int64))
    names, regions = tuple(image.name for image in images), attributes["invalid"] == 1
    classes = np.zeros(len(faces), np.int64)
    return Truth(names, offsets, boxes, (FACE,), classes, regions, attributes, singles=regions)


def _kitti_truth(kitti_set: Path, split: str) -> Truth:
    names: list[str] = []
    labels: list[list[Label]] = []
    for sample in read_split(kitti_set, split):
        names.append(sample.id)
        labels.append(sample.labels)
    flat = [label for image in labels for label in image]
    class_names = tuple(sorted({label.class_name for label in flat} - {IGNORED_CLASS}))
    numbers = {**{name: index for index, name in enumerate(class_names)}, IGNORED_CLASS: ANY_CLASS}
    classes = np.array([numbers[label.class_name] for label in flat], np.int64)
    boxes = np.array([label.box for label in flat], np.float64).reshape(-1, 4)
    offsets = offsets_of(np.array([len(image) for image in labels], np.int64))
    attributes = {"occlusion": np.array([label.occlusion for label in flat], np.int64)}
    regions = classes == ANY_CLASS
    singles = regions & np.array([not label.is_crowd for label in flat], bool)
    return Truth(tuple(names), offsets, boxes, class_names, classes, regions, attributes, singles=singles)


def _coco_truth(content: coco.CocoAnnotations) -> Truth:
    images, categories = dict(sorted(content.images.items())), dict(sorted(content.categories.items()))
    numbers = np.array(list(images), np.int64)
    image = np.searchsorted(numbers, content.image_ids)
    order = np.argsort(image, kind="stable")
    return Truth(
        images=tuple(image.text("file_name") for image in images.values()),
        offsets=offsets_of(np.bincount(image, minlength=len(numbers))),
        boxes=_corners(content.boxes[order]),
        class_names=tuple(categories.values()),
        classes=np.searchsorted(list(categories), content.category_ids[order]).astype(np.int64),
        regions=content.crowds[order],
        areas=content.areas[order],
        image_ids=tuple(images),
        class_ids=tuple(categories),
    )


def _judged(truth: Truth, findings: Findings) -> Truth:
    """Lets boxes without area count for nothing, and leaves out those of negative size unless they are official."""
    size = truth.boxes[:, 2:] - truth.boxes[:, :2]
    negative: Booleans = np.any(size < 0, axis=1)
    flat: Booleans = np.any(size == 0, axis=1) & ~negative
    if truth.subsets:
        flat, negative = flat | negative, np.zeros_like(negative)
    findings.fault("objects of negative size", int(negative.sum()), _place(truth, negative))
    findings.note("objects without area, which count for nothing", int(flat.sum()), _place(truth, flat))
    return replace(truth, regions=truth.regions | flat).where(~negative)


def _place(truth: Truth, which: Booleans) -> str:
    return truth.images[int(truth.image_of_box[which.argmax()])] if which.any() else ""


def read_predictions(
    source: Path, truth: Truth, findings: Findings, model: str = "", left_out: Collection[str] = ()
) -> Predictions:
    """Reads what was found in the images of `truth`; see the table above.

    Images are told apart by their names without a suffix. One without predictions counts as one in which nothing was
    found. Boxes have to be in the truth's pixels; those of `gridbox evaluate score` are in pixels of the network's
    input, so that their truth is a KITTI set of that size.

    Args:
        source: A file or a folder.
        truth: The ground truth.
        findings: Where to count what is remarkable.
        model: Which model's detections to take, where a `detections.jsonl` holds those of several.
        left_out: Further images that may have predictions, of which nothing is wanted.

    Raises:
        UserError: It is none of these or malformed; or it has faults and none is allowed.
    """
    found = _open_predictions(source, truth, findings, model)
    predictions = aligned(found, truth, findings, left_out)
    findings.raise_if_strict(source)
    return predictions


@dataclass(frozen=True, slots=True)
class Found:
    """Detections as they were read.

    Attributes:
        images: Names of the images that were looked at.
        image: [D] index into `images`.
        boxes: [D, 4] x1, y1, x2, y2.
        scores: [D].
        class_names: What `classes` means.
        classes: [D] index into `class_names`.
    """

    images: Sequence[str]
    image: Integers
    boxes: Floats
    scores: Floats
    class_names: Sequence[str]
    classes: Integers


def _open_predictions(source: Path, truth: Truth, findings: Findings, model: str) -> Found:
    lines = source / DETECTIONS_FILE if source.is_dir() else source
    if lines.suffix == ".jsonl" and lines.is_file():
        return _json_lines(lines, model)
    if model:
        raise UserError(f"{source}: only a {DETECTIONS_FILE} says which model found what; leave out the model's name")
    if source.suffix == ".json":
        return _coco_found(source, truth)
    labels = source / "labels" if (source / "labels").is_dir() else source
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give the predictions")
    if labels.is_dir() and (found := _kitti_found(labels, truth, findings)):
        return found
    return _wider_found(source, truth, findings)


def _wider_found(source: Path, truth: Truth, findings: Findings) -> Found:
    if len(truth.class_names) != 1:
        raise UserError(f"{source}: WIDER FACE's detections name no class, and the truth has {len(truth.class_names)}")
    content = read_wider_predictions(source)
    findings.note(_LEFT_OUT, len(content.left_out), "".join(content.left_out[:1]))
    image = np.repeat(np.arange(len(content.names)), content.counts)
    classes = np.zeros(len(image), np.int64)
    return Found(content.names, image, _corners(content.rows), content.rows[:, 4], truth.class_names, classes)


def _coco_found(file: Path, truth: Truth) -> Found:
    if not truth.image_ids:
        raise UserError(f"{file}: COCO's results number their images, and only COCO annotations say which these are")
    content = coco.read_results(file)
    known = dict(zip(truth.image_ids, truth.images, strict=True))
    numbers, image = np.unique(np.concatenate([truth.image_ids, content.image_ids]).astype(int), return_inverse=True)
    kinds, classes = np.unique(content.category_ids, return_inverse=True)
    class_names = dict(zip(truth.class_ids, truth.class_names, strict=True))
    return Found(
        [known.get(number, f"image {number}") for number in numbers.tolist()],
        image[len(truth.image_ids) :],
        _corners(content.boxes),
        content.scores,
        [class_names.get(number, f"category {number}") for number in kinds.tolist()],
        classes,
    )


def _kitti_found(labels: Path, truth: Truth, findings: Findings) -> Found | None:
    """Returns the detections of a folder of KITTI labels; None where no file of it is one."""
    known = {image_key(name) for name in truth.images}
    contents = {file: read_bytes(file) for file in list_files(labels, [".txt"]).files}
    meant = {file for file, content in contents.items() if file.stem in known or _is_label(content)}
    if not meant:
        return None
    strays = [file for file, content in contents.items() if file not in meant and content.strip()]
    findings.note(_LEFT_OUT, len(strays), "".join(file.name for file in strays[:1]))
    names: list[str] = []
    rows: list[tuple[int, Label]] = []
    for file in (file for file in contents if file not in strays):
        found = parse_labels(decode_text(contents[file], str(file)), str(file), scored=True)
        rows += [(len(names), label) for label in found]
        names.append(file.stem)
    return _gathered(names, ((i, label.class_name, label.box, label.score) for i, label in rows))


def _is_label(content: bytes) -> bool:
    """Says whether a text begins as a KITTI label does, with a box in its columns."""
    columns = content.partition(b"\n")[0].decode("latin-1").split()
    return len(columns) > 7 and None not in map(to_number, columns[4:8])


def _json_lines(file: Path, model: str) -> Found:
    lines = list(_documents(file))
    models = sorted({line.text("model", "") for line in lines})
    if model and model not in models:
        raise UserError(f"{file}: no model {model!r} is in it, but {', '.join(models)}; name one of them")
    if not model and len(models) > 1:
        raise UserError(f"{file}: holds the detections of {', '.join(models)}; say of which model")
    first: dict[str, str] = {}
    rows: list[tuple[int, str, list[float], float]] = []
    for line in lines:
        if line.text("model", "") != model and model:
            continue
        name = line.text("image")
        if name in first:
            raise UserError(f"{line.place}: {name} stands here again, after {first[name]}; remove one line")
        for found in line.entries("detections"):
            box, score = found.box("box", finite=False), found.number("score", finite=False)
            rows.append((len(first), found.text("class"), box, score))
        first[name] = line.place
    return _gathered(list(first), rows)


def models_in(source: Path) -> list[str]:
    """Returns whose detections a `detections.jsonl` (or the folder with it) holds; none of anything else."""
    lines = source / DETECTIONS_FILE if source.is_dir() else source
    if lines.suffix != ".jsonl" or not lines.is_file():
        return []
    return sorted({line.text("model", "") for line in _documents(lines)} - {""})


def _documents(file: Path) -> Iterator[Entry]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            place = f"{file}:{number}"
            yield entry(parse_json(line, place), place)


def _gathered(names: Sequence[str], rows: Iterable[tuple[int, str, Sequence[float], float | None]]) -> Found:
    """Makes arrays of rows of image, class, box and score."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    class_names = sorted(set(columns[1]))
    return Found(
        names,
        np.array(columns[0], np.int64),
        np.array(columns[2], np.float64).reshape(-1, 4),
        np.array(columns[3], np.float64),
        class_names,
        np.searchsorted(class_names, columns[1]).astype(np.int64) if class_names else np.zeros(0, np.int64),
    )


def aligned(found: Found, truth: Truth, findings: Findings, left_out: Collection[str] = ()) -> Predictions:
    """Orders detections by the truth's images, and leaves out what cannot be right, or is of an image `left_out`."""
    index = _index_of(truth.images)
    places = {**dict.fromkeys(map(image_key, left_out), _LEFT_OUT_IMAGE), **index}
    image_of_name = np.array([places.get(image_key(name), _NO_CLASS) for name in found.images], np.int64)
    unknown = np.flatnonzero(image_of_name == _NO_CLASS)
    example = found.images[unknown[0]] if len(unknown) else ""
    findings.fault("images with predictions that the truth does not know", len(unknown), example)
    named = np.zeros(len(truth.images), bool)
    named[image_of_name[image_of_name >= 0]] = True
    missing = np.flatnonzero(~named)
    example = truth.images[missing[0]] if len(missing) else ""
    findings.note("images without predictions, in which nothing is found", len(missing), example)

    targets = {name.lower(): number for number, name in enumerate(truth.class_names)}
    class_of_name = np.array([targets.get(name.lower(), _NO_CLASS) for name in found.class_names], np.int64)
    for number in np.flatnonzero(class_of_name < 0).tolist():
        count = int((found.classes == number).sum())
        findings.fault(f"detections of class {found.class_names[number]}, unknown to the truth", count, _some(truth))
    image = image_of_name[found.image]
    classes = class_of_name[found.classes] if len(class_of_name) else found.classes
    kept = (image >= 0) & (classes >= 0)
    with np.errstate(invalid="ignore"):
        size = found.boxes[:, 2:] - found.boxes[:, :2]
    for what, bad in (
        ("detections whose score is no finite number", ~np.isfinite(found.scores)),
        ("detections whose box is not finite", ~np.isfinite(found.boxes).all(axis=1)),
        ("detections of negative size", (size < 0).any(axis=1)),
    ):
        wrong = kept & bad
        findings.fault(what, int(wrong.sum()), found.images[found.image[wrong.argmax()]] if wrong.any() else "")
        kept &= ~bad
    order = np.flatnonzero(kept)
    order = order[np.argsort(image[order], kind="stable")]
    offsets = offsets_of(np.bincount(image[order], minlength=len(truth.images)))
    return Predictions(offsets, found.boxes[order], found.scores[order], classes[order])


def _index_of(images: Sequence[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for number, name in enumerate(images):
        if index.setdefault(image_key(name), number) != number:
            raise UserError(
                f"truth: {images[index[image_key(name)]]} and {name} differ only in their suffix; rename one"
            )
    return index


def image_key(name: str) -> str:
    """Returns an image's name without the suffix of an image file."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and dot + suffix.lower() in IMAGE_SUFFIXES else name


def _some(truth: Truth) -> str:
    return "the truth has " + ", ".join(truth.class_names)


def _corners(boxes: Floats) -> Floats:
    """Returns x1, y1, x2, y2 [N, 4] of x, y, width, height [N, 4 or more]."""
    return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]])
