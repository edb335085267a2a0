"""What the engines share: backbones, training, checkpoints, structured pruning, ONNX export, status log."""
