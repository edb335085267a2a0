"""`docs/extending.md`, followed to the letter: a family and a workflow that train, export, serve and score."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/]+\.py)`\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
LINES = re.findall(r"`([\w/.]+)`:\n\n```diff\n-(.*?)\n\+(.*?)\n```", PAGE)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the project with what the page adds, and an environment that finds no other copy."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("components", "pipeline"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name, text in FILES.items():
        (tree / name).parent.mkdir(exist_ok=True)
        assert not (tree / name).exists()
        (tree / name).write_text(text, encoding="utf-8")
    for name, former, new in LINES:
        text = (tree / name).read_text(encoding="utf-8")
        assert text.count(former) == 1, f"{name} has no line {former!r} any more"
        (tree / name).write_text(text.replace(former, new), encoding="utf-8")
    venv.create(tree / "venv", symlinks=True)
    folder = next((tree / "venv/lib").glob("python*/site-packages"))
    # Triton's Python takes no PYTHONPATH, and the project itself may be installed from its folder.
    folder.joinpath("tree.pth").write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")
    script = tree / "venv/bin/gridbox"
    script.write_text(f"#!{tree}/venv/bin/python\nfrom pipeline.cli import main\nmain()\n")
    script.chmod(0o755)
    return tree


def call(tree, *words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{tree}/venv/bin:{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([*map(str, words)], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_workflow_touches_one_folder_one_file_and_three_lines():
    assert {str(Path(name).parent) for name in FILES} == {"components/shade", "pipeline"}
    assert sum(name.startswith("pipeline/") for name in FILES) == 1
    assert sorted(name for name, *_ in LINES) == ["pipeline/catalogue.py", "pyproject.toml", "pyproject.toml"]


def test_the_new_workflow_trains_exports_serves_and_scores(tree):
    call(tree, "gridbox", "run", "shade", "--set", "deploy_target=local", "--set", "train_size=16")
    run = tree / "runs/shade-default"
    for stage in ("score", "endpoint"):
        manifest = json.loads((run / stage / "evaluation/manifest.json").read_text(encoding="utf-8"))
        assert manifest["counts"]["accuracy"] == 1.0, stage
        assert manifest["counts"]["count"] == 16
    deployed = json.loads((run / "deploy/deployment/manifest.json").read_text(encoding="utf-8"))
    assert deployed["settings"]["model_name"] == "shade_ensemble"


def test_the_new_workflow_is_explained_and_compiled(tree):
    assert "Passes over the images." in call(tree, "gridbox", "params", "shade", "train_epochs")
    call(tree, "gridbox", "compile", "shade", "-o", tree / "shade.yaml")
    assert "comp-endpoint" in (tree / "shade.yaml").read_text(encoding="utf-8")


def test_the_new_family_keeps_to_the_doors(tree):
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    assert "0 broken" in call(tree, tree / "venv/bin/python", lint, "--no-cache")
