"""What `gridbox params` tells of a workflow's parameters."""

import json
import textwrap
from typing import Any

from components.step import UserError
from pipeline.building import readers
from pipeline.catalogue import PipelineDefinition
from pipeline.parameters import nearest

_WIDTH = 100
_SET = {
    True: "for each run: --set of submit, run or schedule, or the form of Kubeflow's UI",
    False: "when the workflow is compiled: --set of compile, upload, submit or run",
}


def documents(workflow: PipelineDefinition, name: str = "") -> list[dict[str, Any]]:
    """Returns all that is known of a parameter, or of each.

    Raises:
        UserError: There is no such parameter.
    """
    if name and name not in workflow.parameters:
        raise UserError(f"{workflow.name}: no such parameter as {name}; {nearest(name, workflow.parameters)}")
    stages = readers(workflow)
    return [
        {
            "name": each,
            "help": parameter.help,
            "type": parameter.type.__name__,
            "range": parameter.range_words,
            "default": parameter.default,
            "profiles": {key: values[each] for key, values in workflow.profiles.items() if each in values},
            "set": "run" if parameter.is_of_run else "compile",
            "open_engine_only": parameter.is_open_only,
            "stages": stages[each],
        }
        for each, parameter in workflow.parameters.items()
        if each == name or not name
    ]


def rows(workflow: PipelineDefinition) -> list[list[str]]:
    """Returns the list of all parameters: name, when it is set, default and what it does."""
    return [
        [name, "run" if each.is_of_run else "compile", shown(each.default), each.help]
        for name, each in workflow.parameters.items()
    ]


def text(workflow: PipelineDefinition, told: dict[str, Any]) -> str:
    """Returns what is known of a parameter as a person reads it."""
    lines = {
        "PARAMETER": f"{told['name']} <{told['range']}>",
        "WORKFLOW": workflow.name,
        "DEFAULT": shown(told["default"]),
        "PROFILES": ", ".join(f"{profile}: {shown(value)}" for profile, value in told["profiles"].items()),
        "SET": _SET[told["set"] == "run"],
        "ENGINE": "open only" if told["open_engine_only"] else "",
        "STAGES": ", ".join(told["stages"]),
    }
    head = "\n".join(f"{title + ':':<12}{words}" for title, words in lines.items() if words)
    return f"{head}\n\n{textwrap.fill(told['help'], _WIDTH)}"


def shown(value: object) -> str:
    """Returns a value as it is written after `--set NAME=`."""
    return value if isinstance(value, str) and value else json.dumps(value)
