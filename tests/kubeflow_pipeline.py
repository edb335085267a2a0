"""A pipeline of two stages that asks for much of its cluster, compiled, for tests of the commands for Kubeflow."""

# ruff: noqa: ARG001 - the arguments of a container component declare its interface
import yaml
from kfp import compiler, dsl
from kfp.dsl import Input, Model, Output

# What kfp.kubernetes 2.17 writes beside a pipeline, as it writes it.
PLATFORM = """
platforms:
  kubernetes:
    deploymentSpec:
      executors:
        exec-fit:
          nodeSelector: {nodeSelectorJson: {componentInputParameter: train_selector}}
          tolerations:
          - tolerationJson: {componentInputParameter: pipelinechannel--train_tolerations}
          secretAsEnv:
          - keyToEnv: [{envVar: AWS_ACCESS_KEY_ID, secretKey: AWS_ACCESS_KEY_ID}]
            secretNameParameter: {componentInputParameter: data_secret}
          - keyToEnv: [{envVar: NGC, secretKey: NGC}]
            optional: true
            secretName: ngc
            secretNameParameter: {runtimeValue: {constant: ngc}}
          imagePullSecret:
          - secretName: pull
            secretNameParameter: {runtimeValue: {constant: pull}}
          pvcMount:
          - constant: cache
            mountPath: /cache
            pvcNameParameter: {runtimeValue: {constant: cache}}
            subPath: faces
          securityContext: {runAsUser: '1000'}
"""


def _task():
    placeholder = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
    return dsl.ContainerSpec(image="example.com/fit:1", command=["fit"], args=["--executor-input", placeholder])


@dsl.container_component
def fit(uri: str, epochs: int, rate: float, model: Output[Model]):
    return _task()


@dsl.container_component
def score(model: Input[Model]):
    return _task()


@dsl.pipeline(name="tiny", description="Fits, and scores.")
def tiny(
    data_uri: str = "",
    data_secret: str = "s3",
    train_epochs: int = 3,
    train_rate: float = 0.1,
    train_gpus: str = "1",
    train_selector: dict = {"pool": "gpu"},  # noqa: B006 - kfp reads it only
    train_tolerations: list = [],  # noqa: B006
):
    fitted = fit(uri=data_uri, epochs=train_epochs, rate=train_rate)
    fitted.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(train_gpus)
    score(model=fitted.outputs["model"]).set_display_name("Score it")


@dsl.container_component
def end(status: dsl.PipelineTaskFinalStatus):
    return _task()


@dsl.pipeline(name="learn")
def learn(uri: str) -> Model:
    fitted = fit(uri=uri, epochs=1, rate=0.1)
    score(model=fitted.outputs["model"])
    return fitted.outputs["model"]


@dsl.pipeline(name="serve")
def serve(model: Input[Model]):
    with dsl.ExitHandler(end()):
        score(model=model)


@dsl.pipeline(name="nested")
def nested(data_uri: str = ""):
    """Two sub-pipelines, in each of which a stage is called `score`; in one, inside an exit handler."""
    serve(model=learn(uri=data_uri).output)


def compile_nested_to(file):
    compiler.Compiler().compile(nested, str(file))
    return file


def compile_to(file):
    compiler.Compiler().compile(tiny, str(file))
    document = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump_all([document, yaml.safe_load(PLATFORM)]))
    return file
