"""What is asked of Kubernetes itself: may I, is it there, which nodes, what did a pod print. Nothing is changed."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from components.step import UserError
from pipeline.kubeflow.connection import Document

TIMEOUTS = (5.0, 30.0)
# Asked for so, the server leaves out what a secret holds.
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class Forbidden(UserError):
    """The account lacks a rule."""


class Cluster:
    """A Kubernetes cluster, by the kubeconfig or, in a pod, by its service account."""

    def __init__(self, context: str = "") -> None:
        """Reads how to reach it; nothing is asked yet.

        Args:
            context: Of the kubeconfig; empty for the current one.

        Raises:
            UserError: There is no configuration.
        """
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise UserError("kubernetes is not installed; install gridbox[deploy]") from error
        configuration = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG") and not context:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(
                    # The client reads the variable when it is imported only.
                    config_file=os.environ.get("KUBECONFIG") or "~/.kube/config",
                    context=context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except (config.ConfigException, OSError) as error:
            raise UserError(f"no kubeconfig: {' '.join(str(error).split())}; set KUBECONFIG") from error
        configuration.retries = 1
        self._client = client.ApiClient(configuration)
        self.host = str(configuration.host)

    def find(self, path: str) -> Document | None:
        """Returns what is said about an object (its metadata, never its content), or None where there is none.

        Args:
            path: As `api/v1/namespaces/team/secrets/s3`.
        """
        return self._json("GET", path, accept=_METADATA_ONLY, missing=None)

    def get(self, path: str) -> Document | None:
        """Returns a whole object, or None where there is none."""
        return self._json("GET", path, missing=None)

    def listed(self, path: str, selector: str = "") -> list[Document]:
        """Lists objects.

        Args:
            path: As `api/v1/nodes`.
            selector: Labels that they bear, as `a=b,c=d`.
        """
        found = self._json("GET", path, query={"labelSelector": selector} if selector else {}, missing={})
        return list((found or {}).get("items") or [])

    def allows(self, namespace: str, verb: str, resource: str, group: str = "") -> bool:
        """Asks whether the account may do something (SelfSubjectAccessReview)."""
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})},
        }
        answer = self._json("POST", "apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        return bool(((answer or {}).get("status") or {}).get("allowed"))

    def log(self, namespace: str, pod: str, follow: bool) -> Iterator[str]:
        """Yields the lines of a pod's main container, and with `follow` those to come."""
        path = f"api/v1/namespaces/{namespace}/pods/{pod}/log"
        answer = self._ask("GET", path, {"container": "main", **({"follow": "true"} if follow else {})})
        for line in answer:
            yield line.decode("utf-8", errors="replace").rstrip("\r\n")

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        accept: str = "application/json",
        missing: Document | None = None,
    ) -> Document | None:
        answer = self._ask(method, path, query or {}, body, accept, may_be_missing=True)
        return missing if answer is None else dict(json.loads(answer.data))

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Document | None = None,
        accept: str = "application/json",
        may_be_missing: bool = False,
    ) -> Any:  # noqa: ANN401 - urllib3's answer; the client has no types
        import urllib3
        from kubernetes.client.exceptions import ApiException

        try:
            return self._client.call_api(
                f"/{path}",
                method,
                query_params=list(query.items()),
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(TIMEOUTS[0], None) if query.get("follow") else TIMEOUTS,
                _return_http_data_only=True,
            )
        except ApiException as error:
            if error.status == 404 and may_be_missing:
                return None
            raise _failure(error, path) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = " ".join(str(getattr(error, "reason", None) or error).rpartition(": ")[2].split())
            raise UserError(f"Kubernetes at {self.host} cannot be reached: {cause}; check KUBECONFIG") from error


def _failure(error: Any, path: str) -> UserError:  # noqa: ANN401 - the client has no types
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = str(error.reason)
    said = " ".join(said.split())
    if error.status == 401:
        return UserError("Kubernetes does not know these credentials (401); renew those of the kubeconfig")
    if error.status == 403:
        return Forbidden(f"Kubernetes does not allow this (403): {said}")
    return UserError(f"Kubernetes: {path}: {error.status} {said}")
