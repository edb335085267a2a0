"""Where the compiled pipeline's stages run in a cluster, and what they are given there."""

import pytest
import yaml
from test_pipeline_contract import all_tasks

from components.images import OPEN_ENGINE, OPEN_ENGINE_GPU, TAO_TOOLKIT
from components.step import UserError
from components.tao.workplace import CHECKPOINTS, RUN_ID
from pipeline.catalogue import definition
from pipeline.compiled import load
from pipeline.compiling import compile_to
from pipeline.images import Images
from pipeline.options import Backend, Engine, Options, Serving, parse_engines
from pipeline.placement import CHECKPOINT_FOLDER, Placement
from pipeline.tables import read_table

STAGES = definition("facedetect").stages
FULL = Placement(
    cpu_request="1",
    memory_limit="8Gi",
    gpu_memory_request="16Gi",
    image_pull_secret="pull",
    store_endpoint="http://store:9000",
    data_claim="data-sets",
    checkpoint_claim="kept",
    scratch_size="50Gi",
    retries=3,
    timeout_hours=1.5,
)


class Compiled:
    def __init__(self, path, options, **values):
        compile_to("facedetect", path, "tao", options, values)
        self.text = path.read_text()
        self.spec, self.platform = yaml.load_all(self.text, Loader=yaml.CSafeLoader)
        self.tasks = {task["taskInfo"]["name"]: task for task in all_tasks(self.spec).values()}

    def _label(self, stage):
        component = self.tasks[stage]["componentRef"]["name"]
        return self.spec["components"][component]["executorLabel"]

    def container(self, stage):
        return self.spec["deploymentSpec"]["executors"][self._label(stage)]["container"]

    def placed(self, stage):
        return self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][self._label(stage)]

    def environment(self, stage):
        return {entry["name"]: entry["value"] for entry in self.container(stage).get("env", [])}

    def secrets(self, stage):
        return {
            (entry["secretName"], pair["envVar"])
            for entry in self.placed(stage).get("secretAsEnv", [])
            for pair in entry["keyToEnv"]
        }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    variants = {
        "open": Options(placement=FULL),
        "gpu": Options(Serving.gpu),
        "tao": Options(engines=parse_engines("tao,export=open"), placement=FULL),
        "2.15": Options(backend=Backend.v2_15, placement=FULL),
    }
    folder = tmp_path_factory.mktemp("placed")
    return {name: Compiled(folder / f"{name}.yaml", options) for name, options in variants.items()}


GPU_STAGES = {"train", "retrain", "evaluate"}


def test_gpus_go_to_the_stages_that_train_or_evaluate(compiled):
    for stage in compiled["open"].tasks:
        resources = compiled["open"].container(stage).get("resources", {})
        assert ("accelerator" in resources) == (stage in GPU_STAGES), stage
        assert compiled["open"].container(stage)["image"] == (OPEN_ENGINE_GPU if stage in GPU_STAGES else OPEN_ENGINE)


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Compiled for a cluster with pools of its own."""
    tolerations = [{"key": "spot", "operator": "Exists"}]
    values = {
        "pool_gpu_type": "amd.com/gpu",
        "pool_gpu_count": "2",
        "pool_gpu_node_selector": {"gpu": "a100"},
        "pool_gpu_tolerations": tolerations,
        "pool_cpu_node_selector": {"pool": "cpu"},
        "deploy_node_selector": {"gpu": "t4"},
    }
    return Compiled(tmp_path_factory.mktemp("pools") / "pools.yaml", Options(Serving.gpu), **values)


def test_kind_number_and_nodes_of_gpus_are_those_bound_when_compiling(pools):
    accelerator = pools.container("train")["resources"]["accelerator"]
    # Amounts of GPUs must be texts: the driver reads nothing else.
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "2")
    placed = pools.placed("train")
    assert placed["nodeSelector"] == {"nodeSelectorJson": {"runtimeValue": {"constant": {"gpu": "a100"}}}}
    assert placed["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert pools.placed("kitti")["nodeSelector"]["nodeSelectorJson"]["runtimeValue"]["constant"] == {"pool": "cpu"}


def test_cluster_without_gpus_gets_none(tmp_path):
    compiled = Compiled(tmp_path / "f.yaml", Options(), pool_gpu_count="0")
    assert "resources" not in compiled.container("train")


def test_no_parameter_of_a_run_decides_where_a_stage_runs(compiled):
    for each in compiled.values():
        text = yaml.safe_dump(each.platform) + yaml.safe_dump(each.spec["deploymentSpec"])
        assert "componentInputParameter" not in text
        assert "$.inputs.parameters" not in text


def test_plan_is_built_on_the_serving_pool_on_one_gpu(pools):
    assert pools.container("plan")["resources"]["accelerator"]["resourceCount"] == "1"
    selector = pools.placed("plan")["nodeSelector"]["nodeSelectorJson"]
    assert selector == {"runtimeValue": {"constant": {"gpu": "t4"}}}


def test_training_gets_shared_memory_and_keeps_checkpoints_by_run_and_stage(compiled):
    shared = {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}
    for stage in ("train", "retrain"):
        placed = compiled["open"].placed(stage)
        assert shared in placed["emptyDirMounts"]
        assert [each["mountPath"] for each in placed["pvcMount"]] == [CHECKPOINT_FOLDER]
        assert compiled["open"].environment(stage)[CHECKPOINTS] == f"/checkpoints/{stage}"
        assert placed["fieldPathAsEnv"] == [{"name": RUN_ID, "fieldPath": "metadata.labels['pipeline/runid']"}]
    assert shared not in compiled["open"].placed("kitti")["emptyDirMounts"]


def test_secrets_are_named_and_given_only_to_the_stages_that_need_them(compiled):
    store = {("gridbox-s3", "AWS_ACCESS_KEY_ID"), ("gridbox-s3", "AWS_SECRET_ACCESS_KEY")}
    for stage in compiled["open"].tasks:
        needs_store = stage in ("preflight", "data", "pretrained", "publish", "deploy", "promote")
        ngc = {("gridbox-ngc", "NGC_API_KEY")} if stage in ("preflight", "pretrained") else set()
        assert compiled["open"].secrets(stage) == (store if needs_store else set()) | ngc, stage
    assert compiled["open"].environment("publish")["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert compiled["tao"].secrets("train") == {("gridbox-tao", "TAO_KEY")}
    for entry in compiled["open"].placed("publish")["secretAsEnv"]:
        assert entry["optional"] is True


def test_preflight_is_given_what_the_stages_are_that_it_vouches_for(compiled):
    placed = compiled["open"]
    others = set(placed.tasks) - {"preflight"}
    assert placed.secrets("preflight") == set().union(*map(placed.secrets, others))
    claims = {stage: {each["mountPath"] for each in placed.placed(stage).get("pvcMount", [])} for stage in placed.tasks}
    assert claims["preflight"] == set().union(*(claims[stage] for stage in others)) == {"/checkpoints", "/data"}


def test_attempts_times_and_volumes_are_those_of_the_settings(compiled):
    policy = compiled["open"].tasks["train"]["retryPolicy"]
    assert (policy["maxRetryCount"], policy["backoffDuration"]) == (3, "60s")
    assert "retryPolicy" not in compiled["open"].tasks["deploy"]
    assert compiled["open"].placed("train")["activeDeadlineSeconds"] == "5400"
    (scratch,) = compiled["open"].placed("kitti")["emptyDirMounts"]
    assert (scratch["mountPath"], scratch["sizeLimit"]) == ("/scratch", "50Gi")
    assert compiled["open"].environment("kitti")["TMPDIR"] == "/scratch"
    assert [each["mountPath"] for each in compiled["open"].placed("data")["pvcMount"]] == ["/data"]
    assert compiled["open"].placed("kitti")["imagePullSecret"][0]["secretName"] == "pull"
    resources = compiled["open"].container("kitti")["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == ("1", "8Gi")


def test_stages_of_nvidias_program_run_in_its_image_with_its_pull_secret(compiled):
    tao = compiled["tao"]
    of_tao = {stage for stage in tao.tasks if tao.container(stage)["image"] == TAO_TOOLKIT}
    assert of_tao == {*GPU_STAGES, "prune", "records"}
    for stage in of_tao:
        assert tao.placed(stage)["imagePullSecret"][0]["secretName"] == "ngc"
        assert "securityContext" not in tao.placed(stage)  # NVIDIA's image wants root
        assert tao.container(stage)["command"] == compiled["open"].container(stage)["command"]
        assert tao.container(stage)["args"] == compiled["open"].container(stage)["args"]
    assert "accelerator" in tao.container("prune")["resources"]
    assert tao.container("export")["image"] == OPEN_ENGINE


def test_our_images_run_as_their_own_user_where_kubeflow_can_say_so(compiled):
    context = compiled["open"].placed("train")["securityContext"]
    assert (context["runAsUser"], context["runAsNonRoot"]) == ("10001", True)
    assert "securityContext" not in compiled["gpu"].placed("plan")
    assert not any("securityContext" in compiled["2.15"].placed(stage) for stage in compiled["2.15"].tasks)
    assert "literals" not in compiled["2.15"].text


def test_every_image_of_a_release_has_its_digest_where_the_settings_name_it(tmp_path):
    digest = "@sha256:" + "0" * 64
    images = Images(**{name: f"mirror.example/{name}{digest}" for name in ("open", "open_gpu", "triton", "tao")})
    engines = parse_engines("tao,export=open")
    compiled = Compiled(tmp_path / "pinned.yaml", Options(Serving.gpu, engines, images=images))
    named = {compiled.container(stage)["image"] for stage in compiled.tasks}
    assert named == {f"mirror.example/{name}{digest}" for name in ("open", "triton", "tao")}
    assert f"--image={images.triton}" in compiled.container("deploy")["args"]


def test_file_that_names_a_mirror_runs_here_when_the_settings_know_it(tmp_path):
    images = Images(open="mirror.example/engine:1", open_gpu="mirror.example/engine-gpu:1")
    compile_to("facedetect", tmp_path / "f.yaml", "cpu", Options(images=images))
    with pytest.raises(UserError, match=r"only stages of ghcr.io/gridbox/gridbox run here .a mirror is named in"):
        load(tmp_path / "f.yaml")
    assert load(tmp_path / "f.yaml", images=images).of_tao == frozenset()


def test_what_reaches_outside_is_never_taken_from_a_cache(compiled):
    uncached = {stage for stage, task in compiled["open"].tasks.items() if not task["cachingOptions"]}
    assert uncached == {"preflight", "publish", "deploy", "endpoint", "promote", "conclude"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nvidia", "must be open or tao"),
        ("tao,fly=open", "no such stage; there are records, train"),
        ("tao,train", "must be open or tao"),
        ("tao,train=open", "NVIDIA's prune cannot read the .safetensors that our train writes"),
        ("open,export=tao", "take the open engine for export, too"),
    ],
)
def test_engines_that_cannot_be_are_refused_in_one_line(text, reason):
    with pytest.raises(UserError, match=reason) as caught:
        parse_engines(text).check(STAGES)
    assert "\n" not in str(caught.value)


def test_engines_are_read_with_their_exceptions():
    engines = parse_engines("tao,evaluate=open,export=open")
    engines.check(STAGES)
    of_tao = [name for name, stage in STAGES.items() if stage.tao]
    assert {stage for stage in of_tao if engines.of(stage) is Engine.open} == {"evaluate", "export"}
    assert {parse_engines("open").of(stage) for stage in of_tao} == {Engine.open}


def test_values_that_only_the_open_engine_knows_are_refused_for_nvidias(tmp_path):
    options = Options(engines=parse_engines("tao"))
    said = r"data_resolution=source: NVIDIA's program does not know it; leave it at input \(profile tao or tao-micro\)$"
    with pytest.raises(UserError, match=said):
        compile_to("facedetect", tmp_path / "f.yaml", "cpu", options)
    said = r"train_width=0.25: NVIDIA's program does not know it; leave it at 1.0 .* or take the open engine for train$"
    with pytest.raises(UserError, match=said):
        compile_to("facedetect", tmp_path / "f.yaml", "cpu", options, {"data_resolution": "input"})
    compile_to("facedetect", tmp_path / "f.yaml", "tao-micro", options)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"retrys": 1}, "did you mean retries"),
        ({"retries": "1"}, "write a whole number"),
        ({"retries": True}, "write a whole number"),
        ({"data_claim": 1}, "write text in quotes"),
        ({"retries": -1}, "must not be below 0"),
    ],
)
def test_wrong_placement_setting_is_one_line(table, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_table(Placement, table, "placement", "gridbox.toml")
    assert "\n" not in str(caught.value)


def test_whole_hours_are_a_number():
    assert read_table(Placement, {"timeout_hours": 2}, "placement", "gridbox.toml") == Placement(timeout_hours=2.0)
