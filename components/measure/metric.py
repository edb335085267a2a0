"""What a metric gives: a score that says what it is of, how sure it is, and which of two is the better one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from components.measure.uncertainty import Interval, Outcomes

AVERAGE_PRECISION = "mean_average_precision"

Truth_contra = TypeVar("Truth_contra", contravariant=True)
Found_contra = TypeVar("Found_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Scale:
    """How a metric's values are to be read.

    Attributes:
        title: What people call it.
        highest: The highest value there is; the lowest is 0.
        lower_is_better: Whether it measures an error.
    """

    title: str
    highest: float = 1.0
    lower_is_better: bool = False


SCALES = {AVERAGE_PRECISION: Scale("AP")}


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scored.

    Attributes:
        metric: Name of the metric; the value stands under it wherever figures are written.
        value: The score, or None where nothing was to be measured.
        low: Lower end of its interval, where one was drawn.
        high: Upper end of its interval, where one was drawn.
        count: Of the objects that were to be found, where it is known.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @classmethod
    def of(cls, metric: str, interval: "Interval", count: int | None = None) -> "Score":
        """Returns the score of a value with its interval."""
        return cls(metric, interval.value, interval.low, interval.high, count)

    @classmethod
    def read(cls, document: Mapping[str, Any], metric: str = "") -> "Score":
        """Reads what `written` wrote, or figures of releases that only knew average precision.

        Args:
            document: Plain values of JSON.
            metric: Which of its figures; by default the one that it names as its metric.

        Raises:
            ValueError: There is no such figure, or it is no number.
        """
        name = metric or str(document.get("metric") or AVERAGE_PRECISION)
        value = document.get(name)
        if name not in document or not (value is None or _is_number(value)):
            raise ValueError(f"{name} is missing or no number")
        known = document if name == document.get("metric") else {}
        parts = {part: known[part] for part in _PARTS if _is_number(known.get(part))}
        return cls(name, None if value is None else float(value), **parts)

    def written(self) -> dict[str, Any]:
        """Returns plain values for JSON; the value stands under the metric's name."""
        known = {part: getattr(self, part) for part in _PARTS if getattr(self, part) is not None}
        return {"metric": self.metric, self.metric: self.value if self.is_number else None, **known}

    @property
    def scale(self) -> Scale:
        """How it is read; by default it is a share of correct results."""
        return SCALES.get(self.metric, Scale(self.metric))

    @property
    def is_number(self) -> bool:
        """Whether there is a score that means something."""
        return self.value is not None and math.isfinite(self.value) and 0 <= self.value <= self.scale.highest

    def points_above(self, other: "Score") -> float:
        """Returns by how many points (hundredths) it is better than another one; negative where it is worse."""
        assert self.value is not None
        assert other.value is not None
        difference = other.value - self.value if self.scale.lower_is_better else self.value - other.value
        return 100 * difference


_PARTS = ("low", "high", "count")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Metric(Protocol[Truth_contra, Found_contra]):
    """Measures what a model finds, image by image.

    Attributes:
        name: Under which its values are written.
    """

    name: str

    def add(self, image: str, truth: Truth_contra, found: Found_contra) -> None:
        """Adds the ground truth and the detections of an image."""
        ...

    def score(self) -> Score:
        """Returns the score of all images."""
        ...

    def outcomes(self) -> Mapping[str, "Outcomes"]:
        """Returns by class what each image contributed, for intervals and for a paired test later."""
        ...
