"""The open DetectNet_v2 engine behind the command line of NVIDIA TAO."""
