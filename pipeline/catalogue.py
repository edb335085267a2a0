"""The workflows: what each is, declared in a module of its own, which is loaded when it is needed."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from components.step import UserError
from pipeline.parameters import Parameter
from pipeline.placement import Stage

# By name, the module whose DEFINITION it is. It costs a second to load what kfp needs; a name costs nothing.
WORKFLOWS: Mapping[str, str] = {"facedetect": "pipeline.facedetect"}
NAMES, FIRST = ", ".join(WORKFLOWS), next(iter(WORKFLOWS))
# What a run on one machine sets of the parameters that all workflows call the same: where the data are, where published
# models lie, and where to deploy.
DATA, PUBLISHED, TARGET = "data_uri", "deploy_base", "deploy_target"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a workflow: one box at the root of its graph.

    Attributes:
        function: Adds its stages; takes the graph and its input artifacts.
        parameters: Which of a run's parameters it reads: their names, or the first words of them.
    """

    function: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.function.__name__


def part(*parameters: str) -> Callable[[Callable[..., Any]], Part]:
    """Makes a part of a function; `parameters` are as in `Part`."""
    return lambda function: Part(function, parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineDefinition:
    """A workflow, whole.

    Attributes:
        name: What it is called; the name of the compiled pipeline.
        summary: What it does, in a sentence.
        parameters: Its parameters, by name.
        profiles: Sets of values for them, by name; the first is the default.
        local_profiles: Those of a run on one machine, without data and with data.
        stages: Its stages, and how each is placed.
        parts: The parts of its graph.
        define: Connects the parts; takes the graph.
        double: The module whose `install` provides a double of NVIDIA's program; empty where it calls none.
        data_files: What a web server holds of its data; empty for the archives of WIDER FACE.
        check: Refuses values of its parameters that are in range but do not go together; takes all of them.
    """

    name: str
    summary: str
    parameters: Mapping[str, Parameter]
    profiles: Mapping[str, Mapping[str, Any]]
    local_profiles: tuple[str, str]
    stages: Mapping[str, Stage]
    parts: tuple[Part, ...]
    define: Callable[..., None]
    double: str = ""
    data_files: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], None] = lambda _: None

    @property
    def types(self) -> dict[str, str]:
        """The type of each parameter, in Kubeflow's words."""
        return {name: each.kfp_type for name, each in self.parameters.items()}

    def split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the values of a run's parameters, and those of the parameters that are bound."""
        of_run = {name: value for name, value in values.items() if self.parameters[name].is_of_run}
        return of_run, {name: value for name, value in values.items() if name not in of_run}

    def complete(self, profile: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of all parameters: these, else a profile's (empty: the default one's), else the defaults.

        Raises:
            UserError: There is no such profile, or the values do not go together.
        """
        chosen = self.profile_values(profile or self.profile) | dict(values)
        complete = {name: each.default for name, each in self.parameters.items()} | chosen
        self.check(complete)
        return complete

    @property
    def profile(self) -> str:
        """The default profile."""
        return next(iter(self.profiles))

    def profile_values(self, name: str) -> dict[str, Any]:
        """Returns a profile's values.

        Raises:
            UserError: There is no profile of this name.
        """
        if name not in self.profiles:
            raise UserError(f"--profile {name}: no such profile; there are {', '.join(self.profiles)}")
        return dict(self.profiles[name])


def definition(name: str) -> PipelineDefinition:
    """Returns a workflow of the catalogue.

    Raises:
        UserError: There is none of this name.
    """
    if name not in WORKFLOWS:
        raise UserError(f"{name}: no such pipeline; there is {NAMES} (or give a compiled .yaml file)")
    loaded: PipelineDefinition = importlib.import_module(WORKFLOWS[name]).DEFINITION
    return loaded


def profile_values(pipeline: str, profile: str) -> dict[str, Any]:
    """Returns the values of a profile for a pipeline that is compiled already, perhaps elsewhere.

    Raises:
        UserError: There is no such profile.
    """
    if pipeline not in WORKFLOWS:
        raise UserError(
            f"--profile {profile}: no such profile; {pipeline} is not in the catalogue ({NAMES}): the pipeline has no "
            "parameter values by name"
        )
    return definition(pipeline).profile_values(profile)
