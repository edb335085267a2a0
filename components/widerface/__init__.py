"""WIDER FACE: acquire, synthesise and convert face-detection data."""
