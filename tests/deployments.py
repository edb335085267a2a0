"""Deployments of one service to the stub of a cluster, as tests make them."""

import contextlib

import kube_stub
from test_serve_kserve import service

from components import publication
from components.measure.metric import AVERAGE_PRECISION, Score
from components.objects import open_objects
from components.serve.cluster import Cluster
from components.serve.deploy import Gate, Rollout, deploy_kserve, promote
from components.serve.gate import ScoredModel
from components.serve.ledger import read_ledger

QUICK = Rollout(timeout=5, interval=0.001)
CANARY = Rollout(percent=10, timeout=5, interval=0.001)
DATA = "e" * 64


@contextlib.contextmanager
def stub_cluster(tmp_path, monkeypatch):
    """A cluster in the kubeconfig, and a folder in the place of its object store."""

    def opened(base, patience):
        return open_objects(str(tmp_path / "s3") if base.startswith("s3://") else base, patience)

    monkeypatch.setattr(publication, "open_objects", opened)
    with kube_stub.Kube() as stub:
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))
        yield stub


def model(run, value=0.8, **changes):
    """A service of a run with a URI of its own."""
    uri = f"s3://models/facenet/versions/{run}/repository/"
    return service(**{"storage_uri": uri, "run_id": run, "score": value, "data_digest": DATA, **changes})


def scored(model, value, data, evidence=None):
    return ScoredModel(model, Score(AVERAGE_PRECISION, value), data, evidence)


def candidate(of):
    return ScoredModel("the new model", of.score, of.data_digest)


def put_up(run, rollout=QUICK, gate=None, value=0.8, **changes):
    of = model(run, value, **changes)
    return deploy_kserve(Cluster(), of, candidate(of), gate or Gate(), rollout)


def promoted(run, rollout=QUICK, value=0.8, **changes):
    put_up(run, rollout, value=value, **changes)
    judge(run, value)


def measured(value, data=DATA):
    return scored("the endpoint", value, data)


def judge(run, value=0.8, rollout=QUICK, gate=None):
    return promote(Cluster(), "facenet", "face", run, measured(value), gate or Gate(), rollout)


def ledger():
    return read_ledger(Cluster(), "facenet", "face")


def served(kube):
    """The run of the predictor, of the canary, and the percentage."""
    spec = kube.service()["spec"]
    canary = spec.get("canary", [{}])[0].get("predictor", {}).get("annotations", {}).get("gridbox/run-id")
    return spec["predictor"]["annotations"].get("gridbox/run-id"), canary, spec["predictor"].get("canaryTrafficPercent")
