"""Builds a workflow for kfp: parts become sub-pipelines; each stage gets its parameters, its image and its place."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_type_hints

from pipeline.catalogue import Part, PipelineDefinition
from pipeline.options import Backend, Engine, Engines, Options, Serving
from pipeline.placement import IMAGE_USER, Access, Pool, place


class Argument(NamedTuple):
    """What a stage is given.

    Attributes:
        value: The value, or kfp's channel.
        parameters: The parameters that it is made of.
    """

    value: Any
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A workflow, or a part of it, while it is built.

    Attributes:
        definition: The workflow.
        options: Which stages serve, in which images, where.
        values: By parameter, what is bound, or kfp's channel of what a run may change.
        parts: By name, the parts as kfp's pipelines.
        readers: By parameter, the stages that read it, in their order.
    """

    definition: PipelineDefinition
    options: Options
    values: Mapping[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))

    def __getitem__(self, parameter: str) -> Argument:
        """Returns a parameter's value, to be given to a stage."""
        if parameter not in self.values:
            raise LookupError(f"{parameter}: a parameter of a run that this part does not declare")
        return Argument(self.values[parameter], (parameter,))

    def add(self, part: Part, **artifacts: object) -> Any:  # noqa: ANN401 - kfp ships no types
        """Adds a part to the root of the graph; returns its outputs by name."""
        pipeline = self.parts[part.name]
        inputs = pipeline.component_spec.inputs
        return pipeline(**artifacts, **{name: self.values[name] for name in inputs if name in self.values}).outputs

    def stage(self, name: str, component: Any, /, *groups: str, **given: object) -> Any:  # noqa: ANN401
        """Adds a stage; returns its outputs by name. See `task`."""
        return self.task(name, component, *groups, **given).outputs

    def task(self, name: str, component: Any, /, *groups: str, **given: object) -> Any:  # noqa: ANN401
        """Adds a stage; returns kfp's task.

        Inputs that are not given are the parameters of their name, or of their name in a group: in the group `train`
        the input `epochs` is the parameter `train_epochs`.

        Args:
            name: What it is called.
            component: The container component.
            groups: Where its parameters are looked for, the first one first.
            given: Its other inputs.
        """
        for each in component.component_spec.inputs or {}:
            known = (
                key for key in (each, *(f"{group}_{each}" for group in groups)) if key in self.definition.parameters
            )
            if each not in given and (found := next(known, None)):
                given[each] = self[found]
        task = component(**{each: self._read(name, value) for each, value in given.items()})
        task.set_display_name(name)
        self._place(task, name)
        return task

    def pipeline(self, function: Callable[..., Any], parameters: Mapping[str, Any], **described: str) -> Any:  # noqa: ANN401
        """Makes kfp's pipeline of a function, which is called with a graph and with its input artifacts.

        Args:
            function: Adds the stages; it returns a NamedTuple of artifacts, or None.
            parameters: The run's parameters that it reads, with their defaults (`inspect.Parameter.empty` for none).
            described: Name and description.
        """
        from kfp import dsl

        hints = get_type_hints(function, localns=vars(dsl))
        outputs = hints.pop("return", None)
        fields = get_type_hints(outputs, localns=vars(dsl)) if hasattr(outputs, "_fields") else {}
        artifacts = {name: dsl.Input[kind] for name, kind in hints.items() if kind is not Graph}
        types = artifacts | {name: self.definition.parameters[name].type for name in parameters}

        def traced(*channels: object) -> Any:  # noqa: ANN401
            given = dict(zip(types, channels, strict=True))
            values = {**self.values, **{name: given[name] for name in parameters}}
            return function(replace(self, values=values), **{name: given[name] for name in artifacts})

        # kfp reads the interface off the signature, and calls by position.
        traced.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    annotation=kind,
                    default=parameters.get(name, inspect.Parameter.empty),
                )
                for name, kind in types.items()
            ],
            return_annotation=NamedTuple(function.__name__, fields.items()) if fields else None,
        )
        return dsl.pipeline(**described)(traced)

    def _read(self, stage: str, given: object) -> Any:  # noqa: ANN401
        if not isinstance(given, Argument):
            return given
        for parameter in given.parameters:
            self.readers[parameter][stage] = None
        return given.value

    def _place(self, task: Any, name: str) -> None:  # noqa: ANN401
        stage, options = self.definition.stages[name], self.options
        tao = stage.tao if options.engines.of(name) is Engine.tao else None
        if tao:
            stage = replace(stage, pool=tao.pool, access=(*stage.access, Access.tao_key))
            image = options.images.tao
        elif stage.pool is Pool.gpu:
            image = options.images.open_gpu
        else:
            image = options.images.standing_for(task.container_spec.image)
        task.set_container_image(image)
        is_ours = not tao and stage.pool is not Pool.serving  # Triton's image has a user of its own
        has_contexts = options.backend is not Backend.v2_15
        place(
            task,
            name,
            stage,
            lambda parameter: self._read(name, self[parameter]),
            options.placement,
            as_user=IMAGE_USER if is_ours and has_contexts else None,
            pull_secret=options.placement.ngc_pull_secret if tao else options.placement.image_pull_secret,
        )


def build(definition: PipelineDefinition, options: Options, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Returns a workflow as kfp's pipeline.

    Args:
        definition: The workflow.
        options: Which stages serve, in which images, where.
        values: Of every parameter; those of a run become the defaults of the pipeline.
    """
    return _built(definition, options, values)[0]


def readers(definition: PipelineDefinition) -> dict[str, list[str]]:
    """Returns by parameter the stages that read it, however the workflow is compiled."""
    defaults = {name: each.default for name, each in definition.parameters.items()}
    ours, other = (
        _built(definition, options, defaults)[1].readers
        for options in (Options(), Options(Serving.gpu, Engines(default=Engine.tao)))
    )
    return {name: list(ours[name] | other[name]) for name in definition.parameters}


def _built(definition: PipelineDefinition, options: Options, values: Mapping[str, Any]) -> tuple[Any, Graph]:
    of_run, bound = definition.split(values)
    graph = Graph(definition, options, bound)
    for part in definition.parts:
        read = [name for name in of_run if name in part.parameters or name.partition("_")[0] in part.parameters]
        without_defaults = dict.fromkeys(read, inspect.Parameter.empty)
        graph.parts[part.name] = graph.pipeline(part.function, without_defaults, name=part.name)
    pipeline = graph.pipeline(definition.define, of_run, name=definition.name, description=definition.summary)
    return pipeline, graph
