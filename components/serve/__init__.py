"""Serving: a trained detector as a Triton model repository, and where it runs."""
