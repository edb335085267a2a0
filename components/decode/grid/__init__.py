"""The grid-box code: boxes to grid targets, grids to boxes, and clustering. NumPy only."""

from components.decode.grid.decoder import load as load
