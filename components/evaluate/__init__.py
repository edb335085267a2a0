"""Scores models on labelled images and writes the report."""
