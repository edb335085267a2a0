"""What keeps a pod from serving, read from its status (Kubernetes 1.36: `pkg/kubelet/images`, `kuberuntime`)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Looks in a row that make something certain which may pass by itself: a minute of them, or of pulling an image, which
# the kubelet tries again and again itself, some.
WHILE, SOME = 12, 4
# An image that cannot be had, in the words of registries and of the name service; other words may be a short outage.
_FINAL = re.compile(r"not found|no such host|manifest unknown|denied|unauthorized|forbidden|invalid reference", re.I)
_PULLING = ("ErrImagePull", "ImagePullBackOff")
_STARTING = (
    "CrashLoopBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something in the way.

    Attributes:
        about: What is in trouble and how; the text of the same trouble may differ from look to look.
        text: What it is, in one line.
        looks: How many looks in a row must see it before it is certain; 0: it may pass, however long it lasts.
    """

    about: str
    text: str
    looks: int


def troubles(pod: Mapping[str, Any]) -> Iterator[Trouble]:
    """Yields what keeps a pod from serving."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Trouble(name, _line(name, condition.get("reason"), condition.get("message")), 0)
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, who = waiting.get("reason", ""), f"{name}, {container['name']}"
        if reason in _PULLING:
            message = waiting.get("message", "")
            said = message if container["image"] in message else f"{container['image']}: {message}"
            told = _line(who, f"{reason}: the image cannot be pulled", said)
            yield Trouble(f"{who}, image", told, 1 if _FINAL.search(message) else SOME)
        elif reason in _STARTING:
            told = _line(who, reason, _last_words(container) or waiting.get("message"))
            yield Trouble(f"{who}, {reason}", told, 1)


def _last_words(container: Mapping[str, Any]) -> str:
    """How a container ended last: exit code, OOMKilled, and the end of its log where its policy asks for that."""
    ended = container.get("lastState", {}).get("terminated") or {}
    if not ended:
        return ""
    why, code = ended.get("reason", ""), f"exit code {ended.get('exitCode')}"
    if why == "OOMKilled":  # what it wrote before has nothing to do with it
        return f"{code} ({why}): it needs more memory than its limit"
    # The end of a log is told, since that is where programs say why they end.
    lines = ended.get("message", "").strip().splitlines()[-3:]
    return ": ".join([code, *filter(None, [" ".join(" ".join(lines).split())[-400:]])])


def _line(*parts: str | None) -> str:
    return ": ".join(" ".join(part.split()) for part in parts if part)
