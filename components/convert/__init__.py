"""Conversion of exported models: INT8 quantisation."""
