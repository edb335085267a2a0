"""Where each stage runs in a cluster and what it is given there: pools, secrets, volumes, time and further attempts.

Node selectors, tolerations, the kind and number of GPUs are parameters of the pipeline; what else describes the cluster
is `Placement`, the table `[placement]` of `gridbox.toml`. Both are bound at compile.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from components.step import UserError
from components.tao.call import TAO_KEY
from components.tao.workplace import CHECKPOINTS, RUN_ID

CHECKPOINT_FOLDER, DATA_FOLDER, SCRATCH_FOLDER = "/checkpoints", "/data", "/scratch"
# Argo's label on every pod of a run: the same for all attempts at it.
RUN_LABEL = "metadata.labels['pipeline/runid']"
# The user of our images; NVIDIA's TAO images want root.
IMAGE_USER = 10001
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class Pool(StrEnum):
    """Nodes of one kind."""

    cpu = "cpu"
    gpu = "gpu"
    serving = "serving"


class Access(StrEnum):
    """What a stage needs from outside the run."""

    store = "store"
    data = "data"
    ngc = "ngc"
    tao_key = "tao_key"
    checkpoints = "checkpoints"


def _setting(default: Any, help_text: str) -> Any:  # noqa: ANN401 - of the setting's type
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a cluster offers the stages. An empty string, or 0, leaves a setting out.

    Amounts are Kubernetes' quantities; `…_secret` and `…_claim` are names of Secrets and PersistentVolumeClaims in the
    namespace of the run.
    """

    cpu_request: str = _setting("", "Cores a stage on the CPU pool requests.")
    cpu_limit: str = _setting("", "Cores a stage on the CPU pool may use.")
    memory_request: str = _setting("", "Memory a stage on the CPU pool requests.")
    memory_limit: str = _setting("", "Memory a stage on the CPU pool may use.")
    gpu_cpu_request: str = _setting("", "Cores a stage on the GPU pool requests.")
    gpu_cpu_limit: str = _setting("", "Cores a stage on the GPU pool may use.")
    gpu_memory_request: str = _setting("", "Memory a stage on the GPU pool requests.")
    gpu_memory_limit: str = _setting("", "Memory a stage on the GPU pool may use, its shared memory included.")
    shared_memory: str = _setting("8Gi", "Size of the memory-backed /dev/shm of a stage on the GPU pool.")
    image_pull_secret: str = _setting("", "Secret to pull our images with.")
    ngc_pull_secret: str = _setting("ngc", "Secret to pull NVIDIA's TAO images with.")
    store_secret: str = _setting("gridbox-s3", "Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    store_endpoint: str = _setting("", "URL of the object store, where it is not AWS.")
    store_region: str = _setting("", "Region of the object store.")
    ngc_secret: str = _setting("gridbox-ngc", "Secret with NGC_API_KEY, for NVIDIA's model registry.")
    tao_key_secret: str = _setting("gridbox-tao", "Secret with TAO_KEY, the key of encrypted TAO models.")
    data_claim: str = _setting("", f"Claim with data sets, mounted at {DATA_FOLDER}.")
    checkpoint_claim: str = _setting("", "Claim in which training keeps checkpoints, for attempts after a pre-emption.")
    # On the node: Kubeflow cannot give a mounted volume to the user of our images (no fsGroup).
    scratch_size: str = _setting("", f"Size of the scratch folder {SCRATCH_FOLDER} of every stage, on its node's disk.")
    retries: int = _setting(2, "Further attempts at a stage that failed or was pre-empted.")
    timeout_hours: float = _setting(24.0, "Hours a stage may take.")

    def __post_init__(self) -> None:
        if self.retries < 0 or self.timeout_hours < 0:
            raise UserError("placement: retries and timeout_hours must not be below 0")


@dataclass(frozen=True, slots=True)
class Tao:
    """How NVIDIA's program does a stage.

    Attributes:
        reads: The stages whose models it reads, which must be NVIDIA's, too.
        pool: The nodes it runs on: TensorFlow 1 in NVIDIA's image wants a GPU for whatever has to do with a network.
    """

    reads: tuple[str, ...] = ()
    pool: Pool = Pool.gpu


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage is placed.

    Attributes:
        pool: The nodes it runs on.
        access: What it needs from outside.
        tao: How NVIDIA's program does it; None where there is only ours.
        is_cached: Whether an earlier result may stand for it; not where what it does reaches outside.
        may_retry: Whether a further attempt can do no harm.
    """

    pool: Pool = Pool.cpu
    access: tuple[Access, ...] = ()
    tao: Tao | None = None
    is_cached: bool = True
    may_retry: bool = True


def place(
    task: Any,  # noqa: ANN401 - kfp ships no types
    name: str,
    stage: Stage,
    read: Callable[[str], Any],
    placement: Placement,
    *,
    as_user: int | None,
    pull_secret: str,
) -> None:
    """Says where a task runs and what it is given.

    Args:
        task: The task.
        name: What it is called, for the folder of its checkpoints.
        stage: How it is placed.
        read: Returns the value of a parameter: `pool_…` and `deploy_…` choose the nodes.
        placement: What the cluster offers.
        as_user: The user to run as; None leaves that to the image.
        pull_secret: Secret to pull its image with, or empty.
    """
    from kfp import kubernetes

    _on_pool(task, stage.pool, read, placement)
    for access in stage.access:
        _give(task, access, name, placement)
    if pull_secret:
        kubernetes.set_image_pull_secrets(task, [pull_secret])
    if placement.scratch_size:
        kubernetes.empty_dir_mount(task, "scratch", SCRATCH_FOLDER, size_limit=placement.scratch_size)
        task.set_env_variable("TMPDIR", SCRATCH_FOLDER)
    if placement.timeout_hours:
        kubernetes.set_timeout(task, round(3600 * placement.timeout_hours))
    if stage.may_retry and placement.retries:
        task.set_retry(placement.retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
    if as_user is not None:
        kubernetes.set_security_context(task, run_as_user=as_user, run_as_non_root=True)
    if not stage.is_cached:
        task.set_caching_options(False)


def _on_pool(task: Any, pool: Pool, read: Callable[[str], Any], placement: Placement) -> None:  # noqa: ANN401
    from kfp import kubernetes

    nodes = "deploy" if pool is Pool.serving else f"pool_{pool}"
    if selector := read(f"{nodes}_node_selector"):
        kubernetes.add_node_selector_json(task, selector)
    if tolerations := read(f"{nodes}_tolerations"):
        kubernetes.add_toleration_json(task, tolerations)
    prefix = "" if pool is Pool.cpu else "gpu_"
    for name in ("cpu_request", "cpu_limit", "memory_request", "memory_limit"):
        if amount := getattr(placement, prefix + name):
            getattr(task, f"set_{name}")(amount)
    if pool is Pool.cpu:
        return
    # A plan is built on one GPU, however many train.
    count = "1" if pool is Pool.serving else read("pool_gpu_count")
    if count != "0":
        task.set_accelerator_type(read("pool_gpu_type")).set_accelerator_limit(count)
    if placement.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shared-memory", "/dev/shm", medium="Memory", size_limit=placement.shared_memory
        )


def _give(task: Any, access: Access, stage: str, placement: Placement) -> None:  # noqa: ANN401
    from kfp import kubernetes

    if access is Access.store:
        _secret(task, placement.store_secret, _S3_KEYS)
        for variable, value in (("AWS_ENDPOINT_URL", placement.store_endpoint), ("AWS_REGION", placement.store_region)):
            if value:
                task.set_env_variable(variable, value)
    elif access is Access.ngc:
        _secret(task, placement.ngc_secret, ("NGC_API_KEY",))
    elif access is Access.tao_key:
        _secret(task, placement.tao_key_secret, (TAO_KEY,))
    elif access is Access.data and placement.data_claim:
        kubernetes.mount_pvc(task, placement.data_claim, DATA_FOLDER)
    elif access is Access.checkpoints and placement.checkpoint_claim:
        kubernetes.mount_pvc(task, placement.checkpoint_claim, CHECKPOINT_FOLDER)
        task.set_env_variable(CHECKPOINTS, f"{CHECKPOINT_FOLDER}/{stage}")
        kubernetes.use_field_path_as_env(task, RUN_ID, RUN_LABEL)


def _secret(task: Any, name: str, keys: tuple[str, ...]) -> None:  # noqa: ANN401
    from kfp import kubernetes

    if name:
        # Optional: a folder, or a public bucket, needs no key; who needs one and has none is told so by the stage.
        kubernetes.use_secret_as_env(task, name, {key: key for key in keys}, optional=True)
