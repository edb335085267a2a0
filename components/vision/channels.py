"""Which channels of a network are coupled, found by tracing it: what structured pruning has to remove together.

Not torch-pruning's dependency graph: that runs the network on example inputs and brings importance measures that TAO's
rules would replace, and it is one more dependency. The groups alone, which those rules need, are found here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, fx, nn

# The channels of an output: the spaces they come from, several behind a concatenation. None where they are not
# followed: those of the image, and of operations that are not known.
_Channels = tuple[int, ...] | None

_JOINS = {"add", "iadd", "sub", "mul", "imul", "maximum", "minimum"}
# Operations that make of each channel what they make of it alone.
_KEEPS = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "dropout",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "flatten", "float", "contiguous",
}  # fmt: skip
_KEEPING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Dropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.Flatten, nn.Identity,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose tensors grow with the channels.

    Attributes:
        path: Of the module.
        module: The convolution, linear layer or normalisation.
        writes: Its output's channels, the first dimension of its tensors.
        reads: Its input's channels, the second dimension of its kernel; None where they are not followed.
        is_source: Whether the channels it writes are its own; a depthwise convolution and a normalisation write those
            that they read.
    """

    path: str
    module: nn.Module
    writes: tuple[int, ...]
    reads: _Channels = None
    is_source: bool = False

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields its tensors by their names in the network's state."""
        for name, value in self.module.state_dict().items():
            if value.dim():  # a batch norm's count of batches has no channels
                yield f"{self.path}.{name}", value


@dataclass(slots=True)
class Coupling:
    """The channels of a network.

    A space is a convolution's (or linear layer's) own output channels. Spaces that meet in an addition are one group,
    named by one of them: the same channels of all have to stay.

    Attributes:
        layers: In the order in which they run.
    """

    layers: list[Layer] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, network: nn.Module) -> "Coupling":
        """Traces a network."""
        coupling = cls()
        channels: dict[fx.Node, _Channels] = {}
        for node in _Tracer().trace(network).nodes:
            if node.op == "call_module":
                module = network.get_submodule(str(node.target))
                channels[node] = coupling._through_module(str(node.target), module, channels[node.args[0]])
            elif node.op in ("call_function", "call_method"):
                name = node.target if isinstance(node.target, str) else node.target.__name__
                channels[node] = coupling._through_operation(name.lstrip("_"), node, channels)
            else:
                channels[node] = coupling._fix([channels[each] for each in node.all_input_nodes])
        return coupling

    def group(self, space: int) -> int:
        """Returns the group that a space belongs to."""
        while self._parents[space] != space:
            space = self._parents[space]
        return space

    def groups(self) -> dict[int, list[Layer]]:
        """Returns each group's convolutions and linear layers, whose own channels it joins."""
        groups: dict[int, list[Layer]] = {}
        for layer in self.layers:
            if layer.is_source:
                groups.setdefault(self.group(layer.writes[0]), []).append(layer)
        return groups

    def is_fixed(self, group: int) -> bool:
        """Whether all its channels have to stay: they are outputs, or read by an operation that is not known."""
        return any(self.group(space) == group for space in self._fixed)

    def removed_parameters(self, counts: Mapping[int, int]) -> int:
        """Returns how many numbers of the network are left out when so many channels of each group are kept."""

        def length(spaces: tuple[int, ...]) -> int:
            return sum(counts.get(self.group(space), self._sizes[space]) for space in spaces)

        removed = 0
        for layer in self.layers:
            for _, tensor in layer.tensors():
                shape = list(tensor.shape)
                shape[0] = length(layer.writes)
                if layer.reads and len(shape) > 1:
                    shape[1] = shape[1] // self._length(layer.reads) * length(layer.reads)
                removed += tensor.numel() - math.prod(shape)
        return removed

    def sliced(self, kept: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Returns the layers' tensors with these channels of each group; with all where a group is not named."""

        def indices(spaces: tuple[int, ...]) -> Tensor:
            found, start = [], 0
            for space in spaces:
                size = self._sizes[space]
                found.append(start + kept.get(self.group(space), torch.arange(size)))
                start += size
            return torch.cat(found)

        state = {}
        for layer in self.layers:
            for name, tensor in layer.tensors():
                value = tensor[indices(layer.writes).to(tensor.device)]
                if layer.reads and value.dim() > 1:
                    # Behind a flattening, a linear layer reads several pixels of each channel.
                    pixels = value.shape[1] // self._length(layer.reads)
                    columns = indices(layer.reads)[:, None] * pixels + torch.arange(pixels)
                    value = value[:, columns.flatten().to(tensor.device)]
                state[name] = value
        return state

    def _length(self, spaces: tuple[int, ...]) -> int:
        return sum(self._sizes[space] for space in spaces)

    def _through_module(self, path: str, module: nn.Module, inputs: _Channels) -> _Channels:
        """Returns the channels of a module's output."""
        shared = next((layer for layer in self.layers if layer.path == path), None)
        if shared:
            reads = shared.reads if shared.is_source else shared.writes
            if not self._join(reads, inputs):
                self._fix([reads, inputs])
            return shared.writes
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            self._sizes.append(size)
            self._parents.append(len(self._parents))
            writes = (self._parents[-1],)
            self.layers.append(Layer(path, module, writes, inputs, is_source=True))
            return writes
        is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
        if inputs and (is_depthwise or isinstance(module, nn.BatchNorm2d)):
            self.layers.append(Layer(path, module, inputs))
        elif not isinstance(module, _KEEPING_MODULES):
            return self._fix([inputs])
        return inputs

    def _through_operation(self, name: str, node: fx.Node, channels: Mapping[fx.Node, _Channels]) -> _Channels:
        """Returns the channels of an operation's output."""
        inputs = [channels[each] for each in node.all_input_nodes]
        if name in _KEEPS or (name in _JOINS and len(inputs) == 1):
            return inputs[0]
        if name in _JOINS and self._join(*inputs):
            return inputs[0]
        if name in ("cat", "concat") and 1 in (*node.args[1:], node.kwargs.get("dim")):
            parts = [channels[each] for each in node.args[0]]  # type: ignore[union-attr, index]
            if all(parts):
                return tuple(chain.from_iterable(part for part in parts if part))
        return self._fix(inputs)

    def _join(self, one: _Channels, other: _Channels) -> bool:
        """Couples the channels of two inputs that meet; says whether they can be."""
        if not one or not other or [self._sizes[space] for space in one] != [self._sizes[space] for space in other]:
            return False
        for ours, theirs in zip(one, other, strict=True):
            self._parents[self.group(theirs)] = self.group(ours)
        return True

    def _fix(self, inputs: Iterable[_Channels]) -> _Channels:
        """Keeps all channels of the inputs of something that is not known; what comes out of it is not followed."""
        self._fixed.update(space for channels in inputs for space in channels or ())
        return None


class _Tracer(fx.Tracer):
    """Treats layers as leaves, also those of our own classes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)
