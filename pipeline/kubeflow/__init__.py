"""Kubeflow as a user of the command line meets it: upload, submit, schedule, follow, read logs, look for trouble."""
