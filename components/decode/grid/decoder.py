"""Coverage and bbox outputs to instances."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.decode.decoder import Tensors
from components.decode.description import OPERATING_POINT
from components.decode.grid.clustering import Clustering, detect
from components.decode.grid.geometry import GridGeometry
from components.decode.instances import Instances

KIND = "grid"
# TAO's names.
INPUT, COVERAGE, BBOX = "input_1", "output_cov/Sigmoid", "output_bbox/BiasAdd"
# See `components.decode.grid.clustering.detect`.
Detector = Callable[[NDArray[np.float32], NDArray[np.float32], GridGeometry, Clustering], NDArray[np.float32]]


@dataclass(frozen=True)
class GridDecoder:
    """See `components.decode.decoder.Decoder`.

    Attributes:
        geometry: The grid.
        class_names: Classes in the order of the coverage channels.
        clustering: By class name, how candidates become detections; classes without an entry are not looked for.
        detector: How candidates become detections: on the evaluation's or on the inference's path.
        operating_point: By class name, the score from which on detections are shown, where it is known.
        assumed: See `Decoder`.
    """

    geometry: GridGeometry
    class_names: tuple[str, ...]
    clustering: Mapping[str, Clustering]
    detector: Detector = detect
    operating_point: Mapping[str, float] = field(default_factory=dict)
    assumed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tensors(self) -> tuple[str, str]:
        """See `Decoder`."""
        return COVERAGE, BBOX

    def __call__(self, tensors: Tensors) -> list[Instances]:
        """See `Decoder`; coverage is [N, C, h, w], bbox [N, 4C, h, w]."""
        images = zip(tensors[COVERAGE], tensors[BBOX], strict=True)
        return [Instances.ranked([*self._found(coverage, bbox)]) for coverage, bbox in images]

    def _found(self, coverage: NDArray[Any], bbox: NDArray[Any]) -> Sequence[NDArray[np.float32]]:
        nothing = np.zeros((0, 5), np.float32)
        return [
            self.detector(coverage[channel], bbox[4 * channel : 4 * channel + 4], self.geometry, self.clustering[name])
            if name in self.clustering
            else nothing
            for channel, name in enumerate(self.class_names)
        ]

    def count_classes(self, shapes: Mapping[str, Sequence[int | str]]) -> int | None:
        """See `Decoder`."""
        channels = shapes[COVERAGE][1]
        return channels if isinstance(channels, int) else None

    def settings(self) -> dict[str, Any]:
        """See `Decoder`."""
        clustering = {name: asdict(value) for name, value in self.clustering.items()}
        known = {OPERATING_POINT: dict(self.operating_point)} if self.operating_point else {}
        return {"kind": KIND, "geometry": asdict(self.geometry), "clustering": clustering, **known}


def load(description: Mapping[str, Any]) -> GridDecoder:
    """See `components.decode.decoder.load_decoder`; what is not said is as TAO has it by default."""
    settings, size, assumed = description["decoder"], description["input"], []
    values = settings.get("geometry", {})
    geometry = GridGeometry(**{**values, "width": size["width"], "height": size["height"]})
    names = tuple(description["class_names"])
    if "clustering" not in settings:
        assumed.append("unless a spec says otherwise, the defaults of DBSCAN")
    if not {"scale", "offset"} <= values.keys():
        drawn = "" if values else f"input {geometry.width}x{geometry.height} from the graph; "
        assumed.append(f"{drawn}box scale {geometry.scale:g} and offset {geometry.offset:g}")
    clustering = {name: Clustering(**settings.get("clustering", {}).get(name, {})) for name in names}
    point = settings.get(OPERATING_POINT, {})
    return GridDecoder(geometry, names, clustering, operating_point=point, assumed=tuple(assumed))
