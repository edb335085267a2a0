"""Waiting for a deployment, replayed on what a real KServe 0.20 said through eight changes (`recordings/`)."""

import functools
import gzip
from pathlib import Path

import kserve_stub
import pytest

from components.serve import waiting
from components.serve.cluster import INFERENCE_SERVICE
from components.serve.pods import troubles
from components.serve.waiting import View, wait
from components.step import StageError

RECORDING = Path(__file__).parent / "recordings/kserve_deployments.jsonl.gz"


@functools.cache
def moments():
    """All that was recorded: (seconds, objects by kind and name)."""
    with gzip.open(RECORDING, "rt", encoding="utf-8") as lines:
        return tuple(kserve_stub.recorded(lines))


class Replay:
    """The cluster as it was, and a clock that moves on when somebody sleeps."""

    def __init__(self, start):
        self.now = start

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def objects(self):
        return [objects for at, objects in moments() if at <= self.now][-1]

    def get(self, kind, name, _namespace):
        return self.objects().get(f"{kind.kind}/{name}")

    def listed(self, kind, _namespace, _labels):
        return [each for name, each in self.objects().items() if name.startswith(f"{kind.kind}/facenet-")]


def replay(monkeypatch, start, timeout=200):
    cluster = Replay(start)
    monkeypatch.setattr(waiting, "time", cluster)
    applied = cluster.get(INFERENCE_SERVICE, "facenet", "gridbox")
    try:
        wait(cluster, applied, timeout, interval=1.0)
    except StageError as error:
        return cluster.now, str(error)
    return cluster.now, ""


@pytest.mark.parametrize(
    ("applied", "ready", "gone"),
    [
        (278.3, 281.42, 281.42),  # the first version
        (644.37, 646.58, 650.77),  # a second one, all at once; then the former pod is gone
        (714.48, 717.56, 719.72),  # the first again
        (792.54, 840.05, 842.1),  # a server that takes 45 s to start, while Ready is True
        (919.52, 967.22, 967.22),  # going back after an image that cannot be pulled; the former pod serves the same
        (1154.03, 1161.1, 1161.1),  # a canary: the pods beside it go on
        (1274.9, 1274.9, 1276.88),  # and without it
    ],
)
def test_wait_ends_when_the_new_pods_serve_and_the_former_ones_are_gone(monkeypatch, applied, ready, gone):
    ended, failure = replay(monkeypatch, applied)
    assert not failure
    assert ready <= gone <= ended < gone + 1


def test_image_that_does_not_exist_ends_the_wait_when_the_kubelet_says_so(monkeypatch):
    ended, failure = replay(monkeypatch, 885.69)
    assert 897.71 <= ended < 898.71
    assert failure.startswith(
        "inferenceservices/facenet in gridbox: facenet-predictor-78584d4688-gm6v6, kserve-container: ErrImagePull: "
        'the image cannot be pulled: failed to pull and unpack image "ghcr.io/gridbox/nope:1"'
    )
    assert "\n" not in failure


def test_container_that_crashes_is_certain_when_the_kubelet_backs_off():
    seen = []
    for at, objects in moments():
        for name, pod in objects.items():
            if name.startswith("Pod/gridbox-triton-59464c77c4-gx64k"):
                seen += [(at, trouble.text, trouble.looks) for trouble in troubles(pod)]
    assert seen[0] == (958.29, "gridbox-triton-59464c77c4-gx64k, triton: CrashLoopBackOff: exit code 1", 1)


def test_pod_that_is_told_to_end_is_no_trouble():
    objects = dict(moments())[919.52]
    service = objects["InferenceService/facenet"]
    for pod in (each for name, each in objects.items() if name.startswith("Pod/facenet-predictor-6ffc4df85f")):
        crashing = {"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {}}
        pod["status"]["containerStatuses"] = [crashing]
        assert len(list(View(service, None, (pod,)).troubles())) == 1
        pod["metadata"]["deletionTimestamp"] = "2026-12-01T00:00:00Z"
        assert not list(View(service, None, (pod,)).troubles())


READY = [
    (281.42, 644.37), (646.58, 714.48), (717.56, 792.54), (840.05, 885.69), (967.22, 1154.03), (1161.1, 1273.86),
    (1274.9, 9999.0),
]  # fmt: skip


def test_at_each_recorded_moment_the_rollout_is_finished_or_not_though_ready_is_true_throughout():
    for at, objects in moments():
        service = objects["InferenceService/facenet"]
        cluster = Replay(at)
        view = waiting.look(cluster, {**service, "status": service["status"] or {}})
        assert isinstance(view, View)
        assert view.is_ready == any(first <= at < last for first, last in READY), at
        conditions = {each["type"]: each["status"] for each in service["status"].get("conditions", [])}
        assert at < 281.42 or conditions["Ready"] == "True"


def test_stub_derives_the_conditions_that_kserve_derived_from_the_same_deployments():
    compared = set()
    for at, objects in moments():
        service, deployment = objects["InferenceService/facenet"], objects["Deployment/facenet-predictor"]
        (told,) = [
            (each["status"], each["reason"])
            for each in service["status"].get("conditions", [])
            if each["type"] == "PredictorReady"
        ] or [None]
        expected = kserve_stub.predictor_ready(deployment["status"]["conditions"])
        if told is not None and at not in (646.58,):  # seen between the two writes
            assert told == expected, at
            compared.add(told)
    assert compared == {
        ("False", "MinimumReplicasUnavailable"),
        ("True", "MinimumReplicasAvailable"),
        ("True", "NewReplicaSetAvailable"),
    }


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ([], ("False", "")),
        ([("Progressing", "True", "ReplicaSetUpdated")], ("Unknown", "ReplicaSetUpdated")),
        (
            [("Available", "True", "MinimumReplicasAvailable"), ("Progressing", "False", "ProgressDeadlineExceeded")],
            ("False", "ProgressDeadlineExceeded"),
        ),
        (
            [("Available", "True", "MinimumReplicasAvailable"), ("ReplicaFailure", "True", "FailedCreate")],
            ("False", "FailedCreate"),
        ),
    ],
)
def test_stub_derives_the_rest_as_kserves_source_does(conditions, told):
    given = [{"type": kind, "status": status, "reason": why, "message": "m"} for kind, status, why in conditions]
    assert kserve_stub.predictor_ready(given) == told
