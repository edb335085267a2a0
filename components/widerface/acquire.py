"""Imports a data set from a folder, a web server or an object store, or draws a synthetic one."""

import shutil
import urllib.parse
import zipfile
from pathlib import Path

from components.formats.wider import ANNOTATIONS, ARCHIVES, OFFICIAL_NAMES, WiderSource
from components.step import UserError, publish, write_manifest
from components.store import RETRY, RetryPolicy, fetch_prefix, local_path, redacted
from components.widerface.fetch import fetch_archives
from components.widerface.synthesize import KIND, NOTICE, synthesize

ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold: equal content, equal bytes


def acquire(
    uri: str,
    output: Path,
    training_images: int,
    validation_images: int,
    seed: int,
    image_width: int,
    image_height: int,
    retry: RetryPolicy = RETRY,
    version: str = "",
) -> dict[str, object]:
    """Writes an artifact of kind `raw_faces`: the three official archives.

    Args:
        uri: A path or `file://` URI of a folder in the official layout or of one that holds the archives; an
            `https://` or `s3://` location under which the archives lie (on S3, the official layout does too). Empty
            for a synthetic set.
        output: The artifact directory to make.
        training_images: Pictures to draw for training, where `uri` is empty.
        validation_images: Pictures to draw for validation, where `uri` is empty.
        seed: Seed of the drawn pictures.
        image_width: Width of the drawn pictures, pixels.
        image_height: Height of the drawn pictures, pixels.
        retry: Attempts, pauses and timeouts of downloads.
        version: Version of the content of `uri`, for the manifest; empty if it is not known.

    Returns:
        The counts of the manifest.

    Raises:
        UserError: The location is wrong, or holds no WIDER FACE set.
    """
    scheme = urllib.parse.urlsplit(uri).scheme
    settings: dict[str, object] = {"version": version} if version else {}
    with publish(output) as scratch:
        scratch.mkdir()
        gathered = scratch / "gathered"
        if not uri:
            settings = {"seed": seed, "image_width": image_width, "image_height": image_height}
            print(NOTICE)
            synthesize(gathered, training_images, validation_images, seed, image_width, image_height)
        elif scheme in ("http", "https"):
            fetch_archives([uri], gathered, retry=retry)
        elif scheme == "s3":
            fetch_prefix(uri, gathered, retry=retry)
        elif scheme in ("", "file"):
            gathered = local_path(uri)
        else:
            raise UserError(f"--uri {redacted(uri)}: use a path, file://, https:// or s3://, or leave it out")
        counts: dict[str, object] = {"synthetic": not uri, **_counts(gathered)}
        for archive in ARCHIVES:
            _bring(gathered, archive, scratch)
        if gathered.parent == scratch:
            shutil.rmtree(gathered)
        write_manifest(scratch, KIND, counts, settings)
    return counts


def _counts(folder: Path) -> dict[str, int]:
    """Counts images and faces, which also checks the annotations."""
    source = WiderSource(folder)
    counts = {}
    for split in OFFICIAL_NAMES:
        images = source.images(split)
        counts[f"{split}_images"] = len(images)
        counts[f"{split}_faces"] = sum(len(image.faces) for image in images)
    return counts


def _bring(folder: Path, archive: str, target: Path) -> None:
    """Puts one archive into `target`: packed from a folder if there is one, otherwise copied."""
    part = Path(archive).stem
    if (folder / part).is_dir():
        pack(folder, part, target / archive)
    elif folder.parent == target:  # downloaded
        (folder / archive).rename(target / archive)
    else:
        shutil.copyfile(folder / archive, target / archive)


def pack(folder: Path, part: str, archive: Path) -> None:
    """Stores a part of the official layout, `folder/part`, in an archive; equal content gives equal bytes.

    Of `WIDER_*` it takes the files below `images`, of `wider_face_split` the annotations of both splits. Nothing is
    compressed: the images are already.
    """
    if part == ANNOTATIONS:
        files = [folder / part / f"wider_face_{name}_bbx_gt.txt" for name in OFFICIAL_NAMES.values()]
    else:
        files = sorted(file for file in (folder / part / "images").rglob("*") if file.is_file())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(folder).as_posix(), ARCHIVE_TIME)
            member.external_attr = 0o644 << 16
            target.writestr(member, file.read_bytes())
