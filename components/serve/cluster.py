"""The Kubernetes API, as far as a deployment needs it: read one object, apply one; every failure is one line."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.serve.kserve import Document
from components.step import StageError, UserError

FIELD_MANAGER = "gridbox"
# Seconds to connect, and to wait for an answer.
TIMEOUTS = (5.0, 30.0)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, as the API's paths and access rules call it."""

    group: str
    version: str
    kind: str
    resource: str
    namespaced: bool = True


INFERENCE_SERVICE = Kind("serving.kserve.io", "v1beta1", "InferenceService", "inferenceservices")
SERVING_RUNTIME = Kind("serving.kserve.io", "v1alpha1", "ServingRuntime", "servingruntimes")
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
KNATIVE_SERVICE = Kind("serving.knative.dev", "v1", "Service", "services")
POD = Kind("", "v1", "Pod", "pods")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
DEFINITION = Kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", False)


class Changed(StageError):
    """The object was changed concurrently: read it again."""


class Unavailable(StageError):
    """The API server cannot be reached or fails for now."""


class Cluster:
    """A Kubernetes cluster."""

    def __init__(self, context: str = "") -> None:
        """Reads how to reach the cluster; nothing is asked yet.

        Args:
            context: Of the kubeconfig (KUBECONFIG or ~/.kube/config); empty for the current one. A pod without a
                kubeconfig uses its own service account.

        Raises:
            UserError: There is no configuration, or it has no such context.
        """
        try:
            import kubernetes.client
            import kubernetes.dynamic
        except ImportError as error:
            raise UserError("kubernetes is not installed; install gridbox[deploy], or take target manifest") from error

        configuration = _configuration(context)
        self._client = kubernetes.dynamic.DynamicClient(
            kubernetes.client.ApiClient(configuration),
            # The kinds are known. Discovery would ask for more, and keep what it heard in a file of a guessable name.
            discoverer=lambda _client, _cache: None,
        )

    def get(self, kind: Kind, name: str, namespace: str = "") -> Document | None:
        """Returns an object, or None where there is none.

        Raises:
            UserError: The cluster does not know the kind or does not allow this.
            StageError: The API server fails.
        """
        with self._said(kind, "get", name, namespace):
            try:
                resource = self._resource(kind)
                found = self._client.get(resource, name=name, namespace=namespace or None, _request_timeout=TIMEOUTS)
                return dict(found.to_dict())
            except _api_exception() as error:
                if getattr(error, "status", 0) == 404 and _status(error).get("details", {}).get("name") == name:
                    return None
                raise

    def listed(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Document]:
        """Returns the objects of a namespace that have these labels.

        Raises:
            UserError: The cluster does not allow this.
            StageError: The API server fails.
        """
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        with self._said(kind, "list", "", namespace):
            found = self._client.get(
                self._resource(kind), namespace=namespace, label_selector=selector, _request_timeout=TIMEOUTS
            )
        return list(found.to_dict().get("items") or [])

    def rehearse(self, kind: Kind, document: Mapping[str, Any]) -> None:
        """Has the cluster do all that it does to create an object, but for keeping it.

        Raises:
            UserError: The cluster refuses the object, or does not allow this.
            StageError: The API server fails.
        """
        metadata = document["metadata"]
        with self._said(kind, "create", metadata["name"], metadata["namespace"]):
            self._client.create(
                self._resource(kind),
                body=dict(document),
                namespace=metadata["namespace"],
                dry_run="All",
                _request_timeout=TIMEOUTS,
            )

    def apply(self, kind: Kind, document: Mapping[str, Any], force: bool = False) -> Document:
        """Creates or changes an object by server-side apply, as the field manager `gridbox`.

        Args:
            kind: Its kind.
            document: The fields that we want to own. With `metadata.resourceVersion`, only that version is changed.
            force: Takes over fields that others own.

        Returns:
            The object as it is now.

        Raises:
            Changed: It is no longer the version of `metadata.resourceVersion`.
            UserError: Others own fields, the cluster refuses the object, or does not allow this.
            StageError: The API server fails.
        """
        metadata = document["metadata"]
        with self._said(kind, "patch", metadata["name"], metadata["namespace"]):
            applied = self._client.server_side_apply(
                self._resource(kind),
                body=dict(document),
                name=metadata["name"],
                namespace=metadata["namespace"],
                field_manager=FIELD_MANAGER,
                force_conflicts="true" if force else None,
                _request_timeout=TIMEOUTS,
            )
        return dict(applied.to_dict())

    def _resource(self, kind: Kind) -> Any:  # noqa: ANN401 - the client has no types
        from kubernetes.dynamic.resource import Resource

        return Resource(
            prefix="apis" if kind.group else "api",
            group=kind.group,
            api_version=kind.version,
            kind=kind.kind,
            name=kind.resource,
            namespaced=kind.namespaced,
            client=self._client,
        )

    @contextlib.contextmanager
    def _said(self, kind: Kind, verb: str, name: str, namespace: str) -> Iterator[None]:
        import urllib3

        where = (f"{kind.resource}/{name}" if name else kind.resource) + (f" in {namespace}" if namespace else "")
        try:
            yield
        except _api_exception() as error:
            raise _failure(error, kind, verb, namespace, where) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            host = self._client.configuration.host
            raise Unavailable(f"{where}: the API server {host} cannot be reached ({_cause(error)})") from error


def _configuration(context: str) -> Any:  # noqa: ANN401 - the client has no types
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    configuration = Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG") and not context:
            load_incluster_config(client_configuration=configuration)
        else:
            load_kube_config(
                # The client reads the variable when it is imported only.
                config_file=os.environ.get("KUBECONFIG") or "~/.kube/config",
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
    except (ConfigException, OSError) as error:
        raise UserError(
            f"no cluster: {_one_line(error)}; set KUBECONFIG, run in a pod with a service account, or take target "
            "manifest"
        ) from error
    return configuration


def _api_exception() -> type[Exception]:
    from kubernetes.client.exceptions import ApiException

    return ApiException  # type: ignore[no-any-return]


def _failure(error: Any, kind: Kind, verb: str, namespace: str, where: str) -> Exception:  # noqa: ANN401
    """Returns what to raise for an answer that is none of success."""
    status = _status(error)
    said = _one_line(status.get("message") or error.reason or f"status {error.status}")
    if "admission webhook" in said:
        return UserError(f"{where}: the cluster refuses it: {said}")
    if error.status == 401:
        return UserError(
            f"{where}: the API server does not know these credentials (401); renew the token or certificate"
        )
    if error.status == 403 and re.search(r"cannot \w+ resource", said):
        return UserError(f"{where}: not allowed (403); the account lacks the rule {_missing_rule(said, kind, verb)}")
    if error.status == 404 and status.get("details", {}).get("kind") == "namespaces":
        return UserError(f"{where}: there is no namespace {namespace}; create it first")
    if error.status == 404:
        return UserError(
            f"{where}: the cluster knows no {kind.resource} of {kind.group}/{kind.version} (404); install "
            f"{'Knative' if kind is KNATIVE_SERVICE else 'KServe'}"
        )
    if error.status == 409:
        return _conflict(status, said, where)
    if error.status in (400, 403, 422):  # 403 is Pod Security's, a quota's and a service account's, too
        return UserError(f"{where}: the cluster refuses it: {said}")
    if error.status == 0:
        return UserError(f"{where}: no secure connection to the API server: {said}")
    return Unavailable(f"{where}: the API server fails: {error.status} {said}")


def _missing_rule(said: str, kind: Kind, verb: str) -> str:
    """Returns the rule in the words of a Role; creating by apply needs `create` besides `patch`, so ask the message."""
    found = re.search(r"cannot (\w+) resource", said)
    rule = {"apiGroups": [kind.group], "resources": [kind.resource], "verbs": [found[1] if found else verb]}
    return json.dumps(rule)


def _conflict(status: Mapping[str, Any], said: str, where: str) -> Exception:
    owners: dict[str, list[str]] = {}
    for cause in status.get("details", {}).get("causes") or []:
        if cause.get("reason") == "FieldManagerConflict":
            owner = re.search(r'conflict with "([^"]*)"', cause.get("message", ""))
            owners.setdefault(owner[1] if owner else "somebody", []).append(cause.get("field", "?"))
    if not owners:
        return Changed(f"{where}: {said}")
    held = "; ".join(f"{owner} owns {', '.join(fields)}" for owner, fields in sorted(owners.items()))
    return UserError(f"{where}: {held}; have them given up there, or take them over with --force (deploy_force)")


def _status(error: Any) -> dict[str, Any]:  # noqa: ANN401
    """Returns the `Status` object of an answer, empty where it is none."""
    try:
        document = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, BaseException) else error
    return _one_line(str(cause).rpartition(": ")[2] or type(cause).__name__)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
