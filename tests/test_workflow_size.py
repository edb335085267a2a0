"""The Argo Workflow of a run fits: at its end, uncompressed, it is below 1 MiB whatever was compiled.

Above that Argo compresses its nodes, and Kubeflow's API gives no details of a run any more; above 1 MiB compressed it
stays Running for ever.
"""

import gzip
import json
from pathlib import Path

import pytest
from workflow_size import ended_workflow

from pipeline.catalogue import WORKFLOWS, definition
from pipeline.compiling import compile_to
from pipeline.images import Images
from pipeline.options import Options, Serving, parse_engines
from pipeline.package import from_documents, read, resources
from pipeline.placement import Placement

RECORDED = Path(__file__).with_name("recordings") / "workflow_size.json.gz"
BUDGET = 1 << 20
# What `kubectl apply` may keep of an object in its annotation.
RESOURCE_BUDGET = 262_144
# Of one artifact: four counts with their names.
METADATA = 120

OPTIONS = {
    "open, serving on CPUs": Options(),
    "open, serving on GPUs": Options(Serving.gpu),
    "NVIDIA's, serving on CPUs": Options(engines=parse_engines("tao")),
    "NVIDIA's, serving on GPUs": Options(Serving.gpu, engines=parse_engines("tao")),
}
DIGEST = "@sha256:" + 64 * "0"
# A cluster that offers all that can be offered, images by digest from a registry of one's own.
RICH = Options(
    placement=Placement(
        cpu_request="1",
        cpu_limit="4",
        memory_request="4Gi",
        memory_limit="8Gi",
        gpu_cpu_request="4",
        gpu_cpu_limit="8",
        gpu_memory_request="16Gi",
        gpu_memory_limit="32Gi",
        image_pull_secret="registry",
        store_endpoint="https://s3.example.com",
        store_region="eu-central-1",
        data_claim="data",
        checkpoint_claim="checkpoints",
        scratch_size="50Gi",
    ),
    images=Images(
        open=f"registry.example.com/vision/gridbox{DIGEST}",
        open_gpu=f"registry.example.com/vision/gridbox-gpu{DIGEST}",
        triton=f"registry.example.com/vision/triton{DIGEST}",
    ),
)


def compiled(folder, workflow, profile, options):
    compile_to(workflow, folder / "pipeline.yaml", profile, options)
    return read(folder / "pipeline.yaml")


def test_emulation_agrees_with_the_recorded_workflow_within_three_percent():
    recorded = json.loads(gzip.decompress(RECORDED.read_bytes()))
    metadata = {tuple(name.split("/")): each for name, each in recorded["metadata"].items()}
    package = from_documents("the recorded run", recorded["spec"], recorded["platform"])
    emulated = ended_workflow(package, recorded["arguments"], metadata, METADATA)
    assert emulated.spec == pytest.approx(recorded["bytes"]["spec"], rel=0.03)
    assert emulated.nodes == pytest.approx(recorded["bytes"]["nodes"], rel=0.03)
    assert emulated.total == pytest.approx(recorded["bytes"]["whole"], rel=0.03)


@pytest.mark.parametrize(
    ("workflow", "profile", "name"),
    [
        *((each, profile, "open, serving on CPUs") for each in WORKFLOWS for profile in definition(each).profiles),
        *((each, "", name) for each in WORKFLOWS for name in OPTIONS),
    ],
)
def test_workflow_at_its_end_is_within_the_budget(workflow, profile, name, tmp_path):
    emulated = ended_workflow(compiled(tmp_path, workflow, profile, OPTIONS[name]), {}, {}, METADATA)
    assert emulated.total < BUDGET, f"{emulated.total:,} bytes, most of them in\n{emulated.largest()}"


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow_of_a_cluster_that_offers_everything_is_within_the_budget(workflow, tmp_path):
    emulated = ended_workflow(compiled(tmp_path, workflow, "", RICH), {}, {}, METADATA)
    assert emulated.total < BUDGET, f"{emulated.total:,} bytes, most of them in\n{emulated.largest()}"


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("name", OPTIONS)
def test_pipeline_version_fits_into_the_annotation_of_kubectl_apply(name, workflow, tmp_path):
    text = resources(compiled(tmp_path, workflow, "", OPTIONS[name]))
    assert len(text.encode()) < RESOURCE_BUDGET
