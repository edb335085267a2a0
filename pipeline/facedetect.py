"""The face-detection workflow: from images to a detector that is trained, pruned, retrained, exported and served.

At its root stand four pipelines: data, learn, measure and serve. Only what a person changes between runs is a parameter
of the compiled file; everything else is a constant in it.
"""

from typing import TYPE_CHECKING, NamedTuple

from pipeline import deployment, pools
from pipeline.building import Graph
from pipeline.catalogue import PipelineDefinition, part
from pipeline.facedetect_parameters import PARAMETERS, PROFILES, check
from pipeline.options import Serving
from pipeline.placement import Access, Pool, Stage, Tao

if TYPE_CHECKING:
    from kfp.dsl import Artifact, Dataset, Model

STAGES = {
    "data": Stage(access=(Access.store, Access.data)),
    "kitti": Stage(),
    "records": Stage(tao=Tao(pool=Pool.cpu)),
    "pretrained": Stage(access=(Access.store, Access.data, Access.ngc)),
    "train": Stage(Pool.gpu, (Access.checkpoints,), Tao()),
    "prune": Stage(tao=Tao(reads=("train",))),
    "retrain": Stage(Pool.gpu, (Access.checkpoints,), Tao(reads=("prune",))),
    "evaluate": Stage(Pool.gpu, tao=Tao(reads=("train", "prune", "retrain"))),
    "export": Stage(tao=Tao(reads=("retrain",))),
    "int8": Stage(),
    "report": Stage(),
}


class Data(NamedTuple):
    """What `data` hands on."""

    kitti: "Dataset"
    records: "Dataset"
    pretrained: "Model"
    program: "Artifact"


class Models(NamedTuple):
    """What `learn` hands on."""

    trained: "Model"
    pruned: "Model"
    retrained: "Model"


class Measured(NamedTuple):
    """What `measure` hands on."""

    exported: "Model"
    quantized: "Model"
    evaluation: "Artifact"


@part("data", "pretrained", *deployment.PREFLIGHT)
def data(graph: Graph) -> Data:
    """Brings images and pretrained weights, and writes what DetectNet_v2 reads."""
    from components.detectnet_v2 import component as detectnet_v2
    from components.widerface import component as widerface

    checked = deployment.preflight(graph)
    drawn = {
        "validation_images": graph["data_test_images"],  # the test images are the source's validation images
        "image_width": graph["data_picture_width"],
        "image_height": graph["data_picture_height"],
    }
    acquired = graph.stage("data", widerface.acquire, "data", version=checked["data_version"], **drawn)
    kitti = graph.stage("kitti", widerface.convert, "data", dataset=acquired["dataset"])["kitti"]
    pretrained = graph.stage(
        "pretrained", detectnet_v2.pretrained_weights, "pretrained", version=checked["pretrained_version"]
    )
    program = pretrained["program"]
    converted = graph.stage("records", detectnet_v2.dataset_convert, "records", program=program, kitti=kitti)
    return Data(kitti=kitti, records=converted["records"], pretrained=pretrained["model"], program=program)


@part("train", "prune", "retrain")
def learn(graph: Graph, kitti: "Dataset", records: "Dataset", pretrained: "Model", program: "Artifact") -> Models:
    """Trains, prunes and retrains."""
    from components.detectnet_v2 import component as detectnet_v2

    common = {
        "program": program,
        "kitti": kitti,
        "records": records,
        "image_width": graph["data_width"],
        "image_height": graph["data_height"],
        "threads": graph["train_threads"],
    }
    trained = graph.stage("train", detectnet_v2.train, "train", pretrained=pretrained, name="facedetect", **common)[
        "model"
    ]
    pruned = graph.stage("prune", detectnet_v2.prune, "prune", program=program, model=trained)["pruned"]
    retrained = graph.stage(
        "retrain",
        detectnet_v2.train,
        "retrain",
        pretrained=pruned,
        name="facedetect_pruned",
        width=1.0,  # the pruned graph has its own
        **common,
    )["model"]
    return Models(trained=trained, pruned=pruned, retrained=retrained)


@part("eval", "int8")
def measure(
    graph: Graph,
    kitti: "Dataset",
    records: "Dataset",
    pretrained: "Model",
    program: "Artifact",
    trained: "Model",
    pruned: "Model",
    retrained: "Model",
) -> Measured:
    """Scores every model, exports the last one and quantises it."""
    from components.convert import component as conversion
    from components.detectnet_v2 import component as detectnet_v2
    from components.evaluate import component as evaluate

    evaluations = graph.stage(
        "evaluate",
        detectnet_v2.evaluate,
        "inference",
        program=program,
        kitti=kitti,
        records=records,
        pretrained=pretrained,
        trained=trained,
        pruned=pruned,
        retrained=retrained,
        minimum_height=graph["eval_min_face_height"],
    )["evaluations"]
    exported = graph.stage("export", detectnet_v2.export, "export", program=program, model=retrained)["exported"]
    quantized = graph.stage("int8", conversion.int8, "int8", "eval", exported=exported, kitti=kitti)["quantized"]
    evaluation = graph.stage(
        "report", evaluate.report, "eval", exported=exported, quantized=quantized, kitti=kitti, evaluations=evaluations
    )["evaluation"]
    return Measured(exported=exported, quantized=quantized, evaluation=evaluation)


@part("eval", "deploy")
def serve(graph: Graph, kitti: "Dataset", model: "Model", evaluation: "Artifact") -> None:
    """Publishes, deploys and promotes; the endpoint is scored on the test images."""
    from components.evaluate import component as evaluate

    def score(deployment: "Artifact") -> "Artifact":
        answered = graph.stage("endpoint", evaluate.endpoint, "eval", kitti=kitti, model=model, deployment=deployment)
        return answered["evaluation"]

    deployment.serve(graph, model, evaluation, _served(graph), score)


def _served(graph: Graph) -> str:
    """Returns which model serves: a TensorRT plan is built of the one that is not quantised."""
    return "exported" if graph.options.serving is Serving.gpu else "quantized"


def define(graph: Graph) -> None:
    """Connects the four parts."""
    given = graph.add(data)
    models = graph.add(learn, **given)
    measured = graph.add(measure, **given, **models)
    served = measured[_served(graph)]
    graph.add(serve, kitti=given["kitti"], model=served, evaluation=measured["evaluation"])


DEFINITION = PipelineDefinition(
    name="facedetect",
    summary="Trains, prunes, retrains, exports, quantises, deploys and scores a face detector (DetectNet_v2).",
    parameters=PARAMETERS | deployment.parameters(name="facenet") | pools.PARAMETERS,
    profiles=PROFILES,
    local_profiles=("cpu", "cpu-real"),
    stages=deployment.with_preflight(STAGES | deployment.STAGES),
    parts=(data, learn, measure, serve),
    define=define,
    double="components.detectnet_v2.tao_double",
    check=check,
)
