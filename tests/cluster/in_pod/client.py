"""Runs in the bench: asks a served model all the time, and writes one line of JSON a request.

python3 - URL MODEL OUT: until the file OUT.stop appears. Each request has a connection of its own, so that none is
saved by one that stood before; over it first the configuration is asked for, whose digest tells which version answers.
"""

import http.client
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

PAUSE, PATIENCE = 0.1, 10.0


def body():
    """Returns an inference request: one picture of noise, as JPEG."""
    picture = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)
    data = cv2.imencode(".jpg", picture)[1].ravel().tolist()
    tensor = {"name": "input_image_data", "shape": [1, len(data)], "datatype": "UINT8", "data": data}
    return json.dumps({"inputs": [tensor]})


def exchange(connection, method, path, content=None):
    """Makes one request and returns its JSON."""
    connection.request(method, path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise OSError(f"{answer.status} {text[:200]!r}")
    return json.loads(text)


def ask(host, port, model, content):
    """Returns the digest of the version that has answered."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        config = exchange(connection, "GET", f"/v2/models/{model}/config")
        exchange(connection, "POST", f"/v2/models/{model}/infer", content)
    finally:
        connection.close()
    return json.loads(config["parameters"]["gridbox_digest"]["string_value"])


def main(url, model, out):
    """Asks until it is told to stop."""
    parts, content, stop = urlsplit(url), body(), Path(out + ".stop")
    with Path(out).open("w", buffering=1) as lines:
        while not stop.exists():
            line = {"start": time.time(), "digest": "", "error": ""}
            try:
                line["digest"] = ask(parts.hostname, parts.port or 80, model, content)
            except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
                line["error"] = f"{type(error).__name__}: {error}"
            line["end"] = time.time()
            lines.write(json.dumps(line) + "\n")
            time.sleep(PAUSE)


main(*sys.argv[1:])
