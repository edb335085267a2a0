"""File formats that more than one room reads or writes: images, KITTI sets, WIDER FACE, TFRecord."""
