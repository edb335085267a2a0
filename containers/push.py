"""Pushes images that were built for a registry, and writes their digests to where pipelines and manifests name them.

python containers/push.py REGISTRY TARGET…

The digests go into `[images]` of gridbox.toml, which is made where there is none, and into
manifests/components/release/kustomization.yaml: both or neither.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from components.serve.kserve import runtime_name  # noqa: E402 - found through the line above
from components.step import StageError, UserError, run  # noqa: E402

SETTINGS = Path("gridbox.toml")
RELEASE = ROOT / "manifests/components/release/kustomization.yaml"
# By target of the Dockerfile, what gridbox.toml calls it; nothing names the client.
KEYS = {"cpu": "open", "gpu": "open_gpu", "triton": "triton"}


def push(name: str) -> str:
    """Pushes an image and returns it as its registry will give it for ever: by digest.

    Raises:
        StageError: Docker cannot push it.
    """
    pushed = subprocess.run(["docker", "push", name], stdout=subprocess.PIPE, text=True)
    print(pushed.stdout, end="", flush=True)
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", pushed.stdout)
    if pushed.returncode or not digest:
        raise StageError(f"{name}: docker push failed; log in to the registry first: docker login {name.split('/')[0]}")
    return f"{name.rpartition(':')[0]}@{digest[1]}"


def with_images(text: str, images: Mapping[str, str]) -> str:
    """Returns the text of gridbox.toml with other images; all else stays as it is.

    Raises:
        UserError: It is no TOML, or its images are written in a way that would not stay.
    """
    kept = text if re.search(r"^\[images\]", text, re.MULTILINE) else f"{text.rstrip()}\n\n[images]\n".lstrip()
    before, header, section = re.split(r"^(\[images\].*\n?)", kept, maxsplit=1, flags=re.MULTILINE)
    section, *after = re.split(r"^(?=\[)", section, maxsplit=1, flags=re.MULTILINE)
    for key, image in images.items():
        line = f'{key} = "{image}"'
        section, replaced = re.subn(rf"^{key}\s*=\s*(\"[^\"\n]*\"|'[^'\n]*')", line, section, flags=re.MULTILINE)
        section = section if replaced else f"{line}\n{section}"
    changed = "".join((before, header.rstrip("\n") + "\n", section, *after))
    try:
        former, found = tomllib.loads(text), tomllib.loads(changed)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{SETTINGS}: {error}; write the images by hand:\n{_lines(images)}") from error
    if found != {**former, "images": {**former.get("images", {}), **images}}:
        raise UserError(f"{SETTINGS}: the table [images] cannot be changed; write it by hand:\n{_lines(images)}")
    return changed


def _lines(images: Mapping[str, str]) -> str:
    return "\n".join(f'{key} = "{image}"' for key, image in images.items())


def with_release(text: str, image: str) -> str:
    """Returns the text of the manifests' release with another Triton image, and the name of its runtime."""
    name, _, digest = image.partition("@")
    text = re.sub(r"newName: .*", f"newName: {name}", text)
    text = re.sub(r"(newTag|digest): .*", f"digest: {digest}", text)
    return re.sub(r"value: gridbox-triton[a-z0-9-]*", f"value: {runtime_name(image)}", text)


def main(arguments: list[str]) -> None:
    """Pushes, and writes both files beside themselves before the first is replaced."""
    registry, *targets = arguments
    if not registry:
        raise UserError("which registry? make images push REGISTRY=registry.example/team")
    names = subprocess.run(
        [ROOT / "containers/build.sh", "--names", *targets],
        env={**os.environ, "REGISTRY": registry, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    pushed = {target: push(name) for target, name in zip(targets, names, strict=True)}
    images = {KEYS[target]: image for target, image in pushed.items() if target in KEYS}
    written = {SETTINGS: with_images(SETTINGS.read_text("utf-8") if SETTINGS.is_file() else "", images)}
    if "triton" in images:
        written[RELEASE] = with_release(RELEASE.read_text("utf-8"), images["triton"])
    beside = {file: file.with_name(f".{file.name}.new") for file in written}
    for file, text in written.items():
        beside[file].write_text(text, encoding="utf-8")
    for file, partial in beside.items():
        partial.replace(file)
        print(f"{file}: names the images by digest")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main, "make push"))
