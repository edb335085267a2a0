"""The Python-backend models of a model repository.

Each file here but `tensors` becomes the `model.py` of one model. They run in Triton's image and in the local server, on
that Python (3.11 and later), and need NumPy, OpenCV, `components.decode`, `components.formats.images`, and
`components.vision.inputs` and `threads` only; `network` and `ensemble`, which only the local server has, need ONNX
Runtime, too.
"""
