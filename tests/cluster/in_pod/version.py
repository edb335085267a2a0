"""Runs in the bench: publishes a version made of the one that is served, with a fault in its first model.

python3 - STORAGE_URI FAULT FOLDER: writes FOLDER/published and FOLDER/evaluation, which `gridbox serve deploy` takes,
and prints the new version's digest.
"""

import json
import sys
import uuid
from pathlib import Path

from components import publication, step
from components.serve.published import publish_repository

FAULTS = {
    "none": "",
    "slow": "import time\ntime.sleep(45)\n",
    "crashing": "raise RuntimeError('made to crash by make test-cluster')\n",
}


def main(storage_uri, fault, folder):
    """Publishes it."""
    folder = Path(folder)
    folder.mkdir()
    base, _, rest = storage_uri.rpartition("/versions/")
    publication.fetch_published(base, folder / "model", rest.partition("/")[0])
    manifest = step.read_manifest(folder / "model", "model_repository")
    new = uuid.uuid4().hex * 2
    old = manifest["settings"]["repository_digest"]
    for config in folder.glob("model/repository/*/config.pbtxt"):
        config.write_text(config.read_text().replace(old, new))
    program = min(folder.glob("model/repository/*/1/model.py"))
    program.write_text(FAULTS[fault] + program.read_text())
    settings = {**manifest["settings"], "repository_digest": new}
    step.write_manifest(folder / "model", manifest["kind"], manifest["counts"], settings)
    publish_repository(folder / "model", base, folder / "published")
    (folder / "evaluation").mkdir()
    step.write_manifest(folder / "evaluation", "evaluation", {"mean_average_precision": 0.5}, {})
    print(json.dumps({"digest": new}))


main(*sys.argv[1:])
