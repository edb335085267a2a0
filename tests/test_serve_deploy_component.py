"""How Kubeflow sees serving: the components compile, and their programs know every flag they are given."""

import pytest
import yaml
from kfp import compiler, dsl
from typer.main import get_command

from components.serve import component, deploy_commands, tensorrt
from components.serve.release import TRITON_IMAGE

PROGRAMS = {
    "publish": "publish",
    "publish_plan": "publish",
    "deploy": "deploy",
    "promote": "promote",
    "conclude": "conclude",
}


def names_of(component_of):
    spec = component_of.component_spec
    return {*(spec.inputs or {}), *(spec.outputs or {})}


@pytest.mark.parametrize("name", PROGRAMS)
def test_command_knows_every_flag_of_its_component(name):
    import typer

    app = typer.Typer()
    deploy_commands.mount(app)
    command = get_command(app).commands[PROGRAMS[name]]
    declared = getattr(component, name)
    assert names_of(declared) <= {parameter.name for parameter in command.params}
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for flag, given in (declared.component_spec.inputs or {}).items():
        if given.type == "Boolean":
            assert {f"--{flag.replace('_', '-')}", f"--no-{flag.replace('_', '-')}"} <= options


def test_plan_is_built_in_tritons_image_by_a_program_that_knows_its_flags(capsys):
    with pytest.raises(SystemExit):
        tensorrt.main(["build", "--help"])
    told = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in told for name in names_of(component.tensorrt))
    container = component.tensorrt.component_spec.implementation.container
    assert container.image == TRITON_IMAGE
    assert container.command == ["python3", "-m", "components.serve.tensorrt"]


def test_components_compile_into_one_pipeline(tmp_path):
    @dsl.pipeline(name="serving")
    def serving(run: str = ""):
        exported = dsl.importer(artifact_uri="s3://a/exported", artifact_class=dsl.Model).output
        evaluation = dsl.importer(artifact_uri="s3://a/evaluation", artifact_class=dsl.Artifact).output
        plan = component.tensorrt(exported=exported, precision="fp16", best_batch=16, largest_batch=32, workspace=4096)
        scored = {"exported": exported, "evaluation": evaluation, "scored_model": "exported"}
        component.publish(backend="onnxruntime", cpu_limit="4", base="", **scored)
        built = component.publish_plan(plan=plan.outputs["plan"], base="s3://models/facenet", **scored)
        published = built.outputs["published"]
        deployed = component.deploy(
            published=published, evaluation=evaluation, scored_model="", image="triton:1", target="kserve",
            name="facenet", namespace="face", run_id=run, mode="Standard", protocol="v2", gpus=1, cpu="1",
            cpu_limit="4", memory="4Gi", memory_limit="8Gi", shared_memory="1Gi", minimum_replicas=1,
            maximum_replicas=2, node_selector={}, tolerations=[],
            service_account="gridbox-serving", canary_percent=10, force=False,
            timeout=900.0, max_points_lost=1.0, accept_incomparable=False, champion="", gateway="",
        )  # fmt: skip
        assert set(deployed.outputs) == {"deployment"}
        component.promote(
            deployment=deployed.outputs["deployment"], evaluation=evaluation, force=False, timeout=900.0,
            max_points_lost=1.0, accept_incomparable=False, champion="",
        )  # fmt: skip

    compiler.Compiler().compile(serving, str(tmp_path / "serving.yaml"))
    text = (tmp_path / "serving.yaml").read_text()
    executors = yaml.safe_load(text)["deploymentSpec"]["executors"]
    assert all("{{$}}" in each["container"]["args"] for each in executors.values() if "container" in each)
    assert not any(word in text for word in ("SECRET", "ACCESS_KEY", "token"))
