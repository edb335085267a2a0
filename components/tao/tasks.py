"""The tasks of TAO's networks as stages: `<network> <task> --flag=value …`."""

import argparse
import importlib
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Set, Tuple

from components.step import OneLineParser, UserError, check_output, flag
from components.tao.rendering import FAMILIES

# The models that a workflow of train, prune and retrain makes, in their order.
MODELS = ("pretrained", "trained", "pruned", "retrained")


class Task(NamedTuple):
    """A task of a network. Names are those of its component.

    Attributes:
        run: Does the work.
        inputs: Artifacts that it reads.
        parameters: Its parameters.
        outputs: What it writes.
        texts: The parameters that are no numbers.
        optional: The parameters that may be empty: Kubeflow's empty string counts as absent.
    """

    run: Callable[[argparse.Namespace], None]
    inputs: Tuple[str, ...]
    parameters: Tuple[str, ...]
    outputs: Tuple[str, ...]
    texts: Tuple[str, ...] = ("spec",)
    optional: Tuple[str, ...] = ()


def tasks_of(network: str) -> Dict[str, Task]:
    """Returns the tasks of a network, which are in its family's `stage.py`; none where there is no such family."""
    if not (network.isidentifier() and (FAMILIES / network / "stage.py").is_file()):
        return {}
    return dict(importlib.import_module(f"components.{network}.stage").TASKS)


def run_task(argv: List[str]) -> None:
    """Runs `<network> <task> --flag=value …`; flags are the component's inputs, parameters and outputs.

    Raises:
        UserError: There is no such network or task, or an input is not there.
    """
    network, name = (*argv, "", "")[:2]
    tasks = tasks_of(network)
    if name not in tasks:
        networks = sorted(file.parent.name for file in FAMILIES.glob("*/stage.py"))
        known = f"{network} and one of {', '.join(tasks)}" if tasks else f"one of {', '.join(networks)} and its task"
        raise UserError(f"say {known}, then the flags of the stage")
    task = tasks[name]
    options = parse_flags(f"{network} {name}", task, argv[2:])
    for each in task.inputs:
        if not getattr(options, each).exists():
            raise UserError(f"input {each}: {getattr(options, each)} does not exist")
    for each in task.outputs:
        check_output(getattr(options, each))
    task.run(options)


def flags_of(words: List[str]) -> Set[str]:
    """Returns the flags that a stage takes, after the words `<network> <task>`."""
    network, name = (*words, "", "")[:2]
    task = tasks_of(network).get(name)
    return {flag(each) for each in (*task.inputs, *task.parameters, *task.outputs)} if task else set()


def number(text: str) -> str:
    """Returns the text of a number as it is; a ValueError tells argparse of any other."""
    float(text)
    return text


def parse_flags(what: str, task: Task, flags: List[str]) -> argparse.Namespace:
    """Parses a task's flags: its inputs and outputs as paths, its parameters as the text they are."""
    parser = OneLineParser(prog=what, allow_abbrev=False)
    for name in (*task.inputs, *task.outputs):
        parser.add_argument(flag(name), type=Path, required=True)
    for name in task.parameters:
        kind: Callable[[str], str] = str if name in task.texts else number
        parser.add_argument(flag(name), required=name not in task.optional, default="", type=kind)
    # Where this very program lies; the stage's command runs it.
    parser.add_argument("--program", help=argparse.SUPPRESS)
    return parser.parse_args(flags)
