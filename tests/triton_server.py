"""The real Triton server for tests: where it is missing they are skipped."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from components.serve import wheel
from components.serve.server import LocalServer
from components.step import UserError


def _missing():
    """Returns why there is no Triton here; empty if there is."""
    try:
        wheel.server_program()
        with tempfile.TemporaryDirectory() as folder:
            wheel.write_backends(Path(folder))
    except UserError as error:
        return str(error)
    return ""


needs_triton = pytest.mark.skipif(bool(_missing()), reason=_missing())
OUTPUTS = ("true_boxes", "true_proba", "true_class", "num_detections", "true_image_size", "image_error")


class Client:
    """`tritonclient` over HTTP, with whole requests: several images in one, or what a client gets wrong."""

    def __init__(self, server: LocalServer):
        import tritonclient.http

        self._module = tritonclient.http
        self.raw = tritonclient.http.InferenceServerClient(
            server.http_url.removeprefix("http://"), concurrency=32, network_timeout=60, connection_timeout=60
        )

    def start(self, *images, model="facenet_ensemble", parameters=None):
        """Sends one request with these encoded images, the shorter ones filled up with zeros."""
        rows = np.zeros((len(images), max(map(len, images))), np.uint8)
        for row, image in zip(rows, images, strict=True):
            row[: len(image)] = np.frombuffer(image, np.uint8)
        return self.start_tensor(rows, "UINT8", model=model, parameters=parameters)

    def start_tensor(self, array, kind, name="input_image_data", model="facenet_ensemble", parameters=None):
        tensor = self._module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        return self.raw.async_infer(model, [tensor], parameters=parameters or None)

    def ask(self, *images):
        """Returns the outputs by name."""
        result = self.start(*images).get_result()
        return {name: result.as_numpy(name) for name in OUTPUTS}

    def detections(self, *images):
        """Returns, for each image, [K, 6] box, score and class."""
        outputs = self.ask(*images)
        rows = np.concatenate([outputs["true_boxes"], outputs["true_proba"], outputs["true_class"]], axis=2)
        return [row[:count] for row, (count,) in zip(rows, outputs["num_detections"], strict=True)]

    def close(self):
        self.raw.close()


def texts(image_error):
    """Returns the lines of the output `image_error`."""
    return [bytes(row).rstrip(b"\0").decode() for row in image_error]


def leftovers(server):
    """Returns what a server left behind: shared memory, processes, scratch files."""
    identity = server._id
    found = [name for name in os.listdir("/dev/shm") if name.startswith(identity)]  # noqa: PTH208
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123
                found += [f"process {pid}"] if identity in file.read() else []
        except OSError:
            pass
    return found + ([str(server._scratch)] if server._scratch.exists() else [])
