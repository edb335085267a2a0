"""Names, labels and tolerations that Kubernetes would refuse at a run's end are refused before its start."""

import pytest
from test_serve_kserve import service

from components.serve.kserve import inference_service
from components.step import UserError
from pipeline.compiling import check_arguments

# Parameter of the pipeline, field of the service, a value, and what is said of it; nothing where it is right.
CASES = [
    ("deploy_name", "name", "9face", "from a letter on"),
    ("deploy_name", "name", "Face", "lower-case"),
    ("deploy_name", "name", "face-", "lower-case"),
    ("deploy_name", "name", "f" * 44, "at most 43"),
    ("deploy_name", "name", "f" * 43, ""),
    ("deploy_namespace", "namespace", "team a", "namespace 'team a'"),
    ("deploy_namespace", "namespace", "9teams", ""),
    ("deploy_namespace", "namespace", "n" * 64, "at most 63"),
    ("deploy_service_account", "service_account", "Serving", "service account 'Serving'"),
    ("deploy_service_account", "service_account", "serving.of.team-a", ""),
    ("deploy_node_selector", "node_selector", {"gpu": "Tesla T4"}, "label gpu: 'Tesla T4'"),
    ("deploy_node_selector", "node_selector", {"a b": "x"}, "label 'a b' is no name"),
    ("deploy_node_selector", "node_selector", {"nvidia.com/gpu.product": "NVIDIA-A10", "spot": ""}, ""),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "operator": "exists"}], "operator 'exists' must be Equal or"),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "effect": "Noschedule"}], "effect 'Noschedule' must be"),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "Operator": "Exists"}], "Operator is none of effect, key"),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "operator": "Exists", "value": "a"}], "there is no value"),
    ("deploy_tolerations", "tolerations", [{"operator": "Equal", "value": "a"}], "without a key"),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "value": True}], "value True must be a text"),
    ("deploy_tolerations", "tolerations", [{"key": 5}], "no name of a taint"),
    ("deploy_tolerations", "tolerations", [{"key": "gpu", "tolerationSeconds": 5}], "needs effect NoExecute"),
    ("deploy_tolerations", "tolerations", [{"operator": "Exists"}], ""),
    ("deploy_tolerations", "tolerations", [{"key": "nvidia.com/gpu", "value": "a", "effect": "NoSchedule"}], ""),
]


def refusal(work, *arguments):
    try:
        work(*arguments)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("parameter", "field", "value", "said"), CASES)
def test_one_rule_holds_for_the_pipelines_parameters_and_for_serve(parameter, field, value, said):
    of_pipeline = refusal(check_arguments, "facedetect", {parameter: value})
    given = tuple(value) if field == "tolerations" else value
    of_serve = refusal(lambda: inference_service(service(**{field: given})))
    assert bool(of_pipeline) == bool(of_serve) == bool(said)
    assert said in of_pipeline
    assert said in of_serve
    assert "\n" not in of_pipeline + of_serve


@pytest.mark.parametrize("parameter", ["pool_cpu_tolerations", "pool_gpu_tolerations"])
def test_so_it_does_for_the_pools_of_the_stages(parameter):
    assert "must be Equal or Exists" in refusal(
        check_arguments, "facedetect", {parameter: [{"key": "gpu", "operator": "exists"}]}
    )


@pytest.mark.parametrize("parameter", ["pool_cpu_node_selector", "pool_gpu_node_selector"])
def test_and_for_their_nodes(parameter):
    assert "label pool" in refusal(check_arguments, "facedetect", {parameter: {"pool": "a pool"}})
