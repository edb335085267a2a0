"""A compiled pipeline: what it declares, and whether it can run here."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.step import UserError, parameter_flag
from pipeline.images import Images, repository
from pipeline.package import DUMPER, read, stage_name

PYTHON_EXECUTOR = "kfp.dsl.executor_main"
EXECUTOR_INPUT = "{{$}}"


@dataclass(frozen=True, slots=True)
class CompiledPipeline:
    """A compiled pipeline file.

    Attributes:
        path: The file.
        name: The pipeline's name.
        parameters: By name, the KFP type: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT.
        stages: By component name, how its stage is called here (and its folder).
        uncached: The stages whose results must not stand for another run of them: what they do lies outside.
        of_tao: The stages that call NVIDIA's program.
    """

    path: Path
    name: str
    parameters: dict[str, str]
    stages: dict[str, str]
    uncached: frozenset[str]
    of_tao: frozenset[str]


def dump(pipeline: Any) -> str:  # noqa: ANN401 - kfp ships no types
    """Returns the text of a compiled pipeline.

    The documents are kfp's own. Its writer takes seconds over them, and puts comments above them which a default of
    many lines, as a spec is, breaks out of.

    Args:
        pipeline: What `dsl.pipeline` has made of a function.
    """
    from google.protobuf import json_format

    spec = pipeline.pipeline_spec
    for component in spec.components.values():
        # Kubeflow copies a component's declaration five times into the Workflow; its texts stand in component.py.
        for side in (component.input_definitions, component.output_definitions):
            for declared in (*side.parameters.values(), *side.artifacts.values()):
                declared.description = ""
    documents = [json_format.MessageToDict(message) for message in (spec, pipeline.platform_spec)]
    _spell_constants(documents[0])
    return str(yaml.dump_all([each for each in documents if each], Dumper=DUMPER, sort_keys=True))


def _spell_constants(spec: dict[str, Any]) -> None:
    """Makes words of a stage's command of the inputs that are constants.

    As an input a constant would stand some twenty times in the Workflow, as a word nine times.
    """
    components, executors = spec["components"], spec["deploymentSpec"]["executors"]
    for dag in [spec["root"]["dag"], *(each["dag"] for each in components.values() if "dag" in each)]:
        for task in dag["tasks"].values():
            component = components[task["componentRef"]["name"]]
            if "dag" in component:
                continue
            inputs = task.get("inputs", {}).get("parameters", {})
            declared = component.get("inputDefinitions", {}).get("parameters", {})
            args = executors[component["executorLabel"]]["container"]["args"]
            for name, source in sorted(inputs.items()):
                value = source.get("runtimeValue", {}).get("constant")
                if name in declared and value is not None and "{{$" not in str(value):
                    args[args.index("--executor-input") : args.index("--executor-input")] = parameter_flag(name, value)
                    del inputs[name], declared[name]


def load(path: Path, has_double: bool = False, images: Images | None = None) -> CompiledPipeline:
    """Reads a compiled pipeline and refuses what cannot run as plain processes.

    Args:
        path: The file.
        has_double: Whether a double of NVIDIA's program stands in for it.
        images: What the images are called for which the programs installed here stand in; ours by default.

    Raises:
        UserError: The file is no compiled pipeline, or has a condition on a task's output, an image outside the
            allow-list, a Python-function component, or a stage that does not take the executor input.
    """
    images = images or Images()
    package = read(path)
    dag, executors = package.spec["root"]["dag"], package.spec["deploymentSpec"]["executors"]
    components = package.spec.get("components") or {}
    for label, executor in sorted(executors.items()):
        _check_executor(path, label, executor, has_double, images)
    _check_conditions(path, dag, components, frozenset())
    stages = _stage_names(path, dag, components)
    uncached = frozenset(stages[name] for name, task in _tasks(dag, components) if not _is_cached(task))
    of_tao = frozenset(
        stages[label.replace("exec-", "comp-", 1)]
        for label, executor in executors.items()
        if repository(executor["container"]["image"]) == repository(images.tao)
    )
    return CompiledPipeline(path, package.name, package.types, stages, uncached, of_tao)


def _check_executor(path: Path, label: str, executor: dict[str, Any], has_double: bool, images: Images) -> None:
    stage, container = label.removeprefix("exec-"), executor.get("container")
    if container is None:
        raise UserError(f"{path}: {stage} is no container component; only those run here")
    words = [*container.get("command", []), *container.get("args", [])]
    if any(PYTHON_EXECUTOR in word for word in words):
        raise UserError(f"{path}: {stage} is a Python-function component; only container components run here")
    found, known = repository(container["image"]), [repository(image) for image in (images.open, images.open_gpu)]
    if found == repository(images.tao) and not has_double:
        raise UserError(
            f"{path}: {stage} calls NVIDIA's program, which runs here as a double only: --engine tao-double"
        )
    if found not in (*known, repository(images.tao)):
        raise UserError(
            f"{path}: {stage} has the image {container['image']}; only stages of "
            f"{' and '.join(dict.fromkeys(known))} run here (a mirror is named in gridbox.toml, [images])"
        )
    if EXECUTOR_INPUT not in words:
        raise UserError(f"{path}: {stage} does not take --executor-input {EXECUTOR_INPUT}, so it cannot be followed")


def _check_conditions(path: Path, dag: dict[str, Any], components: dict[str, Any], tainted: frozenset[str]) -> None:
    """Refuses conditions on task outputs: kfp 2.17.0 evaluates such an output as Python (GHSA-rhjm-6347-5x33).

    Args:
        path: For the message.
        dag: The tasks to check, and the ones below them.
        components: All components.
        tainted: Inputs of this dag that come from a task's output.
    """
    for task_name, task in dag["tasks"].items():
        inputs = (task.get("inputs") or {}).get("parameters") or {}
        from_tasks = frozenset(
            name
            for name, source in inputs.items()
            if "taskOutputParameter" in source or source.get("componentInputParameter") in tainted
        )
        condition = (task.get("triggerPolicy") or {}).get("condition", "")
        if any(f"'{name}'" in condition for name in from_tasks):
            raise UserError(
                f"{path}: {task_name} depends on a condition on a task's output; such files do not run here"
            )
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            _check_conditions(path, component["dag"], components, from_tasks)


def _stage_names(path: Path, dag: dict[str, Any], components: dict[str, Any]) -> dict[str, str]:
    stages: dict[str, str] = {}
    for component, task in _tasks(dag, components):
        if component in stages:
            raise UserError(f"{path}: two tasks share {component}; compile it so that each has its own")
        name = task["taskInfo"]["name"]
        stages[component] = stage_name(name)
    for name, count in Counter(stages.values()).items():
        if count > 1:
            raise UserError(f"{path}: two tasks are called {name}; give them different display names")
    return stages


def _is_cached(task: dict[str, Any]) -> bool:
    return bool((task.get("cachingOptions") or {}).get("enableCache"))


def _tasks(dag: dict[str, Any], components: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every task that runs a container, by the name of its component, in the order in which they run."""
    for task_name in _execution_order(dag):
        task = dag["tasks"][task_name]
        component = task["componentRef"]["name"]
        if "dag" in components[component]:
            yield from _tasks(components[component]["dag"], components)
        else:
            yield component, task


def _execution_order(dag: dict[str, Any]) -> list[str]:
    """Returns the tasks in the order in which kfp.local runs them."""
    from kfp.local import graph_utils

    dependencies = {name: list(task.get("dependentTasks") or []) for name, task in dag["tasks"].items()}
    return [str(name) for name in reversed(graph_utils.topological_sort(dependencies))]
