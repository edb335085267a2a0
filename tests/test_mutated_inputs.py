"""10,000 inputs, broken in all ways we know: one line tells what is wrong, nothing hangs, no file but ours is touched.

Some run in `make test`, the others in `make test-long`; the same ones each time.
"""

import copy
import functools
import io
import json
import os
import signal
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import pytest
import spec_texts
from exif import turned
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.coco_source import CocoSource
from components.detectnet_v2.dataset_convert import convert
from components.detectnet_v2.spec import load_dataset_export, load_experiment, load_inference, review
from components.evaluate.inputs import Findings, models_in, read_predictions, read_truth
from components.formats.images import ImageError, decode, upright_size
from components.formats.kitti import read_split
from components.formats.wider import WiderSource
from components.step import StageError, UserError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 10  # the most that one input may take

# ---- Valid inputs ----------------------------------------------------------------------------------------------------

LABEL = "face 0.25 1 0.5 10.5 4.25 20 30 1 2 3 4 5 6 7"
WIDER = f"0--Parade/a.jpg\n2\n10 20 30 40 0 0 0 0 1 0\n50 60 7 8 2 0 0 1 0 0\n1--Hand/b.jpg\n0\n{'0 ' * 10}\n"
COCO = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 3, "file_name": "b.png", "width": 8, "height": 9},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "face"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 55.5, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 18, "bbox": [5, 6, 7, 8]},
    ],
}
RESULTS = [{"image_id": 7, "category_id": 18, "bbox": [0, 0, 10, 10], "score": 0.25}]
DETECTIONS = {"model": "m", "image": "a.png", "detections": [{"class": "face", "box": [1, 2, 3, 4], "score": 0.5}]}
SPECS = [
    spec_texts.FACENET_TAO_4_0,
    *(file.read_text() for file in sorted((ROOT / "components/detectnet_v2/specs/facedetect").glob("*.txt"))),
]


@functools.cache
def image(suffix: str) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(noise, (64, 48)))[1].tobytes()


# ---- Mutations -------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *[
            "",
            "nan",
            "-inf",
            "1e999",
            "1_0",
            "-1",
            "0",
            "1.0",
            "0x10",
            "9" * 30,
            "9" * 5000,
            "Safety Helmet",
            "\ufeff",
            "\0",
        ],
        *[
            "é",
            "\u2028",
            "../../etc/passwd",
            "a" * 300 + ".jpg",
            "/",
            ".",
            "{",
            "}",
            '"',
            "\\",
            "#",
            "[",
            ":",
            "None",
            "٣",
        ],
    ]
)
VALUES = [
    *[None, float("nan"), float("inf"), True, False, -1, 0, 0.5, 1e300, 10**30, 2**63, 2**53 + 1, "", "x", "1", "1.0"],
    *["nan", "\ud800", "a\nb", "\0", "../x", [], [1], [None] * 4, [[0, 0, 1, 1]], ["1"] * 4, {}, {"id": 1}, "9" * 5000],
]
INDEX = st.integers(0, 10**6)


@st.composite
def broken_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cuts, repeats, fills in or overwrites a stretch of bytes, or leaves them as they are."""
    begin = draw(INDEX) % (len(content) + 1)
    end = min(len(content), begin + draw(st.sampled_from([0, 1, 2, 8, 10**9])))
    patch = draw(
        st.sampled_from(
            [b"", b"\0", b"\xff", b"\xff\xd9", b"\xed\xa0\x80", b"[" * 10**5, b"a{" * 10**4, b"\r\n", b"\xff\xfe"]
        )
    )
    how = draw(st.sampled_from(["nothing", "replace", "repeat", "insert"]))
    middle = {"nothing": content[begin:end], "replace": patch, "repeat": content[begin:end] * 2}
    return content[:begin] + middle.get(how, patch + content[begin:end]) + content[end:]


@st.composite
def broken_text(draw: st.DrawFn, text: str) -> bytes:
    """Changes some words or lines of a text, its encoding, and some bytes."""
    lines = [line.split(" ") for line in text.split("\n")]
    for _ in range(draw(st.integers(0, 3))):
        number = draw(INDEX) % len(lines)
        match draw(st.sampled_from(["word", "word", "word", "more", "twice", "gone"])):
            case "word":
                lines[number][draw(INDEX) % len(lines[number])] = draw(WORDS)
            case "more":
                lines[number].insert(draw(INDEX) % len(lines[number]), draw(WORDS))
            case "twice":
                lines.insert(number, [*lines[number]])
            case "gone" if len(lines) > 1:
                del lines[number]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return draw(broken_bytes("\n".join(map(" ".join, lines)).encode(encoding, "replace")))


@st.composite
def broken_json(draw: st.DrawFn, document: object) -> bytes:
    """Replaces, removes or repeats some values, however deep they lie, and changes some bytes."""
    document = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        places = [*_places(document)]
        holder, key = places[draw(INDEX) % len(places)]
        match draw(st.sampled_from(["replace", "replace", "replace", "gone", "twice"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "gone" if holder is not document:
                del holder[key]
            case "twice" if isinstance(holder, list) and holder is not document:
                holder.append(holder[key])
    content = json.dumps(document[0]).encode()
    return draw(broken_bytes(content)) if draw(st.booleans()) else content


def _places(node: object):
    for key in range(len(node)) if isinstance(node, list) else list(node):
        yield node, key
        if isinstance(node[key], list | dict):
            yield from _places(node[key])


# ---- What is done with them ------------------------------------------------------------------------------------------


def one_line(error: Exception) -> bool:
    return bool(str(error)) and "\n" not in str(error)


def in_one_line(*actions: Callable[[], object]) -> None:
    """Runs actions, each of which may refuse its input."""
    for action in actions:
        try:
            action()
        except (UserError, StageError) as error:
            assert one_line(error)  # noqa: PT017 - there need not be one


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kind and mode, time and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_file = stat.S_ISREG(status.st_mode)
        time = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
        found[str(path)] = (status.st_mode, time, path.read_bytes() if is_file else b"")
    return found


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def kitti_folder(root: Path) -> Path:
    for name in ("a", "b"):
        write(root / f"validation/images/{name}.png", image(".png"))
        write(root / f"validation/labels/{name}.txt", f"{LABEL}\n")
    return root


def convert_kitti(root: Path) -> None:
    """Converts a KITTI folder into a folder that holds files of others."""
    out = root / "records"
    for name in ("kitti", "kitti-notes.txt", "kitti-fold-000-of-002.bak", "other-fold-000-of-002"):
        write(out / name, "not ours")
    folders = 'image_dir_name: "validation/images" label_dir_name: "validation/labels"'
    settings = 'partition_mode: "random" num_partitions: 2 num_shards: 1'
    config = f'kitti_config {{ root_directory_path: "{root}" {folders} {settings} }}'
    spec, before = write(root / "convert.txt", config), state(out)
    in_one_line(lambda: convert(spec, out / "kitti"))
    assert {path: kept for path, kept in state(out).items() if path in before} == before
    in_one_line(lambda: read_truth(root, Findings()), lambda: list(read_split(root, "validation")))


def use_wider_text(data: st.DataObject, root: Path) -> None:
    file = write(root / "wider_face_split/wider_face_val_bbx_gt.txt", data.draw(broken_text(WIDER)))
    in_one_line(lambda: read_truth(file, Findings()), lambda: read_truth(root, Findings(strict=True)))


def use_kitti_labels(data: st.DataObject, root: Path) -> None:
    write(kitti_folder(root) / "validation/labels/b.txt", data.draw(broken_text(f"{LABEL}\n{LABEL}\n")))
    convert_kitti(root)


def read_coco(content: bytes, root: Path) -> None:
    for name in ("a.png", "b.png"):
        write(root / name, b"")
    file = write(root / "coco.json", content)
    config = spec_pb2.COCOConfig(annotation_files=[file.name], img_dir_names=["."], num_partitions=1, num_shards=[1])

    def frames() -> None:
        for partition in CocoSource(config, root).partitions:
            for key in partition.keys:
                partition.read(key)

    in_one_line(frames, lambda: read_truth(file, Findings()))


def use_coco_annotations(data: st.DataObject, root: Path) -> None:
    read_coco(data.draw(broken_json(COCO)), root)


def read_json_predictions(content: bytes, root: Path) -> None:
    truth = read_truth(write(root / "truth.json", json.dumps(COCO)), Findings())
    for file in (write(root / "found/detections.jsonl", content), write(root / "results.json", content)):
        in_one_line(lambda file=file: models_in(file), lambda file=file: read_predictions(file, truth, Findings()))


def use_predictions(data: st.DataObject, root: Path) -> None:
    read_json_predictions(data.draw(broken_json(data.draw(st.sampled_from([DETECTIONS, RESULTS])))), root)
    truth = read_truth(root / "truth.json", Findings())
    wider = read_truth(write(root / "wider_bbx_gt.txt", WIDER), Findings())
    kitti = write(root / "kitti/a.txt", data.draw(broken_text(f"{LABEL} 0.5\n"))).parent
    events = write(root / "wider/0--Parade/a.txt", data.draw(broken_text("a\n1\n1 2 3 4 0.5\n"))).parent.parent
    in_one_line(
        lambda: read_predictions(events, wider, Findings()),
        lambda: read_predictions(kitti, truth, Findings(strict=True)),
    )


def use_specs(data: st.DataObject, root: Path) -> None:
    file = write(root / "spec.txt", data.draw(broken_text(data.draw(st.sampled_from(SPECS)))))
    load = data.draw(st.sampled_from([load_experiment, load_inference, load_dataset_export]))
    in_one_line(lambda: review(file), lambda: load(file))


NAMES = [".DS_Store", "._a.png", "Thumbs.db", "c.png", "c.PNG", "README.txt", "a.txt", "__MACOSX/a.png", "d.png/e.png"]
NAMES += [
    "a b.png",
    "é.png",
    "shard-00000.tar",
    "x" * 250,
    "new\nline.png",
    os.fsdecode(b"\xff.png"),
    ".ipynb_checkpoints/a.png",
]


def use_file_trees(data: st.DataObject, root: Path) -> None:
    """Adds what has no business in a set: links into nowhere, pipes, folders and files of others."""
    kitti_folder(root)
    write(root / "WIDER_val/images/0--Parade/a.jpg", image(".jpg"))
    write(root / "wider_face_split/wider_face_val_bbx_gt.txt", WIDER)
    folders = ["validation/images", "validation/labels", "WIDER_val/images", "validation", "wider_face_split"]
    for _ in range(data.draw(st.integers(1, 4))):
        path = root / data.draw(st.sampled_from(folders)) / data.draw(st.sampled_from(NAMES))
        if os.path.lexists(path) or not path.parent.parent.is_dir() or path.parent.is_file():
            continue
        path.parent.mkdir(exist_ok=True)
        match data.draw(st.sampled_from(["file", "folder", "pipe", "link", "loop", "gone"])):
            case "file":
                write(path, data.draw(st.sampled_from([b"", b"\0\xff", image(".png"), LABEL.encode()])))
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "link":
                path.symlink_to(root / data.draw(st.sampled_from(["nowhere", "validation/images/a.png", "validation"])))
            case "loop":
                path.symlink_to(path)
            case "gone":
                (root / "validation/labels/b.txt").unlink(missing_ok=True)
    convert_kitti(root)
    wider = root / "wider_face_split/wider_face_val_bbx_gt.txt"
    in_one_line(
        lambda: list(WiderSource(root).files("validation")),
        lambda: read_predictions(root / "validation", read_truth(wider, Findings()), Findings()),
    )


def use_archives(data: st.DataObject, root: Path) -> None:
    shard, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("images/a.png", image(".png")), ("labels/a.txt", LABEL.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(
        archive, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    ) as packed:
        packed.writestr("WIDER_val/images/0--Parade/a.jpg", image(".jpg"))
        packed.writestr("0--Parade/a.txt", "a\n1\n1 2 3 4 0.5\n")
    write(root / "set/validation/shard-00000.tar", data.draw(broken_bytes(shard.getvalue())))
    write(root / "WIDER_val.zip", data.draw(broken_bytes(archive.getvalue())))
    truth = read_truth(write(root / "wider_bbx_gt.txt", WIDER), Findings())

    def read_all() -> None:
        source = WiderSource(root)
        for name in source.files("validation"):
            try:
                source.read("validation", name)
            except ImageError as error:
                assert one_line(error)  # noqa: PT017

    in_one_line(
        read_all,
        lambda: read_truth(root / "set", Findings()),
        lambda: read_predictions(root / "WIDER_val.zip", truth, Findings()),
    )


def use_images(data: st.DataObject, _: Path) -> None:
    whole = image(data.draw(st.sampled_from([".jpg", ".png"])))
    content = data.draw(broken_bytes(turned(whole, data.draw(st.integers(0, 9)))))
    try:
        shape = decode(content).shape
    except ImageError as error:
        assert one_line(error)  # noqa: PT017
        return
    assert upright_size(content) == (shape[1], shape[0])


KINDS = [
    use_wider_text,
    use_kitti_labels,
    use_coco_annotations,
    use_predictions,
    use_specs,
    use_file_trees,
    use_archives,
    use_images,
]
INPUTS, QUICK = 10_000 // len(KINDS), 100  # of each kind


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError(f"an input takes more than {SECONDS} seconds")


def put_through(use: Callable[[st.DataObject, Path], None], number: int, count: int) -> None:
    """Puts `count` inputs of a kind through; `number` chooses which."""
    done = 0

    @seed(number)
    # Not made smaller when it fails: what hangs would hang each time.
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        nonlocal done
        with tempfile.TemporaryDirectory() as parent:
            foreign = write(Path(parent) / "foreign.txt", "not ours")
            foreign.chmod(0o640)
            root = foreign.with_name("root")
            root.mkdir()
            before = state(foreign.parent)
            signal.alarm(SECONDS)
            use(data, root)
            signal.alarm(0)
            assert {path: kept for path, kept in state(foreign.parent).items() if path in before} == before
        done += 1

    former = signal.signal(signal.SIGALRM, _too_long)
    try:
        one()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    assert done >= count


@pytest.mark.parametrize(
    ("document", "read"),
    [(COCO, read_coco), (RESULTS, read_json_predictions), (DETECTIONS, read_json_predictions)],
    ids=["annotations", "results", "detections"],
)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(tmp_path, document, read):
    for number, _ in enumerate(_places([document])):
        for value in VALUES:
            changed = [copy.deepcopy(document)]
            holder, key = [*_places(changed)][number]
            holder[key] = value
            read(json.dumps(changed[0]).encode(), tmp_path)


@pytest.mark.parametrize("use", KINDS)
def test_mutated_inputs_are_read_or_refused_in_one_line(use):
    put_through(use, 1, QUICK)


@pytest.mark.long
@pytest.mark.parametrize("use", KINDS)
def test_the_other_mutated_inputs_are_read_or_refused_in_one_line(use):
    put_through(use, 2, INPUTS - QUICK)


def test_the_paper_says_how_many_inputs_there_are():
    paper = (ROOT / "docs/reliability.md").read_text()
    assert f"{INPUTS * len(KINDS):,} mutated inputs**, {INPUTS:,} of each kind" in paper
    assert f"{QUICK * len(KINDS):,} run in" in " ".join(paper.split())
    assert f"each of {len(VALUES)} odd values" in " ".join(paper.split())
