"""Downloads the official archives of WIDER FACE from configured sources."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.formats.reading import read_text
from components.formats.wider import ARCHIVES
from components.progress import Download
from components.step import UserError
from components.store import RETRY, RetryPolicy, join, redacted
from components.store import fetch as fetch_file


def fetch_archives(
    sources: Sequence[str],
    output: Path,
    checksums: Mapping[str, str] | None = None,
    retry: RetryPolicy = RETRY,
) -> None:
    """Downloads the three archives into the folder `output`; existing ones are kept.

    An interrupted download resumes when the command runs again.

    Args:
        sources: Locations that hold the archives, tried in turn: paths, `https://` or `s3://` URIs.
        output: The folder to fill. It may exist.
        checksums: SHA-256 by archive name; archives that are not named are not checked.
        retry: Attempts, pauses and timeouts of a download.

    Raises:
        UserError: No source is given or none has the archive, or an archive's checksum differs.
    """
    if not sources:
        raise UserError("--source: give a location that holds " + ", ".join(ARCHIVES))
    unknown = sorted(set(checksums or {}) - set(ARCHIVES))
    if unknown:
        raise UserError(f"checksums name {unknown[0]}, the archives are {', '.join(ARCHIVES)}")
    for name in ARCHIVES:
        if not (output / name).is_file():
            _fetch_one(sources, name, output / name, (checksums or {}).get(name, ""), retry)


def _fetch_one(sources: Sequence[str], name: str, destination: Path, checksum: str, retry: RetryPolicy) -> None:
    problems = []
    for source in sources:
        try:
            with Download(f"{name} from {redacted(source)}") as download:
                fetch_file(join(source, name), destination, checksum, download.report, retry)
            return
        except UserError as error:
            problems.append(str(error))
    raise UserError("; ".join(problems))


def read_checksums(file: Path) -> dict[str, str]:
    """Reads a list as `sha256sum` writes it: a checksum, blanks, a file name, line by line.

    Raises:
        UserError: The file is missing or a line has another form.
    """
    checksums = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(?:.*/)?([^/\s]+)\s*", line)
        if not match:
            raise UserError(f"{file}:{number}: not a line of sha256sum (64 hexadecimal digits, blanks, a file name)")
        checksums[match[2]] = match[1].lower()
    return checksums
