"""What the suite is told about the cluster beyond `gridbox.toml` and the kubeconfig: variables, all optional."""

import os
from dataclasses import dataclass, field, fields

from components.step import UserError

PREFIX = "TEST_CLUSTER_"


def _variable(default, help_text):
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field a variable: `namespace` is TEST_CLUSTER_NAMESPACE."""

    profile: str = _variable("micro", "Whose values the workflow runs with.")
    change: str = _variable("retrain_epochs=3", "The parameter by which version 2 differs from version 1.")
    namespace: str = _variable("gridbox-test", "Where models are served; made by the suite, and removed at its end.")
    store: str = _variable("s3://mlpipeline/gridbox-test", "Below which models are published; removed at the end.")
    backend: str = _variable("onnxruntime", "What runs the network in Triton: onnxruntime or python.")
    model: str = _variable("facenet_ensemble", "The model that clients ask.")
    cpu: str = _variable("1", "Cores that a serving pod requests.")
    memory: str = _variable("2Gi", "Memory that a serving pod requests.")
    storage_class: str = _variable("", "Of the claim for checkpoints; empty for the cluster's default.")
    patience: str = _variable("1", "A factor on every time-out, for a slow cluster.")
    folder: str = _variable("build/test-cluster", "For files, and for what a later call goes on from.")
    keep: str = _variable("", "Anything: leave everything in place, so that the next call goes on from there.")

    def seconds(self, usual):
        """Returns how long something may take."""
        return usual * float(self.patience)


def load():
    """Reads the variables."""
    known = {PREFIX + each.name.upper(): each.name for each in fields(Settings)}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such setting; there are {', '.join(known)}")
    return Settings(**{name: os.environ[variable] for variable, name in known.items() if variable in os.environ})
