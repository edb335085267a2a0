"""The face-detection workflow: from images to a detector that is trained, pruned, retrained, exported and served.

At its root stand four pipelines: data, learn, measure and serve. Only what a person changes between runs is a parameter
of the compiled file; everything else is a constant in it.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from components.convert import component as conversion
from components.detectnet_v2 import component as detectnet_v2
from components.evaluate import component as evaluate
from components.serve import component as serving
from components.widerface import component as widerface
from pipeline.options import Options, Serving
from pipeline.placement import Access, Pool, Pools, Stage
from pipeline.preflight_component import preflight

STAGES = {
    "data": Stage(access=(Access.store, Access.data)),
    "kitti": Stage(),
    "records": Stage(engine="records"),
    "pretrained": Stage(access=(Access.store, Access.data, Access.ngc)),
    "train": Stage(Pool.gpu, (Access.checkpoints,), engine="train"),
    "prune": Stage(engine="prune"),
    "retrain": Stage(Pool.gpu, (Access.checkpoints,), engine="retrain"),
    "evaluate": Stage(Pool.gpu, engine="evaluate"),
    "export": Stage(engine="export"),
    "int8": Stage(),
    "report": Stage(),
    "plan": Stage(Pool.serving),
    "publish": Stage(access=(Access.store,), is_cached=False),
    "deploy": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "endpoint": Stage(is_cached=False),
    "promote": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "conclude": Stage(is_cached=False, may_retry=False),
}
# It vouches for the others, so it needs what they need from outside.
_EVERY_ACCESS = tuple(dict.fromkeys(access for stage in STAGES.values() for access in stage.access))
STAGES["preflight"] = Stage(access=_EVERY_ACCESS, is_cached=False, may_retry=False)


class Data(NamedTuple):
    """What `data` hands on."""

    kitti: Dataset
    records: Dataset
    pretrained: Model
    program: Artifact


class Models(NamedTuple):
    """What `learn` hands on."""

    trained: Model
    pruned: Model
    retrained: Model


class Measured(NamedTuple):
    """What `measure` hands on."""

    exported: Model
    quantized: Model
    evaluation: Artifact


class _Workflow:
    """The workflow as compiled: `values` are those of the bound parameters."""

    def __init__(self, options: Options, values: Mapping[str, Any]) -> None:
        self.options, self.values = options, values

    def group(self, prefix: str, *names: str) -> dict[str, Any]:
        """Returns the bound values `prefix_name` as arguments of these names."""
        return {name: self.values[f"{prefix}_{name}"] for name in names}

    def deployment(self) -> dict[str, Any]:
        """Returns what is bound of the service and of its pods."""
        names = ("mode", "protocol", "cpu", "cpu_limit", "memory", "memory_limit", "shared_memory")
        pods = ("minimum_replicas", "maximum_replicas", "node_selector", "tolerations", "service_account")
        least = 1 if self.options.serving is Serving.gpu else 0
        return {
            **self.group("deploy", *names, *pods),
            "gpus": max(self.values["deploy_gpus"], least),
            "image": self.values["deploy_image"] or self.options.images.triton,
        }

    def put(self, task: Any, name: str) -> Any:  # noqa: ANN401 - kfp ships no types
        """Names and places a task; returns it."""
        pools = Pools(
            **self.group("pool", "cpu_node_selector", "cpu_tolerations", "gpu_node_selector", "gpu_tolerations"),
            **self.group("pool", "gpu_type", "gpu_count"),
            serving_node_selector=self.values["deploy_node_selector"],
            serving_tolerations=self.values["deploy_tolerations"],
        )
        return self.options.put(task, name, STAGES[name], pools)


def define(options: Options, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - kfp ships no types
    """Returns the workflow as kfp's pipeline.

    Args:
        options: Which stages serve, in which images, where.
        values: Of every parameter; those of a run become the defaults of the compiled file.
    """
    workflow = _Workflow(options, values)
    data, learn, measure, serve = (part(workflow) for part in (_data, _learn, _measure, _serve))

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name="facedetect",
        description="Trains, prunes, retrains, exports, quantises, deploys and scores a face detector (DetectNet_v2).",
    )
    def facedetect(
        data_uri: str,
        data_training_images: int,
        data_validation_images: int,
        data_max_images: int,
        pretrained_uri: str,
        train_epochs: int,
        train_batch_size: int,
        train_learning_rate: float,
        prune_threshold: float,
        prune_target_ratio: float,
        retrain_epochs: int,
        retrain_learning_rate: float,
        eval_min_face_height: int,
        int8_max_points_lost: float,
        deploy_target: str,
        deploy_base: str,
        deploy_name: str,
        deploy_namespace: str,
        deploy_canary_percent: int,
        deploy_max_points_lost: float,
        deploy_accept_incomparable: bool,
    ) -> None:
        deployment = {
            "deploy_target": deploy_target,
            "deploy_base": deploy_base,
            "deploy_name": deploy_name,
            "deploy_namespace": deploy_namespace,
            "deploy_canary_percent": deploy_canary_percent,
        }
        given = data(
            data_uri=data_uri,
            data_training_images=data_training_images,
            data_validation_images=data_validation_images,
            data_max_images=data_max_images,
            pretrained_uri=pretrained_uri,
            **deployment,
        ).outputs
        models = learn(
            **given,
            train_epochs=train_epochs,
            train_batch_size=train_batch_size,
            train_learning_rate=train_learning_rate,
            prune_threshold=prune_threshold,
            prune_target_ratio=prune_target_ratio,
            retrain_epochs=retrain_epochs,
            retrain_learning_rate=retrain_learning_rate,
        ).outputs
        measured = measure(
            **given,
            **models,
            eval_min_face_height=eval_min_face_height,
            int8_max_points_lost=int8_max_points_lost,
        ).outputs
        serve(
            kitti=given["kitti"],
            model=measured["exported" if options.serving is Serving.gpu else "quantized"],
            evaluation=measured["evaluation"],
            eval_min_face_height=eval_min_face_height,
            deploy_max_points_lost=deploy_max_points_lost,
            deploy_accept_incomparable=deploy_accept_incomparable,
            **deployment,
        )

    return facedetect


def _data(workflow: _Workflow) -> Any:  # noqa: ANN401
    values, put = workflow.values, workflow.put

    @dsl.pipeline(name="data")  # type: ignore[untyped-decorator]
    def data(
        data_uri: str,
        data_training_images: int,
        data_validation_images: int,
        data_max_images: int,
        pretrained_uri: str,
        deploy_target: str,
        deploy_base: str,
        deploy_name: str,
        deploy_namespace: str,
        deploy_canary_percent: int,
    ) -> Data:
        checked = put(
            preflight(
                data_uri=data_uri,
                pretrained_uri=pretrained_uri,
                deploy_base=deploy_base,
                deploy_target=deploy_target,
                deploy_name=deploy_name,
                deploy_namespace=deploy_namespace,
                deploy_canary_percent=deploy_canary_percent,
                deployment=json.dumps(workflow.deployment(), sort_keys=True, separators=(",", ":")),
                **workflow.group("pool", "gpu_type", "gpu_count", "gpu_node_selector", "gpu_tolerations"),
            ),
            "preflight",
        )
        acquired = put(
            widerface.acquire(
                uri=data_uri,
                version=checked.outputs["data_version"],
                training_images=data_training_images,
                validation_images=data_validation_images,
                **workflow.group("data", "seed"),
                image_width=values["data_picture_width"],
                image_height=values["data_picture_height"],
            ),
            "data",
        )
        kitti = put(
            widerface.convert(
                dataset=acquired.outputs["dataset"],
                max_images=data_max_images,
                **workflow.group("data", "width", "height", "grayscale", "min_face_height"),
                **workflow.group("data", "small_faces", "invalid_faces", "occluded_faces"),
            ),
            "kitti",
        ).outputs["kitti"]
        weights = detectnet_v2.pretrained_weights(uri=pretrained_uri, version=checked.outputs["pretrained_version"])
        pretrained = put(weights, "pretrained").outputs
        records = detectnet_v2.dataset_convert(program=pretrained["program"], kitti=kitti, spec=values["records_spec"])
        return Data(
            kitti=kitti,
            records=put(records, "records").outputs["records"],
            pretrained=pretrained["model"],
            program=pretrained["program"],
        )

    return data


def _learn(workflow: _Workflow) -> Any:  # noqa: ANN401
    values, put = workflow.values, workflow.put

    @dsl.pipeline(name="learn")  # type: ignore[untyped-decorator]
    def learn(
        kitti: Input[Dataset],
        records: Input[Dataset],
        pretrained: Input[Model],
        program: Input[Artifact],
        train_epochs: int,
        train_batch_size: int,
        train_learning_rate: float,
        prune_threshold: float,
        prune_target_ratio: float,
        retrain_epochs: int,
        retrain_learning_rate: float,
    ) -> Models:
        common = {
            "program": program,
            "kitti": kitti,
            "records": records,
            "image_width": values["data_width"],
            "image_height": values["data_height"],
            "threads": values["train_threads"],
        }
        trained = detectnet_v2.train(
            **common,
            **workflow.group("train", "spec", "seed", "width"),
            pretrained=pretrained,
            epochs=train_epochs,
            batch_size=train_batch_size,
            learning_rate=train_learning_rate,
            name="facedetect",
        )
        trained = put(trained, "train").outputs["model"]
        pruned = detectnet_v2.prune(
            program=program,
            model=trained,
            threshold=prune_threshold,
            target_ratio=prune_target_ratio,
            **workflow.group("prune", "granularity", "minimum_filters", "normalizer", "equalization"),
            **workflow.group("prune", "excluded_layers"),
        )
        pruned = put(pruned, "prune").outputs["pruned"]
        retrained = detectnet_v2.train(
            **common,
            **workflow.group("retrain", "spec", "seed", "batch_size"),
            pretrained=pruned,
            epochs=retrain_epochs,
            learning_rate=retrain_learning_rate,
            name="facedetect_pruned",
            width=1.0,  # the pruned graph has its own
        )
        retrained = put(retrained, "retrain").outputs["model"]
        return Models(trained=trained, pruned=pruned, retrained=retrained)

    return learn


def _measure(workflow: _Workflow) -> Any:  # noqa: ANN401
    values, put = workflow.values, workflow.put

    @dsl.pipeline(name="measure")  # type: ignore[untyped-decorator]
    def measure(
        kitti: Input[Dataset],
        records: Input[Dataset],
        pretrained: Input[Model],
        program: Input[Artifact],
        trained: Input[Model],
        pruned: Input[Model],
        retrained: Input[Model],
        eval_min_face_height: int,
        int8_max_points_lost: float,
    ) -> Measured:
        evaluated = detectnet_v2.evaluate(
            program=program,
            kitti=kitti,
            records=records,
            pretrained=pretrained,
            trained=trained,
            pruned=pruned,
            retrained=retrained,
            minimum_height=eval_min_face_height,
            **workflow.group("inference", "spec", "batch_size"),
        )
        evaluations = put(evaluated, "evaluate").outputs["evaluations"]
        exported = detectnet_v2.export(program=program, model=retrained, opset=values["export_opset"])
        exported = put(exported, "export").outputs["exported"]
        quantized = put(
            conversion.int8(
                exported=exported,
                kitti=kitti,
                calibration_images=values["int8_calibration_images"],
                max_points_lost=int8_max_points_lost,
                min_face_height=eval_min_face_height,
            ),
            "int8",
        ).outputs["quantized"]
        reported = put(
            evaluate.report(
                exported=exported,
                quantized=quantized,
                kitti=kitti,
                evaluations=evaluations,
                min_face_height=eval_min_face_height,
            ),
            "report",
        )
        return Measured(exported=exported, quantized=quantized, evaluation=reported.outputs["evaluation"])

    return measure


def _serve(workflow: _Workflow) -> Any:  # noqa: ANN401
    values, put, on_gpus = workflow.values, workflow.put, workflow.options.serving is Serving.gpu

    @dsl.pipeline(name="serve")  # type: ignore[untyped-decorator]
    def serve(
        kitti: Input[Dataset],
        model: Input[Model],
        evaluation: Input[Artifact],
        eval_min_face_height: int,
        deploy_target: str,
        deploy_base: str,
        deploy_name: str,
        deploy_namespace: str,
        deploy_canary_percent: int,
        deploy_max_points_lost: float,
        deploy_accept_incomparable: bool,
    ) -> None:
        gate = {
            **workflow.group("deploy", "champion", "force", "timeout"),
            "max_points_lost": deploy_max_points_lost,
            "accept_incomparable": deploy_accept_incomparable,
        }
        target = {
            "target": deploy_target,
            "name": deploy_name,
            "namespace": deploy_namespace,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        }
        if on_gpus:
            wanted = workflow.group("deploy", "precision", "best_batch", "largest_batch", "workspace")
            plan = put(serving.tensorrt(exported=model, **wanted), "plan").outputs["plan"]
            published = serving.publish_plan(exported=model, plan=plan, base=deploy_base)
        else:
            how = workflow.group("deploy", "backend", "cpu_limit")
            published = serving.publish(exported=model, **how, base=deploy_base)
        published = put(published, "publish").outputs["published"]
        # What fails in it after a deployment has that undone; what failed before has deployed nothing.
        concluded = put(serving.conclude(**target, **workflow.group("deploy", "force", "timeout")), "conclude")
        with dsl.ExitHandler(concluded, name="deployment"):
            deployed = serving.deploy(
                published=published,
                evaluation=evaluation,
                scored_model="exported" if on_gpus else "quantized",
                **target,
                **gate,
                canary_percent=deploy_canary_percent,
                gateway=values["deploy_gateway"],
                **workflow.deployment(),
            )
            deployment = put(deployed, "deploy").outputs["deployment"]
            answered = put(
                evaluate.endpoint(
                    kitti=kitti, model=model, deployment=deployment, min_face_height=eval_min_face_height
                ),
                "endpoint",
            )
            put(serving.promote(deployment=deployment, evaluation=answered.outputs["evaluation"], **gate), "promote")

    return serve
