"""A Triton server whose "detector" does what each image's bytes tell it: JSON in place of a picture.

`{"boxes": [[x1, y1, x2, y2, score, class], …], "size": [height, width]}` is answered so; `error` is the error of that
image, `fail` one of the whole model, and `sleep` takes seconds. In a picture, each red patch is a face.
"""

import json
import signal

import pytest

from components.serve.server import LocalServer
from components.serve.wheel import server_program
from components.step import UserError

_OUTPUTS = {
    "true_boxes": ("FP32", [-1, 4]),
    "true_proba": ("FP32", [-1, 1]),
    "true_class": ("INT32", [-1, 1]),
    "num_detections": ("INT32", [1]),
    "true_image_size": ("INT64", [3]),
}
_MODEL = """
import json, time
import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

def picture(content):
    image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if image is None:
        return {"error": "not an image"}
    red = (image[..., 2] > 160) & (image[..., 1] < 90) & (image[..., 0] < 90)
    patches = cv2.connectedComponentsWithStats(red.astype(np.uint8))[2][1:].tolist()
    return {"boxes": [[x, y, x + w, y + h, 0.9, 0] for x, y, w, h, area in patches], "size": image.shape[:2]}

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        content = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "input_image_data")).reshape(-1).copy()
        script = json.loads(content.tobytes()) if content[0] == ord("{") else picture(content)
        time.sleep(script.get("sleep", 0))
        for kind, prefix in (("error", "image: "), ("fail", "")):
            if kind in script:
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(prefix + script[kind]))
        rows = np.array(script.get("boxes", []), np.float32).reshape(1, -1, 6)
        # Triton takes no DLPack tensor without elements.
        padding = np.zeros((1, script.get("padding", int(not rows.size)), 6), np.float32)
        padded = np.concatenate([rows, padding], axis=1)
        height, width = script.get("size", [100, 200])
        values = {
            "true_boxes": padded[..., :4],
            "true_proba": padded[..., 4:5],
            "true_class": padded[..., 5:].astype(np.int32),
            "num_detections": np.array([[script.get("count", rows.shape[1])]], np.int32),
            "true_image_size": np.array([[height, width, 3]], np.int64),
        }
        make = pb_utils.Tensor.from_dlpack
        return pb_utils.InferenceResponse([make(name, v.copy()) for name, v in values.items()])
"""


def script(**what):
    return json.dumps(what).encode()


def write_model(repository, name="facenet_ensemble", classes=("face",), instances=2):
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_MODEL)
    outputs = "".join(
        f'output {{ name: "{output}" data_type: TYPE_{kind} dims: {dims} }}\n'
        for output, (kind, dims) in _OUTPUTS.items()
    )
    names = json.dumps(json.dumps(list(classes)))
    (folder.parent / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 8\n'
        'input { name: "input_image_data" data_type: TYPE_UINT8 dims: [-1] }\n'
        f"{outputs}instance_group {{ count: {instances} kind: KIND_CPU }}\n"
        + (f'parameters {{ key: "class_names" value: {{ string_value: {names} }} }}\n' if classes else "")
    )


class Server(LocalServer):
    """The local Triton with these models, started; `kill` is the end of it."""

    def __init__(self, models, log):
        super().__init__(models, log)
        try:
            server_program()
        except UserError as error:
            pytest.skip(str(error))
        self.start()

    def kill(self):
        """Ends the server and its models at once."""
        self._stopping.set()
        self._end_process(signal.SIGKILL)
        self.stop()
