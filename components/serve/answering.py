"""Whether the model that answers at an address is the one that was deployed."""

import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from components.serve.config import DIGEST_PARAMETER
from components.serve.kserve import HTTP_PORT, Mode, Protocol, Service
from components.step import StageError

TIMEOUT = 5.0
# A name or a route may be a moment younger than the pods behind it.
ATTEMPTS, PAUSE = 4, 2.0


def question(url: str, service: Service, gateway: str = "") -> urllib.request.Request | None:
    """Returns what to ask an address for the model's configuration; None where it speaks gRPC alone.

    Args:
        url: The service's address.
        service: What it serves.
        gateway: Host and port of an ingress gateway, for clients that cannot resolve the service's name.
    """
    parts = urlsplit(url)
    host = gateway or parts.netloc
    if service.protocol is Protocol.grpc:
        if service.mode is Mode.knative or gateway or parts.port:
            return None
        host = f"{parts.hostname}:{HTTP_PORT}"  # beside gRPC, which has the service's first port
    target = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/v2/models/{service.model_name}/config"
    return urllib.request.Request(target, headers={"Host": parts.netloc})


def verify(request: urllib.request.Request | None, digest: str, pause: float) -> str:
    """Asks which model answers.

    Args:
        request: See `question`.
        digest: What the model must say of itself; empty where it was published by an older release.
        pause: Seconds between two tries.

    Returns:
        What was found, in one line: the model's proof, or why the pods are relied on.

    Raises:
        StageError: Another model answers.
    """
    if not digest:
        return "the model was published by an older release and does not tell its digest; relying on its pods"
    if request is None:
        return "the address speaks gRPC alone, so the model's digest was not asked for; relying on its pods"
    found, why = "", ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                parameters = json.loads(answer.read()).get("parameters", {})
            found = str(json.loads(parameters.get(DIGEST_PARAMETER, {}).get("string_value", '""')))
            if found == digest:
                return f"the model that answers is this one (digest {digest[:12]})"
            why = ""
        except (OSError, ValueError) as error:
            why = str(getattr(error, "reason", "") or error)
    if why:
        return f"{request.full_url} cannot be asked from here ({why}); relying on its pods"
    raise StageError(
        f"{request.full_url}: the model that answers is not the one that was deployed: its digest is "
        f"{found[:12] or 'not told'}, {digest[:12]} was deployed"
    )
