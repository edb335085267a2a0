"""What the deploying account may do; `manifests/` grants exactly this, and tests record the calls that are made."""

from collections.abc import Mapping

DEFINITION_NAME = "inferenceservices.serving.kserve.io"
CONFIGURATION_NAME = "inferenceservice-config"
Rules = tuple[Mapping[str, list[str]], ...]
DEPLOY_RULES: Rules = (
    {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["create", "get", "patch"]},
    {"apiGroups": ["serving.kserve.io"], "resources": ["servingruntimes"], "verbs": ["create", "patch"]},
    # What KServe makes of it, and its pods: whether the new version serves, or why it does not.
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]},
    {"apiGroups": ["serving.knative.dev"], "resources": ["services"], "verbs": ["get"]},
    # Pods are created by dry run only; the right to create InferenceServices implies any pod anyway.
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "list"]},
    # The ledger of what was served.
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "patch"]},
)
# Only for a canary in mode Standard: whether the cluster's KServe supports it.
DEPLOY_CLUSTER_RULES: Rules = (
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "resourceNames": [DEFINITION_NAME],
        "verbs": ["get"],
    },
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CONFIGURATION_NAME], "verbs": ["get"]},
)
