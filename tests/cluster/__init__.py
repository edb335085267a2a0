"""What `make test-cluster` runs against a Kubeflow and a KServe: docs/testing-on-a-cluster.md.

Its file of checks is called `suite.py`, so that `make test` does not take it for one of its own.
"""
