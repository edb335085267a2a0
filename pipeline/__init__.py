"""What runs, in which order, on which machines: pipelines, the local runner and the gridbox command."""
