"""The protocols by which predictions are measured, and what people call their figures. Nothing heavy is loaded here."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from components.step import UserError

if TYPE_CHECKING:
    from components.measure.curve import AveragePrecisionMode
    from components.measure.matching import HeightBand


class Protocol(StrEnum):
    """How to measure."""

    wider = "wider"
    coco = "coco"
    tao = "tao"
    ap50 = "ap50"


@dataclass(frozen=True, slots=True)
class Rules:
    """How to measure.

    Attributes:
        protocol: See `Protocol`.
        iou: Smallest IoU of a match, for `tao` and `ap50`; the other two have their own.
        min_height: Smallest object that counts, for `tao` and `ap50`, in pixels of the truth, or of `input`.
        mode: How a curve becomes an average precision, for `tao` and `ap50`.
        bands: Heights by which the figures are broken down, in the same pixels.
        more_heights: For `ap50`, further smallest objects; each has a figure of its own.
        input: Width and height of a network's input into which images are fitted (by letterbox), where heights are to
            be those in it and not in the stored images.
    """

    protocol: Protocol
    iou: float = 0.5
    min_height: float = 0.0
    mode: "AveragePrecisionMode" = "integrate"
    bands: "tuple[HeightBand, ...]" = ()
    more_heights: tuple[float, ...] = ()
    input: tuple[int, int] | None = None

    @property
    def sizes(self) -> "HeightBand":
        """The heights that count in the headline figures."""
        from components.measure.matching import HeightBand

        return HeightBand(self.min_height)

    def __post_init__(self) -> None:
        fixed = self.protocol in (Protocol.wider, Protocol.coco)
        if fixed and (self.iou, self.min_height, self.mode) != (0.5, 0.0, "integrate"):
            raise UserError(
                f"--protocol {self.protocol.value}: it has rules of its own; leave out --iou, --min-height and --mode, "
                "or take --protocol ap50"
            )
        if self.protocol is not Protocol.ap50 and (self.more_heights or self.input):
            raise UserError(
                f"--protocol {self.protocol.value}: only ap50 takes several heights, and heights in a network's input; "
                "leave out --input, give one --min-height, or take --protocol ap50"
            )


# Ours beside another program's: the area under the whole curve, of all detections; the one with an interval.
AREA = "ap_area"
# Begins the name of a figure of objects of a height or more.
FROM_HEIGHT = "map_from_"
# The figure that stands for the others, by protocol.
MAIN = {Protocol.wider: "hard", Protocol.coco: "ap", Protocol.tao: "map", Protocol.ap50: "map"}
# What people call the figures.
_LABELS = {
    "easy": "Easy",
    "medium": "Medium",
    "hard": "Hard",
    "ap": "AP@[.50:.95]",
    "ap50": "AP@.50",
    "ap75": "AP@.75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ap_larger_than_64": "AP over 64×64",
    "ap50_larger_than_64": "AP@.50 over 64×64",
}


def label(figure: str, rules: Rules) -> str:
    """Returns what people call a figure."""
    if figure in ("map", AREA):
        mean = "TAO’s mAP" if rules.protocol is Protocol.tao and figure == "map" else "AP"
        return f"{mean}@{rules.iou:g}" + (", whole area" if figure == AREA else "")
    if figure.startswith(FROM_HEIGHT):
        return f"AP@{rules.iou:g}, from {figure.removeprefix(FROM_HEIGHT)} px"
    return _LABELS.get(figure, "AP of " + figure.removeprefix("ap_"))
