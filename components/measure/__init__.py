"""Box geometry, matching detections to ground truth, average precision, curves. NumPy only."""
