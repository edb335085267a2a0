"""A pod beside the runs' own: the pipeline's image, account and secret, from which commands run inside the cluster.

A store that has a name inside the cluster only, and a served model, can be reached from there on any cluster.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).with_name("in_pod")
NAME = "gridbox-test-bench"
LABELS = {"app.kubernetes.io/part-of": "gridbox-test"}


@dataclass(frozen=True)
class Answers:
    """What the client was answered: one mapping a request, with `start`, `end`, `digest` and `error`."""

    requests: list

    @property
    def lost(self):
        """Requests without an answer."""
        return [each for each in self.requests if each["error"]]

    def digests(self, after=0.0):
        """Returns the digests of the answers to requests that began later than a time."""
        return {each["digest"] for each in self.requests if each["start"] > after and not each["error"]}

    def first(self, digest):
        """Returns when this version first answered."""
        return min(each["end"] for each in self.requests if each["digest"] == digest)


class Client:
    """A client in the bench that asks all the time while the `with` lasts."""

    def __init__(self, bench, url, model):
        self._bench, self._url, self._model = bench, url, model
        self._file = f"/tmp/client-{uuid.uuid4().hex[:8]}"
        self.answers = None

    def __enter__(self):
        script = f"{self._file}.py"
        self._bench.shell(f"cat > {script}", stdin=(SCRIPTS / "client.py").read_text()).ok()
        command = f"python3 {script} {self._url} {self._model} {self._file}"
        self._bench.shell(f"setsid {command} >{self._file}.log 2>&1 </dev/null & sleep 2; test -s {self._file}").ok()
        return self

    def now(self):
        """Returns what it was answered so far."""
        lines = self._bench.shell(f"cat {self._file}").ok().out.splitlines()
        return Answers([json.loads(line) for line in lines if line.endswith("}")])

    def __exit__(self, *_exception):
        self._bench.shell(f"touch {self._file}.stop; sleep 1")
        self.answers = self.now()


class Bench:
    """The pod; use it as a context."""

    def __init__(self, kubectl, namespace, account, image, placement):
        self._kubectl, self._namespace = kubectl, namespace
        self._pod = _pod(namespace, account, image, placement)

    def __enter__(self):
        self.remove()
        self._kubectl.apply(self._pod)
        self._kubectl("-n", self._namespace, "wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=300s",
                      timeout=310).ok()  # fmt: skip
        return self

    def __exit__(self, *_exception):
        self.remove()

    def remove(self):
        """Removes the pod."""
        self._kubectl("-n", self._namespace, "delete", f"pod/{NAME}", "--ignore-not-found", "--grace-period=0",
                      "--force", timeout=120)  # fmt: skip

    def shell(self, script, stdin=None, timeout=60.0):
        """Runs a line of shell."""
        words = ("-n", self._namespace, "exec", "-i", NAME, "--", "sh", "-c", script)
        return self._kubectl(*words, stdin=stdin or "", timeout=timeout)

    def timed(self, command, timeout):
        """Runs a command; returns it and when it ended by the bench's clock, which is the client's."""
        ran = self.shell(f"{command}; code=$?; date +%s.%N; exit $code", timeout=timeout)
        return ran, float(ran.out.split()[-1])

    def script(self, name, *arguments, timeout=120.0):
        """Runs one of the scripts of `in_pod` and returns the last line that it prints, as JSON."""
        words = " ".join(map(str, arguments))
        ran = self.shell(f"python3 - {words}", stdin=(SCRIPTS / f"{name}.py").read_text(), timeout=timeout).ok()
        return json.loads(ran.out.splitlines()[-1])

    def client(self, url, model):
        """Returns a client of a served model."""
        return Client(self, url, model)


def _pod(namespace, account, image, placement):
    """Returns the pod as Kubeflow makes those of the stages: their image, user, account and secret."""
    environment = [{"name": "AWS_ENDPOINT_URL", "value": placement.store_endpoint}] if placement.store_endpoint else []
    environment += [{"name": "AWS_REGION", "value": placement.store_region}] if placement.store_region else []
    pull = [{"name": placement.image_pull_secret}] if placement.image_pull_secret else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace, "labels": LABELS},
        "spec": {
            "serviceAccountName": account,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "imagePullSecrets": pull,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "bench",
                    "image": image,
                    "command": ["sleep", "86400"],
                    "env": environment,
                    "envFrom": [{"secretRef": {"name": placement.store_secret}}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
