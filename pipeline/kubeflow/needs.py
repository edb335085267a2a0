"""What a compiled pipeline needs of the place it runs in, read off its file."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.kubeflow.connection import Document
from pipeline.package import Package

_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(.+?)'\]\}\}")


@dataclass(frozen=True, slots=True)
class Pool:
    """The nodes that some stages want.

    Attributes:
        resource: What they want of a node, as `nvidia.com/gpu`.
        count: How many of it.
        selector: Labels that the node must bear.
        tolerations: Those of the pods.
    """

    resource: str
    count: int
    selector: Mapping[str, str]
    tolerations: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret: whether the stages can do without it, and whether images are pulled with it."""

    is_optional: bool
    is_for_images: bool


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that servers understand from a release on, or, with `broken`, in all but one."""

    name: str
    release: tuple[int, ...]
    is_broken: bool = False


def values(package: Package, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every parameter's value in a run with these arguments."""
    defaults = {name: declared.get("defaultValue") for name, declared in package.parameters.items()}
    return defaults | dict(arguments)


def secrets(package: Package, given: Mapping[str, Any]) -> dict[str, Secret]:
    """Returns the secrets that stages use, by their name."""
    found: dict[str, Secret] = {}
    for settings in _kubernetes(package).values():
        for kind in ("secretAsEnv", "secretAsVolume", "imagePullSecret"):
            for each in settings.get(kind) or []:
                name = _resolved(each.get("secretNameParameter") or each.get("secretName"), given)
                if name:
                    known = found.get(str(name), Secret(is_optional=True, is_for_images=False))
                    found[str(name)] = Secret(
                        known.is_optional and bool(each.get("optional")),
                        known.is_for_images or kind == "imagePullSecret",
                    )
    return found


def volumes(package: Package, given: Mapping[str, Any]) -> set[str]:
    """Returns the volume claims that must be there."""
    mounts = [each for settings in _kubernetes(package).values() for each in settings.get("pvcMount") or []]
    names = (_resolved(each.get("pvcNameParameter") or each.get("constant"), given) for each in mounts)
    return {str(name) for name in names if name}


def mounts(package: Package) -> set[str]:
    """Returns the folders at which stages mount volume claims."""
    return {
        str(each["mountPath"]).rstrip("/")
        for settings in _kubernetes(package).values()
        for each in settings.get("pvcMount") or []
    }


def pools(package: Package, given: Mapping[str, Any]) -> dict[str, Pool]:
    """Returns what each stage that wants an accelerator wants, by the stage's component."""
    found: dict[str, Pool] = {}
    for label, executor in package.spec["deploymentSpec"]["executors"].items():
        wanted = ((executor.get("container") or {}).get("resources") or {}).get("accelerator") or {}
        resource = str(_resolved(wanted.get("resourceType") or wanted.get("type"), given) or "")
        count = str(_resolved(wanted.get("resourceCount") or wanted.get("count"), given) or "0")
        if not resource or not count.isdigit() or not int(count):
            continue
        settings = _kubernetes(package).get(label) or {}
        node = settings.get("nodeSelector") or {}
        selector = node.get("labels") or _json(_resolved(node.get("nodeSelectorJson"), given)) or {}
        tolerations = tuple(_tolerations(settings.get("tolerations") or [], given))
        found[label.removeprefix("exec-")] = Pool(resource, int(count), selector, tolerations)
    return found


def features(package: Package) -> list[Feature]:
    """Returns what the server must understand, with the release since when it does."""
    kubernetes = list(_kubernetes(package).values())
    config = ((package.platform.get("platforms") or {}).get("kubernetes") or {}).get("pipelineConfig") or {}
    wanted = [
        ("lifetimes of finished runs and deadlines", (2, 17), any("Ttl" in key or "Dead" in key for key in config)),
        ("a list of allowed values (literals)", (2, 16), any("literals" in each for each in _declared(package))),
        ("security contexts", (2, 16), any("securityContext" in each for each in kubernetes)),
        ("folders of a volume claim (subPath)", (2, 16), '"subPath"' in json.dumps(kubernetes)),
        ("optional secrets", (2, 15), '"optional": true' in json.dumps(kubernetes)),
        ("a workspace", (2, 14), "workspace" in config),
        ("the final status in an exit handler", (2, 14), '"taskFinalStatus"' in json.dumps(package.spec)),
        ("the number of GPUs as a parameter", (2, 10), _has_dynamic_count(package)),
        ("node selectors and tolerations as parameters", (2, 5), 'Json": {' in json.dumps(kubernetes)),
    ]
    found = [Feature(name, release) for name, release, is_wanted in wanted if is_wanted]
    if _relies_on_defaults(package):  # kubeflow/pipelines#14178
        found.append(Feature("defaults of components that the pipeline does not pass", (2, 17, 0), is_broken=True))
    return found


def _kubernetes(package: Package) -> dict[str, Document]:
    platform = (package.platform.get("platforms") or {}).get("kubernetes") or {}
    return dict((platform.get("deploymentSpec") or {}).get("executors") or {})


def _declared(package: Package) -> Iterator[Document]:
    for component in (package.spec["root"], *(package.spec.get("components") or {}).values()):
        yield from ((component.get("inputDefinitions") or {}).get("parameters") or {}).values()


def _has_dynamic_count(package: Package) -> bool:
    executors = package.spec["deploymentSpec"]["executors"].values()
    wanted = [((each.get("container") or {}).get("resources") or {}).get("accelerator") or {} for each in executors]
    return any(_PLACEHOLDER.fullmatch(str(each.get("resourceCount", ""))) for each in wanted)


def _relies_on_defaults(package: Package) -> bool:
    components = package.spec.get("components") or {}
    dags = [each["dag"] for each in (package.spec["root"], *components.values()) if "dag" in each]
    for task in (task for dag in dags for task in dag["tasks"].values()):
        component = components[task["componentRef"]["name"]]
        given = (task.get("inputs") or {}).get("parameters") or {}
        declared = (component.get("inputDefinitions") or {}).get("parameters") or {}
        if any("defaultValue" in each and name not in given for name, each in declared.items()):
            return True
    return False


def _tolerations(settings: list[Document], given: Mapping[str, Any]) -> Iterator[Document]:
    for each in settings:
        if "tolerationJson" not in each:
            yield each
            continue
        found = _json(_resolved(each["tolerationJson"], given)) or []
        yield from found if isinstance(found, list) else [found]


def _resolved(source: object, given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a parameter's value
    """Returns what a place in the file holds in this run: a constant, or the value of a pipeline parameter."""
    if isinstance(source, str):
        found = _PLACEHOLDER.fullmatch(source)
        return given.get(found[1]) if found else source
    if not isinstance(source, dict):
        return source
    if "runtimeValue" in source:
        return _resolved(source["runtimeValue"].get("constant"), given)
    if "componentInputParameter" in source:
        return given.get(str(source["componentInputParameter"]).removeprefix("pipelinechannel--"))
    return None


def _json(value: object) -> Any:  # noqa: ANN401 - whatever a parameter holds
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "null")
    except ValueError:
        return None
