"""Kubernetes' own rules for what stands in its documents, which it tells only when they are applied, at a run's end.

After `IsDNS1123Label`, `IsQualifiedName`, `IsValidLabelValue` and `ValidateTolerations` in Kubernetes' source.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# By KServe's webhook from a letter on. It makes Services of it: `NAME-v12345678-predictor` is a canary's, 63 letters.
_SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,41}[a-z0-9])?")
_LONGEST_DOMAIN = 253
_OPERATORS, _EFFECTS = ("Equal", "Exists"), ("NoSchedule", "PreferNoSchedule", "NoExecute")
_FIELDS = {"key", "operator", "value", "effect", "tolerationSeconds"}


def service_name_problems(name: str) -> Iterator[str]:
    """Yields why this cannot be the name of an InferenceService."""
    if not _SERVICE.fullmatch(name):
        yield f"name {name!r} must be at most 43 lower-case letters, digits and '-', from a letter on"


def namespace_problems(name: str) -> Iterator[str]:
    """Yields why this cannot be the name of a namespace."""
    if not _LABEL.fullmatch(name):
        yield f"namespace {name!r} must be at most 63 lower-case letters, digits and '-'"


def account_problems(name: str) -> Iterator[str]:
    """Yields why this cannot be the name of a service account."""
    if not _DOMAIN.fullmatch(name) or len(name) > _LONGEST_DOMAIN:
        yield f"service account {name!r} must be lower-case letters, digits, '-' and '.'"


def gateway_problems(gateway: str) -> Iterator[str]:
    """Yields why this cannot be an ingress gateway to connect to."""
    if re.search(r"[/@?#\s]", gateway):
        yield f"gateway {gateway!r} must be host:port"


def selector_problems(labels: Mapping[str, Any]) -> Iterator[str]:
    """Yields why these labels can be those of no node."""
    for key, value in labels.items():
        if not _is_key(key):
            yield f"label {key!r} is no name of a label"
        if not isinstance(value, str) or (value and not _WORD.fullmatch(value)):
            yield f"label {key}: {value!r} must be a text of at most 63 letters, digits, '-', '_' and '.'"


def toleration_problems(tolerations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what is wrong with tolerations."""
    for each in tolerations:
        key, operator = each.get("key", ""), each.get("operator", "Equal")
        shown = f"toleration of {key!r}"
        if unknown := sorted(set(each) - _FIELDS):
            yield f"{shown}: {', '.join(unknown)} is none of {', '.join(sorted(_FIELDS))}"
        if operator not in _OPERATORS:
            yield f"{shown}: operator {operator!r} must be {' or '.join(_OPERATORS)}"
        if each.get("effect", "") not in ("", *_EFFECTS):
            yield f"{shown}: effect {each['effect']!r} must be {', '.join(_EFFECTS)} or left out"
        if key and not _is_key(key):
            yield f"{shown}: the key is no name of a taint"
        if not key and operator != "Exists":
            yield f"{shown}: without a key the operator must be Exists"
        value = each.get("value", "")
        if operator == "Exists" and value:
            yield f"{shown}: with operator Exists there is no value"
        if not isinstance(value, str) or (value and not _WORD.fullmatch(value)):
            yield f"{shown}: value {value!r} must be a text of at most 63 letters, digits, '-', '_' and '.'"
        if "tolerationSeconds" in each and each.get("effect") != "NoExecute":
            yield f"{shown}: tolerationSeconds needs effect NoExecute"


def _is_key(key: object) -> bool:
    """Whether it is a qualified name: `gpu`, or with a domain in front `nvidia.com/gpu`."""
    if not isinstance(key, str):
        return False
    domain, slash, name = key.rpartition("/")
    return bool(_WORD.fullmatch(name)) and (not slash or bool(_DOMAIN.fullmatch(domain)))
