"""A stand-in for the program `detectnet_v2`: it writes what TAO would write and notes how it was called."""

import sys
from pathlib import Path

PROGRAM = r"""#!@PYTHON@
import json, os, signal, subprocess, sys, time
from pathlib import Path

task, arguments = sys.argv[1], sys.argv[2:]
calls = Path("@CALLS@")
calls.write_text((calls.read_text() if calls.exists() else "") + json.dumps(sys.argv[1:]) + "\n")
mood = os.environ.get("FAKE_TAO", "")

def value(flag):
    return Path(arguments[arguments.index(flag) + 1])

def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)

if mood == "fail":
    for number in range(100):
        print("line", number)
    sys.exit(1)
if mood == "fail quietly":
    print("Execution status: FAIL")
    sys.exit(0)
if mood.startswith("say "):
    print("a line\n" + mood[4:] + "\nExecution status: FAIL")
    sys.exit(1)
if mood == "user error":
    print("spec.txt:3: unknown field epoch; did you mean epochs?")
    sys.exit(2)
if mood == "hang":
    child = subprocess.Popen(["sleep", "600"])
    print("pids", os.getpid(), child.pid, flush=True)
    time.sleep(600)
if mood == "leave a child":
    subprocess.Popen(["sleep", "600"])  # it inherits the pipe
if task == "dataset_convert":
    write(Path(str(value("-o")) + "-fold-000-of-002-shard-00000-of-00001"), "records")
    write(Path(str(value("-o")) + "_warning.json"), "{}")
elif task == "train":
    results = value("-r")
    with (results / "status.json").open("a") as status:
        status.write('{"date": "1/1/2026", "status": "RUNNING", "epoch": 0, "graphical": {"loss": 0.5}}\n')
        status.write('{"kpi": {"mean average precision": 81.5, "param_count": 0.123456, "size": 1.5}}\n')
        status.write('{"graphical": {"loss": 0.25}}\n{"graph')
    write(results / "weights" / (arguments[arguments.index("-n") + 1] + ".hdf5"), "weights")
    write(results / "model.epoch-1.hdf5", "a checkpoint")
elif task == "evaluate":
    write(value("-r") / "status.json", '{"kpi": {"mean average precision": 80.0}}\n')
    if mood != "plain TAO":
        write(value("-r") / "metrics.json", '{"mean_average_precision": 0.8, "by_height": {"16-24": 0.7}, "nan": NaN}')
elif task == "prune":
    write(value("-o"), "pruned")
    write(value("--results_dir") / "status.json", '{"kpi": {"pruning_ratio": 0.4}}\n')
elif task == "inference":
    for name in sorted(path.name for path in value("-i").iterdir()):
        write(value("-r") / "images_annotated" / name, "image")
        write(value("-r") / "labels" / (name.rpartition(".")[0] + ".txt"), "face 0\nface 0\n")
elif task == "export":
    write(value("-o"), "input_1:0 output_bbox/BiasAdd:0 output_cov/Sigmoid:0")
    write(value("-o").with_name("labels.txt"), "face\n")
print("Execution status: PASS")
"""


def install(folder: Path, calls: Path) -> Path:
    """Writes the stand-in into `folder`; every call adds its arguments as a JSON line to `calls`."""
    folder.mkdir(exist_ok=True)
    program = folder / "detectnet_v2"
    program.write_text(PROGRAM.replace("@PYTHON@", sys.executable).replace("@CALLS@", str(calls)))
    program.chmod(0o755)
    return folder
