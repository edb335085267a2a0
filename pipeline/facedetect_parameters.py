"""The parameters of the face-detection workflow: type and range, default, help, and whether a run may change them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from components.detectnet_v2.stage import PLACEHOLDERS
from components.serve import kubernetes
from components.step import UserError
from components.tao.rendering import render, template_text
from pipeline.parameters import Parameter, bound, of_run

T = TypeVar("T")

SPEC_BYTES = 16 * 1024


def _check_spec(kind: str, text: str) -> str:
    """Refuses a spec template that is too long for a parameter or has a placeholder that nothing fills."""
    if len(text.encode()) > SPEC_BYTES:
        raise ValueError(f"a spec may have {SPEC_BYTES} bytes, this one has {len(text.encode())}")
    try:
        render(template_text(text), dict.fromkeys(PLACEHOLDERS[kind], 1))
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


def _refuse(problems: Callable[[T], Iterable[str]], value: T) -> T:
    """Refuses a value in which there are problems."""
    if found := "; ".join(problems(value)):
        raise ValueError(found)
    return value


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
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?$")]
Replicas = Annotated[int, Field(ge=0, le=1000)]
ServiceName = Annotated[str, AfterValidator(partial(_refuse, kubernetes.service_name_problems))]
Namespace = Annotated[str, AfterValidator(partial(_refuse, kubernetes.namespace_problems))]
Gateway = Annotated[str, AfterValidator(partial(_refuse, kubernetes.gateway_problems))]
Account = Annotated[str, AfterValidator(partial(_refuse, kubernetes.account_problems))]
Selector = Annotated[dict[str, str], AfterValidator(partial(_refuse, kubernetes.selector_problems))]
Tolerations = Annotated[list[dict[str, Any]], AfterValidator(partial(_refuse, kubernetes.toleration_problems))]

# A spec of ours goes by its name, as facedetect/train; its text would stand several times in the Workflow.
# Those of a run are a person's: what one changes between two runs. The others describe data, network, server and
# cluster, and are bound when the pipeline is compiled (`--set`).
PARAMETERS: dict[str, Parameter] = {
    "data_uri": of_run(
        str,
        "",
        "WIDER FACE in its official layout: a folder, or an https:// or s3:// URI; empty: a synthetic set.",
    ),
    "data_training_images": of_run(Images, 800, "Pictures to draw for training where data_uri is empty."),
    "data_validation_images": of_run(Images, 200, "Pictures to draw for validation where data_uri is empty."),
    "data_seed": bound(Seed, 1, "Seed of the drawn pictures."),
    "data_picture_width": bound(PictureSize, 640, "Width of the drawn pictures in pixels."),
    "data_picture_height": bound(PictureSize, 384, "Height of the drawn pictures in pixels."),
    "data_width": bound(InputSize, 736, "Width of the network's input in pixels, divisible by 16."),
    "data_height": bound(InputSize, 416, "Height of the network's input in pixels, divisible by 16."),
    "data_grayscale": bound(bool, False, "Whether colour becomes grey, in three equal channels."),
    "data_min_face_height": bound(
        Height,
        8,
        "Faces lower than this in the network's input, in pixels, are small; 0: none is.",
    ),
    "data_small_faces": bound(
        Policy,
        "ignore",
        "`ignore` or `keep`: whether small faces become regions in which nothing counts.",
    ),
    "data_invalid_faces": bound(
        Policy,
        "ignore",
        "`ignore` or `keep`: the same for faces that the annotators flagged invalid.",
    ),
    "data_occluded_faces": bound(Policy, "keep", "`ignore` or `keep`: the same for heavily occluded faces."),
    "data_max_images": of_run(
        Annotated[int, Field(ge=0)],
        0,
        "At most so many images of each split, evenly spaced; 0: all.",
    ),
    "records_spec": bound(RecordsSpec, "facedetect/convert", "Name or text of the dataset-conversion spec."),
    "pretrained_uri": of_run(
        str,
        "",
        "Weights to start from: a file, an https:// or s3:// URI, or ngc://org/team/model:version in NVIDIA's "
        "registry; empty for random weights.",
    ),
    "train_spec": bound(ExperimentSpec, "facedetect/train", "Name or text of the experiment spec for training."),
    "train_epochs": of_run(Epochs, 100, "Passes over the training images."),
    "train_batch_size": of_run(BatchSize, 32, "Images a step."),
    "train_learning_rate": of_run(LearningRate, 5e-4, "Highest learning rate; the lowest is a hundredth of it."),
    "train_seed": bound(Seed, 42, "Seed of weights, order and augmentation."),
    "train_width": bound(
        Annotated[float, Field(ge=0.05, le=2)],
        1.0,
        "Scales the network's channels (open engine only; 1 is TAO's network).",
    ),
    "train_threads": bound(
        Annotated[int, Field(ge=0, le=1024)],
        0,
        "CPU threads of training and retraining (open engine only; 0: all cores).",
    ),
    "prune_threshold": of_run(Share, 5.2e-6, "A filter stays when its normalised norm is above this."),
    "prune_target_ratio": of_run(
        Share,
        0.0,
        "Share of parameters to keep at most (open engine; 0: by prune_threshold).",
    ),
    "prune_granularity": bound(Filters, 8, "Filters are kept in multiples of this."),
    "prune_minimum_filters": bound(Filters, 16, "A layer keeps at least so many filters."),
    "prune_normalizer": bound(Literal["max", "L2"], "max", "`max` or `L2`: what a layer's norms are divided by."),
    "prune_equalization": bound(
        Literal["union", "intersection", "arithmetic_mean", "geometric_mean"],
        "union",
        "`union`, `intersection`, `arithmetic_mean` or `geometric_mean`: how layers that are added together "
        "agree on their filters.",
    ),
    "prune_excluded_layers": bound(str, "", "Layers to leave whole, separated by spaces."),
    "retrain_spec": bound(
        ExperimentSpec,
        "facedetect/retrain",
        "Name or text of the experiment spec for retraining.",
    ),
    "retrain_epochs": of_run(Epochs, 50, "Passes over the training images in retraining."),
    "retrain_batch_size": bound(BatchSize, 32, "Images a step in retraining."),
    "retrain_learning_rate": of_run(LearningRate, 5e-4, "Highest learning rate of retraining."),
    "retrain_seed": bound(Seed, 42, "Seed of retraining."),
    "inference_spec": bound(InferenceSpec, "facedetect/inference", "Name or text of the inference spec."),
    "inference_batch_size": bound(BatchSize, 16, "Images a step in inference."),
    "export_opset": bound(
        Annotated[int, Field(ge=0, le=30)],
        13,
        "ONNX operator set; 13 is the lowest that INT8 can do with; 0: the engine's own choice.",
    ),
    "int8_calibration_images": bound(Images, 200, "Training images on which the ranges of activations are measured."),
    "int8_max_points_lost": of_run(
        Annotated[float, Field(ge=0, le=100)],
        2.0,
        "Points of average precision (hundredths) the INT8 model may lose at most.",
    ),
    "deploy_target": of_run(
        Literal["manifest", "kserve", "local"],
        "manifest",
        "`manifest` writes YAML for kubectl apply, `kserve` applies it and waits, `local` serves on this "
        "machine while the run lasts (`gridbox run` only).",
    ),
    "deploy_base": of_run(
        str,
        "",
        "Where published models lie: an s3:// URI, or for a run on one machine a folder; empty: the model is "
        "trained and scored, but neither published nor deployed.",
    ),
    "deploy_name": of_run(ServiceName, "facenet", "Name of the InferenceService."),
    "deploy_namespace": of_run(Namespace, "gridbox", "Its namespace."),
    "deploy_service_account": bound(
        Account,
        "gridbox-serving",
        "Account of its pods, whose secrets fetch the model.",
    ),
    "deploy_mode": bound(
        Literal["Standard", "Knative"],
        "Standard",
        "`Standard` or `Knative`: how KServe runs it; cannot be changed later.",
    ),
    "deploy_protocol": bound(
        Literal["v2", "grpc-v2"],
        "v2",
        "`v2` (HTTP) or `grpc-v2`: what the service's port speaks.",
    ),
    "deploy_gateway": bound(
        Gateway,
        "",
        "Ingress gateway (host:port) to score through where the service's name cannot be resolved.",
    ),
    "deploy_image": bound(
        str,
        "",
        "The image of Triton that serves; empty: that of [images] in gridbox.toml.",
    ),
    "deploy_backend": bound(
        Literal["onnxruntime", "python"],
        "onnxruntime",
        "What runs the network in Triton on CPUs: its own ONNX Runtime, or ours in Python where the image has none.",
    ),
    "deploy_precision": bound(
        Literal["fp16", "fp32"],
        "fp16",
        "`fp16` or `fp32`: numbers of the TensorRT plan (compiled with --serving gpu only).",
    ),
    "deploy_best_batch": bound(BatchSize, 16, "The batch that the plan is optimised for (--serving gpu only)."),
    "deploy_largest_batch": bound(BatchSize, 32, "The largest batch of the plan (--serving gpu only)."),
    "deploy_workspace": bound(
        Annotated[int, Field(ge=1, le=1_048_576)],
        4096,
        "MiB of GPU memory for the plan's kernels (--serving gpu only).",
    ),
    "deploy_gpus": bound(
        Annotated[int, Field(ge=0, le=16)],
        0,
        "NVIDIA GPUs of a serving pod; 0: none, or one where compiled with --serving gpu.",
    ),
    "deploy_cpu": bound(Quantity, "1", "Cores a serving pod requests."),
    "deploy_cpu_limit": bound(Quantity, "4", "Cores a serving pod may use."),
    "deploy_memory": bound(Quantity, "2Gi", "Memory a serving pod requests."),
    "deploy_memory_limit": bound(Quantity, "4Gi", "Memory a serving pod may use."),
    "deploy_shared_memory": bound(Quantity, "1Gi", "Size of a serving pod's /dev/shm."),
    "deploy_minimum_replicas": bound(Replicas, 1, "Serving pods at least."),
    "deploy_maximum_replicas": bound(Annotated[int, Field(ge=1, le=1000)], 1, "Serving pods at most."),
    "deploy_node_selector": bound(Selector, {}, "Labels of the nodes to serve on."),
    "deploy_tolerations": bound(Tolerations, [], "Tolerations of its pods."),
    "deploy_canary_percent": of_run(
        Annotated[int, Field(ge=0, le=99)],
        0,
        "Traffic to the new model until its endpoint is scored; 0: all at once.",
    ),
    "deploy_champion": bound(str, "", "Score of the served model, a path or URI; empty: read from the cluster."),
    "deploy_max_points_lost": of_run(
        Annotated[float, Field(ge=0, le=100)],
        1.0,
        "Points (hundredths) of average precision by which the served model may be better.",
    ),
    "deploy_accept_incomparable": of_run(
        bool,
        False,
        "Whether a model passes that was not scored on the same images as the served one.",
    ),
    "deploy_force": bound(bool, False, "Whether fields that other field managers own are taken over."),
    "deploy_timeout": bound(
        Annotated[float, Field(ge=1, le=86_400)],
        900.0,
        "Seconds until the service must be ready.",
    ),
    "eval_min_face_height": of_run(
        Height,
        4,
        "Lowest face that counts in every evaluation, pixels of the network's input.",
    ),
    "pool_cpu_node_selector": bound(Selector, {}, "Labels of the nodes for stages without a GPU."),
    "pool_cpu_tolerations": bound(Tolerations, [], "Tolerations of those stages."),
    "pool_gpu_type": bound(
        Annotated[str, Field(pattern=r"^[a-z0-9.-]+(/[A-Za-z0-9._-]+)?$")],
        "nvidia.com/gpu",
        "The resource by which the cluster counts its GPUs.",
    ),
    "pool_gpu_count": bound(
        Annotated[str, Field(pattern=r"^[0-9]{1,2}$")],
        "1",
        "GPUs of a stage that trains or evaluates; 0 for none.",
    ),
    "pool_gpu_node_selector": bound(Selector, {}, "Labels of the nodes for those stages."),
    "pool_gpu_tolerations": bound(
        Tolerations,
        [],
        "Tolerations of those stages, for a spot pool, for example.",
    ),
}
