"""The container images in which stages run: the one place that names them."""

OPEN_ENGINE = "ghcr.io/gridbox/gridbox:0.1.0"
