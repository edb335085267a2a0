"""The functional graph of a ResNet as Keras 2.2.4 describes TAO's: the attribute `model_config` of its files."""

from collections.abc import Sequence
from typing import Any

from components.vision.resnet import BATCH_NORM_EPSILON, IMAGE_CHANNELS, Convolution, ResNetConfig, batch_norm_name

_ZEROS = {"class_name": "Zeros", "config": {}}
_ONES = {"class_name": "Ones", "config": {}}
_GLOROT_UNIFORM = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None},
}


class KerasGraph:
    """The functional graph that TAO builds for a ResNet and heads on its features."""

    def __init__(self, backbone: ResNetConfig, width: int, height: int) -> None:
        """Begins a graph with the backbone.

        Args:
            backbone: The backbone.
            width: Of the image, pixels.
            height: Of the image, pixels.
        """
        self._layers: list[dict[str, Any]] = []
        self._heads: list[str] = []
        self._backbone = backbone
        self._convolutions = {convolution.name: convolution for convolution in backbone.convolutions()}
        x = self._add(
            "InputLayer",
            "input_1",
            [],
            batch_input_shape=[None, IMAGE_CHANNELS, height, width],
            dtype="float32",
            sparse=False,
        )
        x = self._activation("activation_1", self._convolution("conv1", x))
        if backbone.use_pooling:
            window = {"pool_size": [3, 3], "strides": [2, 2], "padding": "same", "data_format": "channels_first"}
            x = self._add("MaxPooling2D", "max_pooling2d_1", [x], trainable=True, **window)
        for index, unit in enumerate(backbone.units()):
            y = x
            for number, name in enumerate(unit.convolutions):
                y = self._convolution(name, y)
                if name != unit.last:
                    y = self._activation(f"{unit.name}_relu_{number + 1}", y)
            shortcut = self._convolution(unit.shortcut, x, padding="valid") if unit.shortcut else x
            x = self._add("Add", f"add_{index + 1}", [y, shortcut], trainable=True)
            x = self._activation(f"{unit.name}_relu", x)
        if rate := backbone.dropout_rate:
            x = self._add("Dropout", "dropout_1", [x], trainable=True, rate=rate, noise_shape=None, seed=None)
        self._features = x

    def add_head(self, name: str, channels: int, activation: str) -> None:
        """Adds a 1x1 convolution on the last features."""
        layer = Convolution(name, self._features, 1, 1)
        self._heads.append(self._conv2d(layer, self._features, channels, "same", activation))

    def model(self, family: str) -> dict[str, Any]:
        """Returns the `model_config`; `family` ends the model's name."""
        backbone = self._backbone
        stem = f"resnet{backbone.depth}{'' if backbone.use_pooling else '_nopool'}"
        graph = {
            "name": f"{stem}{'_bn' if backbone.use_batch_norm else ''}_{family}",
            "layers": _in_keras_order(self._layers, self._heads),
            "input_layers": [["input_1", 0, 0]],
            "output_layers": [[head, 0, 0] for head in self._heads],
        }
        return {"class_name": "Model", "config": graph}

    def _add(self, kind: str, name: str, inputs: list[str], **config: object) -> str:
        """Adds a layer; returns its name, as the methods below do."""
        nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
        self._layers.append(
            {"name": name, "class_name": kind, "config": {"name": name, **config}, "inbound_nodes": nodes}
        )
        return name

    def _activation(self, name: str, source: str) -> str:
        return self._add("Activation", name, [source], trainable=True, activation="relu")

    def _convolution(self, name: str, source: str, padding: str = "same") -> str:
        """Adds a convolution of the backbone and its batch norm."""
        x = self._conv2d(self._convolutions[name], source, self._backbone.channels[name], padding, "linear")
        if not self._backbone.use_batch_norm:
            return x
        return self._add(
            "BatchNormalization",
            batch_norm_name(name),
            [x],
            trainable=True,
            axis=1,
            momentum=0.99,
            epsilon=BATCH_NORM_EPSILON,
            center=True,
            scale=True,
            beta_initializer=_ZEROS,
            gamma_initializer=_ONES,
            moving_mean_initializer=_ZEROS,
            moving_variance_initializer=_ONES,
            **dict.fromkeys(("beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint")),
        )

    def _conv2d(self, layer: Convolution, source: str, channels: int, padding: str, activation: str) -> str:
        return self._add(
            "Conv2D",
            layer.name,
            [source],
            trainable=True,
            filters=channels,
            kernel_size=[layer.kernel, layer.kernel],
            strides=[layer.stride, layer.stride],
            padding=padding,
            data_format="channels_first",
            dilation_rate=[1, 1],
            activation=activation,
            use_bias=True,
            kernel_initializer=_GLOROT_UNIFORM,
            bias_initializer=_ZEROS,
            **dict.fromkeys(("kernel_regularizer", "bias_regularizer", "activity_regularizer")),
            **dict.fromkeys(("kernel_constraint", "bias_constraint")),
        )


def _in_keras_order(layers: Sequence[dict[str, Any]], outputs: Sequence[str]) -> list[dict[str, Any]]:
    """Sorts a graph's layers as Keras 2.2.4 does when it builds a model, for it assigns stored weights by position.

    The layer farthest from the outputs comes first. Among equally far ones it is the one that a traversal from the
    outputs back to the inputs, each layer before its inputs, meets first.

    Args:
        layers: Each after the layers that it reads.
        outputs: The names of the layers whose outputs are the model's, in their order.
    """
    inputs = {layer["name"]: [source[0] for node in layer["inbound_nodes"] for source in node] for layer in layers}
    distance = dict.fromkeys(inputs, 0)
    for name in reversed(inputs):
        for source in inputs[name]:
            distance[source] = max(distance[source], distance[name] + 1)
    met: dict[str, int] = {}
    waiting = list(reversed(outputs))
    while waiting:
        name = waiting.pop()
        if name not in met:
            met[name] = len(met)
            waiting += reversed(inputs[name])
    return sorted(layers, key=lambda layer: (-distance[layer["name"]], met[layer["name"]]))
