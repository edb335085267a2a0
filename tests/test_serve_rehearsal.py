"""A deployment tried by dry run: what the cluster would refuse after hours is told before."""

import kserve_stub
import pytest
from deployments import model, stub_cluster

from components.serve.access import DEPLOY_RULES
from components.serve.cluster import Cluster
from components.serve.kserve import Mode
from components.serve.rehearsal import rehearse
from components.step import UserError


@pytest.fixture
def kube(tmp_path, monkeypatch):
    with stub_cluster(tmp_path, monkeypatch) as stub:
        yield stub


def test_runtime_service_and_the_pod_that_kserve_will_make_are_tried_and_nothing_is_kept(kube):
    kube.rules = DEPLOY_RULES
    rehearse(Cluster(), model("run-1"))
    assert [each["kind"] for each in kube.rehearsed] == ["ServingRuntime", "InferenceService", "Pod"]
    assert not kube.applied
    pod = kube.rehearsed[2]
    # By these KServe's webhook puts in the container that fetches the model.
    assert pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] == "facenet"
    assert pod["metadata"]["annotations"][kserve_stub.SOURCE] == "s3://models/facenet/versions/run-1/repository/"
    assert pod["spec"]["serviceAccountName"] == "gridbox-serving"
    (container,) = pod["spec"]["containers"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "4Gi"}


def test_knative_makes_pods_of_its_own(kube):
    rehearse(Cluster(), model("run-1", mode=Mode.knative))
    assert [each["kind"] for each in kube.rehearsed] == ["ServingRuntime", "InferenceService"]


@pytest.mark.parametrize(
    "why_not",
    [
        kserve_stub.POD_SECURITY,
        kserve_stub.QUOTA,
        'pods "gridbox-rehearsal" is forbidden: error looking up service account face/gridbox-serving: serviceaccount '
        '"gridbox-serving" not found',
    ],
)
def test_refusal_of_the_pod_is_one_line(kube, why_not):
    kube.admission = lambda _, new: why_not if new["kind"] == "Pod" else None
    with pytest.raises(UserError) as refusal:
        rehearse(Cluster(), model("run-1"))
    assert str(refusal.value) == (
        "face: facenet could not be deployed: pods/gridbox-rehearsal in face: the cluster refuses it: " + why_not
    )


def test_cluster_without_kserve_is_told(kube):
    kube.groups.discard("serving.kserve.io")
    with pytest.raises(UserError, match=r"face: facenet could not be deployed: .*install KServe"):
        rehearse(Cluster(), model("run-1"))


def test_missing_right_is_named(kube):
    kube.rules = [rule for rule in DEPLOY_RULES if rule["resources"] != ["pods"]]
    with pytest.raises(UserError, match=r'the account lacks the rule \{"apiGroups": \[""\], "resources": \["pods"\]'):
        rehearse(Cluster(), model("run-1"))
