"""Small grid-box networks for tests."""

import torch

from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.vision.resnet import ResNetConfig

WIDTH, HEIGHT = 96, 64


def network_of(backbone: ResNetConfig, class_names=("face",), seed=0) -> GridNet:
    """A network as after some training: no weight and no statistic at its start."""
    torch.manual_seed(seed)
    clustering = {name: Clustering() for name in class_names}
    network = GridNet(GridNetConfig(backbone, tuple(class_names), GridGeometry(WIDTH, HEIGHT), clustering))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    return network.eval()


def small_network(depth=10, width=0.25, seed=0, class_names=("face",), **options) -> GridNet:
    return network_of(ResNetConfig.of_width(depth, width, **options), class_names, seed)


@torch.no_grad()
def assert_same_outputs(one: GridNet, other: GridNet, rtol=1e-4, atol=1e-5) -> None:
    """Compares the outputs on noise."""
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    for a, b in zip(one.eval()(images), other.eval()(images), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
