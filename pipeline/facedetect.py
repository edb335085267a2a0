"""The face-detection workflow: from images to a detector that is trained, pruned, retrained, exported and served."""

from functools import partial
from typing import Annotated, Any, Literal

from kfp import dsl
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from components.convert import component as conversion
from components.detectnet_v2 import component as detectnet_v2
from components.evaluate import component as evaluation
from components.serve import component as serving
from components.step import PLACEHOLDERS, UserError, render
from components.widerface import component as widerface
from pipeline.options import Options, Serving
from pipeline.placement import Access, Pool, Pools, Stage
from pipeline.preflight_component import preflight
from pipeline.profiles import spec_text

SPEC_BYTES = 16 * 1024
_EVALUATE = Stage(Pool.gpu, engine="evaluate")
STAGES = {
    "preflight": Stage(access=(Access.store, Access.data), is_cached=False, may_retry=False),
    "data": Stage(access=(Access.store, Access.data)),
    "kitti": Stage(),
    "records training": Stage(engine="records"),
    "records validation": Stage(engine="records"),
    "pretrained": Stage(access=(Access.store, Access.data, Access.ngc)),
    "evaluate pretrained": _EVALUATE,
    "train": Stage(Pool.gpu, (Access.checkpoints,), engine="train"),
    "evaluate": _EVALUATE,
    "prune": Stage(engine="prune"),
    "evaluate pruned": _EVALUATE,
    "retrain": Stage(Pool.gpu, (Access.checkpoints,), engine="retrain"),
    "evaluate retrained": _EVALUATE,
    "inference": Stage(Pool.gpu, engine="inference"),
    "export": Stage(engine="export"),
    "int8": Stage(),
    "report": Stage(),
    "plan": Stage(Pool.serving),
    "model repository": Stage(),
    "publish": Stage(access=(Access.store,), is_cached=False),
    "deploy": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "endpoint": Stage(is_cached=False),
    "promote": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "conclude": Stage(is_cached=False, may_retry=False),
}


def define(options: Options) -> Any:  # noqa: ANN401 - kfp ships no types
    """Returns the workflow as kfp's pipeline; `options` decide which stages serve."""

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name="facedetect",
        description="Trains, prunes, retrains, exports, quantises, deploys and scores a face detector (DetectNet_v2).",
    )
    def facedetect(
        data_uri: str = "",
        data_training_images: int = 800,
        data_validation_images: int = 200,
        data_seed: int = 1,
        data_picture_width: int = 640,
        data_picture_height: int = 384,
        data_width: int = 736,
        data_height: int = 416,
        data_grayscale: bool = False,
        data_min_face_height: int = 8,
        data_small_faces: str = "ignore",
        data_invalid_faces: str = "ignore",
        data_occluded_faces: str = "keep",
        data_max_images: int = 0,
        records_spec: str = spec_text("facedetect/convert"),
        pretrained_uri: str = "",
        train_spec: str = spec_text("facedetect/train"),
        train_epochs: int = 100,
        train_batch_size: int = 32,
        train_learning_rate: float = 5e-4,
        train_seed: int = 42,
        train_width: float = 1.0,
        train_threads: int = 0,
        prune_threshold: float = 5.2e-6,
        prune_target_ratio: float = 0.0,
        prune_granularity: int = 8,
        prune_minimum_filters: int = 16,
        prune_normalizer: str = "max",
        prune_equalization: str = "union",
        prune_excluded_layers: str = "",
        retrain_spec: str = spec_text("facedetect/retrain"),
        retrain_epochs: int = 50,
        retrain_batch_size: int = 32,
        retrain_learning_rate: float = 5e-4,
        retrain_seed: int = 42,
        inference_spec: str = spec_text("facedetect/inference"),
        inference_batch_size: int = 16,
        export_opset: int = 13,
        int8_calibration_images: int = 200,
        int8_max_points_lost: float = 2.0,
        deploy_target: str = "manifest",
        deploy_base: str = "",
        deploy_name: str = "facenet",
        deploy_namespace: str = "gridbox",
        deploy_service_account: str = "gridbox-serving",
        deploy_mode: str = "Standard",
        deploy_protocol: str = "v2",
        deploy_gateway: str = "",
        deploy_image: str = options.images.triton,
        deploy_precision: str = "fp16",
        deploy_best_batch: int = 16,
        deploy_largest_batch: int = 32,
        deploy_workspace: int = 4096,
        deploy_timing_cache: str = "",
        deploy_gpus: int = 0,
        deploy_cpu: str = "1",
        deploy_cpu_limit: str = "4",
        deploy_memory: str = "2Gi",
        deploy_memory_limit: str = "4Gi",
        deploy_shared_memory: str = "1Gi",
        deploy_minimum_replicas: int = 1,
        deploy_maximum_replicas: int = 1,
        deploy_node_selector: dict = {},  # type: ignore[type-arg] # noqa: B006 - a default of the compiled file
        deploy_tolerations: list = [],  # type: ignore[type-arg] # noqa: B006
        deploy_canary_percent: int = 0,
        deploy_champion: str = "",
        deploy_max_points_lost: float = 1.0,
        deploy_accept_incomparable: bool = False,
        deploy_force: bool = False,
        deploy_timeout: float = 900.0,
        eval_min_face_height: int = 4,
        pool_cpu_node_selector: dict = {},  # type: ignore[type-arg] # noqa: B006
        pool_cpu_tolerations: list = [],  # type: ignore[type-arg] # noqa: B006
        pool_gpu_type: str = "nvidia.com/gpu",
        pool_gpu_count: str = "1",
        pool_gpu_node_selector: dict = {},  # type: ignore[type-arg] # noqa: B006
        pool_gpu_tolerations: list = [],  # type: ignore[type-arg] # noqa: B006
    ) -> None:
        """The whole face-detection workflow.

        Args:
            data_uri: WIDER FACE in its official layout: a folder, or an https:// or s3:// URI; empty: a synthetic set.
            data_training_images: Pictures to draw for training where data_uri is empty.
            data_validation_images: Pictures to draw for validation where data_uri is empty.
            data_seed: Seed of the drawn pictures.
            data_picture_width: Width of the drawn pictures in pixels.
            data_picture_height: Height of the drawn pictures in pixels.
            data_width: Width of the network's input in pixels, divisible by 16.
            data_height: Height of the network's input in pixels, divisible by 16.
            data_grayscale: Whether colour becomes grey, in three equal channels.
            data_min_face_height: Faces lower than this in the network's input, in pixels, are small; 0: none is.
            data_small_faces: `ignore` or `keep`: whether small faces become regions in which nothing counts.
            data_invalid_faces: `ignore` or `keep`: the same for faces that the annotators flagged invalid.
            data_occluded_faces: `ignore` or `keep`: the same for heavily occluded faces.
            data_max_images: At most so many images of each split, evenly spaced; 0: all.
            records_spec: Text of the dataset-conversion spec.
            pretrained_uri: Weights to start from: a file, an https:// or s3:// URI, or ngc://org/team/model:version in
                NVIDIA's registry; empty for random weights.
            train_spec: Text of the experiment spec for training.
            train_epochs: Passes over the training images.
            train_batch_size: Images a step.
            train_learning_rate: Highest learning rate; the lowest is a hundredth of it.
            train_seed: Seed of weights, order and augmentation.
            train_width: Scales the network's channels (open engine only; 1 is TAO's network).
            train_threads: CPU threads of training and retraining (open engine only; 0: all cores).
            prune_threshold: A filter stays when its normalised norm is above this.
            prune_target_ratio: Share of parameters to keep at most (open engine; 0: by prune_threshold).
            prune_granularity: Filters are kept in multiples of this.
            prune_minimum_filters: A layer keeps at least so many filters.
            prune_normalizer: `max` or `L2`: what a layer's norms are divided by.
            prune_equalization: `union`, `intersection`, `arithmetic_mean` or `geometric_mean`: how layers that are
                added together agree on their filters.
            prune_excluded_layers: Layers to leave whole, separated by spaces.
            retrain_spec: Text of the experiment spec for retraining.
            retrain_epochs: Passes over the training images in retraining.
            retrain_batch_size: Images a step in retraining.
            retrain_learning_rate: Highest learning rate of retraining.
            retrain_seed: Seed of retraining.
            inference_spec: Text of the inference spec.
            inference_batch_size: Images a step in inference.
            export_opset: ONNX operator set; 13 is the lowest that INT8 can do with; 0: the engine's own choice.
            int8_calibration_images: Training images on which the ranges of activations are measured.
            int8_max_points_lost: Points of average precision (hundredths) the INT8 model may lose at most.
            deploy_target: `manifest` writes YAML for kubectl apply, `kserve` applies it and waits, `local` serves on
                this machine while the run lasts (`gridbox run` only).
            deploy_base: Where published models lie: an s3:// URI, or for a run on one machine a folder; empty: the
                model is trained and scored, but neither published nor deployed.
            deploy_name: Name of the InferenceService.
            deploy_namespace: Its namespace.
            deploy_service_account: Account of its pods, whose secrets fetch the model.
            deploy_mode: `Standard` or `Knative`: how KServe runs it; cannot be changed later.
            deploy_protocol: `v2` (HTTP) or `grpc-v2`: what the service's port speaks.
            deploy_gateway: Ingress gateway (host:port) to score through where the service's name cannot be resolved.
            deploy_image: The image of Triton that serves.
            deploy_precision: `fp16` or `fp32`: numbers of the TensorRT plan (compiled with --serving gpu only).
            deploy_best_batch: The batch that the plan is optimised for (--serving gpu only).
            deploy_largest_batch: The largest batch of the plan (--serving gpu only).
            deploy_workspace: MiB of GPU memory for the plan's kernels (--serving gpu only).
            deploy_timing_cache: File of kernel timings on a mounted volume, or empty (--serving gpu only).
            deploy_gpus: NVIDIA GPUs of a serving pod; 0: CPU.
            deploy_cpu: Cores a serving pod requests.
            deploy_cpu_limit: Cores a serving pod may use.
            deploy_memory: Memory a serving pod requests.
            deploy_memory_limit: Memory a serving pod may use.
            deploy_shared_memory: Size of a serving pod's /dev/shm.
            deploy_minimum_replicas: Serving pods at least.
            deploy_maximum_replicas: Serving pods at most.
            deploy_node_selector: Labels of the nodes to serve on.
            deploy_tolerations: Taints of nodes to put up with.
            deploy_canary_percent: Traffic to the new model until its endpoint is scored; 0: all at once.
            deploy_champion: Score of the served model, a path or URI; empty: read from the cluster.
            deploy_max_points_lost: Points (hundredths) of average precision by which the served model may be better.
            deploy_accept_incomparable: Whether a model passes that was not scored on the same images as the served one.
            deploy_force: Whether fields that other field managers own are taken over.
            deploy_timeout: Seconds until the service must be ready.
            eval_min_face_height: Lowest face that counts in every evaluation, pixels of the network's input.
            pool_cpu_node_selector: Labels of the nodes for stages without a GPU.
            pool_cpu_tolerations: Taints of nodes that those stages put up with.
            pool_gpu_type: The resource by which the cluster counts its GPUs.
            pool_gpu_count: GPUs of a stage that trains or evaluates; 0 for none.
            pool_gpu_node_selector: Labels of the nodes for those stages.
            pool_gpu_tolerations: Taints of nodes that they put up with, a spot pool's, for example.
        """
        size = {"image_width": data_width, "image_height": data_height}
        training = {
            **size,
            "spec": train_spec,
            "epochs": train_epochs,
            "batch_size": train_batch_size,
            "learning_rate": train_learning_rate,
            "seed": train_seed,
        }
        retraining = {
            **size,
            "spec": retrain_spec,
            "epochs": retrain_epochs,
            "batch_size": retrain_batch_size,
            "learning_rate": retrain_learning_rate,
            "seed": retrain_seed,
        }

        counting = {"minimum_height": eval_min_face_height}
        gate = {
            "champion": deploy_champion,
            "max_points_lost": deploy_max_points_lost,
            "accept_incomparable": deploy_accept_incomparable,
            "force": deploy_force,
            "timeout": deploy_timeout,
        }
        target = {
            "target": deploy_target,
            "name": deploy_name,
            "namespace": deploy_namespace,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        }

        pools = Pools(
            cpu_node_selector=pool_cpu_node_selector,
            cpu_tolerations=pool_cpu_tolerations,
            gpu_node_selector=pool_gpu_node_selector,
            gpu_tolerations=pool_gpu_tolerations,
            gpu_type=pool_gpu_type,
            gpu_count=pool_gpu_count,
            serving_node_selector=deploy_node_selector,
            serving_tolerations=deploy_tolerations,
        )

        def put(task: Any, name: str) -> Any:  # noqa: ANN401
            return options.put(task, name, STAGES[name], pools)

        # The exit handler: it says how the run ended, and undoes what a failed one deployed.
        concluded = put(serving.conclude(**target, force=deploy_force, timeout=deploy_timeout), "conclude")
        with dsl.ExitHandler(concluded, name="workflow"):
            checked = put(
                preflight(
                    data_uri=data_uri,
                    pretrained_uri=pretrained_uri,
                    deploy_base=deploy_base,
                    deploy_target=deploy_target,
                    deploy_namespace=deploy_namespace,
                    gpu_type=pool_gpu_type,
                    gpu_count=pool_gpu_count,
                    gpu_node_selector=pool_gpu_node_selector,
                    gpu_tolerations=pool_gpu_tolerations,
                ),
                "preflight",
            )
            acquired = put(
                widerface.acquire(
                    uri=data_uri,
                    training_images=data_training_images,
                    validation_images=data_validation_images,
                    seed=data_seed,
                    image_width=data_picture_width,
                    image_height=data_picture_height,
                ),
                "data",
            ).after(checked)
            converted = put(
                widerface.convert(
                    dataset=acquired.outputs["dataset"],
                    width=data_width,
                    height=data_height,
                    grayscale=data_grayscale,
                    min_face_height=data_min_face_height,
                    small_faces=data_small_faces,
                    invalid_faces=data_invalid_faces,
                    occluded_faces=data_occluded_faces,
                    max_images=data_max_images,
                ),
                "kitti",
            )
            kitti = converted.outputs["kitti"]
            sets = {"kitti": kitti}
            for split in ("training", "validation"):
                records = detectnet_v2.dataset_convert(kitti=kitti, split=split, spec=records_spec)
                sets[f"{split}_records"] = put(records, f"records {split}").outputs["records"]

            pretrained = (
                put(detectnet_v2.pretrained_weights(uri=pretrained_uri), "pretrained").after(checked).outputs["model"]
            )
            evaluated_pretrained = put(
                detectnet_v2.evaluate(**sets, **training, model=pretrained, **counting), "evaluate pretrained"
            )
            trained = put(
                detectnet_v2.train(
                    **sets,
                    **training,
                    pretrained=pretrained,
                    name="facedetect",
                    width=train_width,
                    threads=train_threads,
                ),
                "train",
            ).outputs["model"]
            evaluated = put(detectnet_v2.evaluate(**sets, **training, model=trained, **counting), "evaluate")
            pruned = put(
                detectnet_v2.prune(
                    model=trained,
                    threshold=prune_threshold,
                    target_ratio=prune_target_ratio,
                    granularity=prune_granularity,
                    minimum_filters=prune_minimum_filters,
                    normalizer=prune_normalizer,
                    equalization=prune_equalization,
                    excluded_layers=prune_excluded_layers,
                ),
                "prune",
            ).outputs["pruned"]
            evaluated_pruned = put(
                detectnet_v2.evaluate(**sets, **training, model=pruned, **counting), "evaluate pruned"
            )
            retrained = put(
                detectnet_v2.train(
                    **sets,
                    **retraining,
                    pretrained=pruned,
                    name="facedetect_pruned",
                    width=1.0,  # the pruned graph has its own
                    threads=train_threads,
                ),
                "retrain",
            ).outputs["model"]
            evaluated_retrained = put(
                detectnet_v2.evaluate(**sets, **retraining, model=retrained, **counting), "evaluate retrained"
            )

            put(
                detectnet_v2.inference(
                    kitti=kitti, model=retrained, spec=inference_spec, batch_size=inference_batch_size, **size
                ),
                "inference",
            )
            exported = put(detectnet_v2.export(**retraining, model=retrained, opset=export_opset), "export").outputs[
                "exported"
            ]
            quantized = put(
                conversion.int8(
                    exported=exported,
                    kitti=kitti,
                    calibration_images=int8_calibration_images,
                    max_points_lost=int8_max_points_lost,
                    min_face_height=eval_min_face_height,
                ),
                "int8",
            ).outputs["quantized"]
            scored = put(
                evaluation.report(
                    exported=exported,
                    quantized=quantized,
                    kitti=kitti,
                    pretrained_evaluation=evaluated_pretrained.outputs["evaluation"],
                    trained_evaluation=evaluated.outputs["evaluation"],
                    pruned_evaluation=evaluated_pruned.outputs["evaluation"],
                    retrained_evaluation=evaluated_retrained.outputs["evaluation"],
                    min_face_height=eval_min_face_height,
                ),
                "report",
            )

            if options.serving is Serving.gpu:
                plan = put(
                    serving.tensorrt(
                        exported=exported,
                        precision=deploy_precision,
                        best_batch=deploy_best_batch,
                        largest_batch=deploy_largest_batch,
                        workspace=deploy_workspace,
                        timing_cache=deploy_timing_cache,
                    ),
                    "plan",
                ).outputs["plan"]
                built = serving.repository_of_plan(exported=exported, plan=plan, preprocessing="letterbox")
                served, scored_as = exported, "exported"
            else:
                built = serving.repository(exported=quantized, backend="onnxruntime", preprocessing="letterbox")
                served, scored_as = quantized, "quantized"
            repository = put(built, "model repository").outputs["repository"]
            published = put(serving.publish(repository=repository, base=deploy_base), "publish")
            deployed = put(
                serving.deploy(
                    published=published.outputs["published"],
                    evaluation=scored.outputs["evaluation"],
                    scored_model=scored_as,
                    image=deploy_image,
                    **target,
                    **gate,
                    mode=deploy_mode,
                    protocol=deploy_protocol,
                    gateway=deploy_gateway,
                    gpus=deploy_gpus,
                    cpu=deploy_cpu,
                    cpu_limit=deploy_cpu_limit,
                    memory=deploy_memory,
                    memory_limit=deploy_memory_limit,
                    shared_memory=deploy_shared_memory,
                    minimum_replicas=deploy_minimum_replicas,
                    maximum_replicas=deploy_maximum_replicas,
                    node_selector=deploy_node_selector,
                    tolerations=deploy_tolerations,
                    service_account=deploy_service_account,
                    canary_percent=deploy_canary_percent,
                ),
                "deploy",
            )
            answered = put(
                evaluation.endpoint(
                    kitti=kitti,
                    model=served,
                    endpoint=deployed.outputs["endpoint"],
                    endpoint_host=deployed.outputs["gateway_host"],
                    min_face_height=eval_min_face_height,
                ),
                "endpoint",
            )
            put(
                serving.promote(
                    deployment=deployed.outputs["deployment"], evaluation=answered.outputs["evaluation"], **gate
                ),
                "promote",
            )

    return facedetect


def _check_spec(kind: str, text: str) -> str:
    """Refuses a spec template that is too long for a parameter or has a placeholder that nothing fills."""
    if len(text.encode()) > SPEC_BYTES:
        raise ValueError(f"a spec may have {SPEC_BYTES} bytes, this one has {len(text.encode())}")
    try:
        render(text, dict.fromkeys(PLACEHOLDERS[kind], 1))
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


RecordsSpec = Annotated[str, AfterValidator(partial(_check_spec, "convert"))]
ExperimentSpec = Annotated[str, AfterValidator(partial(_check_spec, "experiment"))]
InferenceSpec = Annotated[str, AfterValidator(partial(_check_spec, "inference"))]
Policy = Literal["ignore", "keep"]
Images = Annotated[int, Field(ge=1, le=1_000_000)]
PictureSize = Annotated[int, Field(ge=96, le=8192)]
InputSize = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Height = Annotated[int, Field(ge=0, le=4096)]
Filters = Annotated[int, Field(ge=1, le=512)]
Share = Annotated[float, Field(ge=0, le=1)]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?$")]
Replicas = Annotated[int, Field(ge=0, le=1000)]


class Ranges(TypedDict, total=False):
    """What values the pipeline's parameters may have; pydantic checks those that are given."""

    data_uri: str
    data_training_images: Images
    data_validation_images: Images
    data_seed: Seed
    data_picture_width: PictureSize
    data_picture_height: PictureSize
    data_width: InputSize
    data_height: InputSize
    data_grayscale: bool
    data_min_face_height: Height
    data_small_faces: Policy
    data_invalid_faces: Policy
    data_occluded_faces: Policy
    data_max_images: Annotated[int, Field(ge=0)]
    records_spec: RecordsSpec
    pretrained_uri: str
    train_spec: ExperimentSpec
    train_epochs: Epochs
    train_batch_size: BatchSize
    train_learning_rate: LearningRate
    train_seed: Seed
    train_width: Annotated[float, Field(ge=0.05, le=2)]
    train_threads: Annotated[int, Field(ge=0, le=1024)]
    prune_threshold: Share
    prune_target_ratio: Share
    prune_granularity: Filters
    prune_minimum_filters: Filters
    prune_normalizer: Literal["max", "L2"]
    prune_equalization: Literal["union", "intersection", "arithmetic_mean", "geometric_mean"]
    prune_excluded_layers: str
    retrain_spec: ExperimentSpec
    retrain_epochs: Epochs
    retrain_batch_size: BatchSize
    retrain_learning_rate: LearningRate
    retrain_seed: Seed
    inference_spec: InferenceSpec
    inference_batch_size: BatchSize
    export_opset: Annotated[int, Field(ge=0, le=30)]
    int8_calibration_images: Images
    int8_max_points_lost: Annotated[float, Field(ge=0, le=100)]
    deploy_target: Literal["manifest", "kserve", "local"]
    deploy_base: str
    deploy_name: KubernetesName
    deploy_namespace: KubernetesName
    deploy_service_account: KubernetesName
    deploy_mode: Literal["Standard", "Knative"]
    deploy_protocol: Literal["v2", "grpc-v2"]
    deploy_gateway: str
    deploy_image: Annotated[str, Field(min_length=1)]
    deploy_precision: Literal["fp16", "fp32"]
    deploy_best_batch: BatchSize
    deploy_largest_batch: BatchSize
    deploy_workspace: Annotated[int, Field(ge=1, le=1_048_576)]
    deploy_timing_cache: str
    deploy_gpus: Annotated[int, Field(ge=0, le=16)]
    deploy_cpu: Quantity
    deploy_cpu_limit: Quantity
    deploy_memory: Quantity
    deploy_memory_limit: Quantity
    deploy_shared_memory: Quantity
    deploy_minimum_replicas: Replicas
    deploy_maximum_replicas: Annotated[int, Field(ge=1, le=1000)]
    deploy_node_selector: dict[str, str]
    deploy_tolerations: list[dict[str, Any]]
    deploy_canary_percent: Annotated[int, Field(ge=0, le=99)]
    deploy_champion: str
    deploy_max_points_lost: Annotated[float, Field(ge=0, le=100)]
    deploy_accept_incomparable: bool
    deploy_force: bool
    deploy_timeout: Annotated[float, Field(ge=1, le=86_400)]
    eval_min_face_height: Height
    pool_cpu_node_selector: dict[str, str]
    pool_cpu_tolerations: list[dict[str, Any]]
    pool_gpu_type: Annotated[str, Field(pattern=r"^[a-z0-9.-]+(/[A-Za-z0-9._-]+)?$")]
    pool_gpu_count: Annotated[str, Field(pattern=r"^[0-9]{1,2}$")]
    pool_gpu_node_selector: dict[str, str]
    pool_gpu_tolerations: list[dict[str, Any]]
