"""Box geometry, average precision and detection reports. NumPy only."""
