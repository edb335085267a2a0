"""`detectnet_v2 calibration_tensorfile`: batches of images in the HDF5 file that TAO calibrates INT8 engines with.

Source of the layout: TAO 5.0, `core/export/data.py`, `TensorFile`: one group a batch, counted from 0, with one array.
"""

from pathlib import Path

import h5py

from components.detectnet_v2 import sources, spec_pb2
from components.progress import track
from components.step import UserError, publish
from components.vision.inputs import InputSpec

_KEY = "_tensorfile_array_key_"


def write_tensorfile(spec: spec_pb2.Experiment, output: Path, batches: int = -1, *, validation: bool = False) -> int:
    """Writes images as the network sees them without augmentation: [batch, 3, H, W] RGB, 0 to 1.

    Args:
        spec: The experiment, whose data and batch size are taken.
        output: The file; must not exist yet, as for TAO.
        batches: How many; -1 for all whole ones.
        validation: Take the validation images.

    Returns:
        The number of batches.

    Raises:
        UserError: The file exists, or there are fewer images.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; remove it, or give -o another name")
    data = sources.validation_images(spec) if validation else sources.training_images(spec, augmented=False)
    size = spec.training_config.batch_size_per_gpu
    whole = len(data) // size
    count = whole if batches == -1 else batches
    if not 0 < count <= whole:
        raise UserError(f"-m {batches}: the data set has {whole} batches of {size} images; ask for 1 to {whole}")
    with publish(output) as scratch, h5py.File(scratch, "w") as file:
        file.attrs["count"] = count
        height, width = data.pixels.shape[1:3]
        spec_of_input = InputSpec(width, height)
        file.attrs["shape"] = (size, *spec_of_input.shape)
        for number in track(range(count), count, "writing batches"):
            images = spec_of_input.prepare(data.pixels[number * size : (number + 1) * size])
            file.create_group(f"{_KEY}_{number}").create_dataset(_KEY, data=images, compression="gzip")
    return count
