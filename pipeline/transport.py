"""Values that would not arrive in a pod as written: Kubernetes and Argo read some letters as their own."""

import json
from collections.abc import Mapping

from components.step import UserError

# Seen with Kubernetes 1.36, Argo 4.0 and Kubeflow Pipelines 2.17; kubeflow/pipelines#10370 is about the first.
CHANGED = {
    "$$": "Kubernetes makes it a single $",
    "$(": "Kubernetes puts a variable of the pod in its place, which may be a secret",
    "{{": "Argo reads it as a template of its own",
}


def check_transport(values: Mapping[str, object]) -> None:
    """Refuses values that Kubernetes or Argo would change.

    Args:
        values: By the parameter's name.

    Raises:
        UserError: A value holds `$$`, `$(` or `{{`.
    """
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for letters, why in CHANGED.items():
            if letters in text:
                raise UserError(f"parameter {name}: {letters} would not arrive as written ({why}); do without it")
