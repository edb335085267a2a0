"""Whether a cluster's KServe can run a canary in mode Standard: where it cannot, it says nothing."""

import json
from collections.abc import Mapping
from typing import Any

from components.serve.access import CONFIGURATION_NAME, DEFINITION_NAME
from components.serve.cluster import CONFIG_MAP, DEFINITION, INFERENCE_SERVICE, Cluster
from components.step import UserError

# Where KServe is installed by default.
CONFIGURATION_NAMESPACE = "kserve"
_WITHOUT = "deploy without (deploy_canary_percent 0), or in mode Knative"


def check_canaries(cluster: Cluster) -> None:
    """Refuses a canary that KServe would give all the traffic, or none.

    Raises:
        UserError: The definition lacks the field, which would be dropped, or shares need the Gateway API, which is off.
        StageError: The API server fails.
    """
    definition = cluster.get(DEFINITION, DEFINITION_NAME)
    if definition is None:
        raise UserError(f"the cluster has no {DEFINITION_NAME}; install KServe")
    if not any(map(_knows_canaries, definition["spec"]["versions"])):
        raise UserError(
            "a canary in mode Standard needs spec.canary (KServe 0.20), which this cluster's InferenceService does not "
            f"have and would drop, giving all traffic to the canary; {_WITHOUT}"
        )
    # Weights exist for routes of the Gateway API only (KServe v0.20, `httproute_reconciler.go`).
    where = f"configmaps/{CONFIGURATION_NAME} in {CONFIGURATION_NAMESPACE}"
    found = cluster.get(CONFIG_MAP, CONFIGURATION_NAME, CONFIGURATION_NAMESPACE)
    if found is None:
        raise UserError(f"{where}: there is none, so nobody knows whether a canary would get its share; {_WITHOUT}")
    try:
        is_on = bool(json.loads(found["data"]["ingress"]).get("enableGatewayApi"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its entry ingress is not readable JSON ({error!r}); {_WITHOUT}") from error
    if not is_on:
        raise UserError(
            f"{where}: enableGatewayApi is off, and without the Gateway API a canary in mode Standard gets no traffic; "
            f"have it set by whoever installed KServe, {_WITHOUT}"
        )


def _knows_canaries(version: Mapping[str, Any]) -> bool:
    properties = version.get("schema", {}).get("openAPIV3Schema", {}).get("properties", {})
    is_ours = version["name"] == INFERENCE_SERVICE.version
    return is_ours and "canary" in properties.get("spec", {}).get("properties", {})
