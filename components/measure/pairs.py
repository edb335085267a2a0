"""Which boxes of the same image overlap enough, without looking at every pair.

Two boxes whose intersection over union is at least t are of similar width: each is at most 1 / t times as wide as the
other, and their common part is at least t times as wide as the wider one. So for a box that begins at x1 and is w
wide, the left edge of a partner lies between x1 - w (1 - t) / t and x1 + w (1 - t). With the partners of an image
sorted by their left edge, two binary searches find these; of a crowded image's pairs a few in a hundred remain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from components.measure.boxes import Floats, overlap
from components.measure.dataset import Booleans, Integers

# Pairs that are looked at in one go: few enough to stay in the processor's cache.
_PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Pairs:
    """Overlapping pairs, by detection ascending.

    Attributes:
        detection: [P].
        truth: [P].
        share: [P] their overlap, the threshold to 1.
    """

    detection: Integers
    truth: Integers
    share: Floats


def overlapping_pairs(
    detections: Floats,
    detection_offsets: Integers,
    truths: Floats,
    truth_offsets: Integers,
    regions: Booleans,
    threshold: float,
) -> Pairs:
    """Returns the pairs of a detection and a truth of the same image that overlap by at least `threshold`.

    Args:
        detections: [D, 4] finite boxes.
        detection_offsets: [I + 1] where the detections of each image stand.
        truths: [T, 4] finite boxes.
        truth_offsets: [I + 1] where the truths of each image stand.
        regions: [T] where the overlap is the share of the detection that lies inside (COCO's crowd regions), not the
            intersection over union.
        threshold: Above 0.
    """
    windows = _Windows(detections, detection_offsets, truths, truth_offsets, threshold)
    found = [*_near(windows, np.flatnonzero(~regions), False), *_near(windows, np.flatnonzero(regions), True)]
    detection, truth, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if regions.any():
        order = np.argsort(detection, kind="stable")
        detection, truth, share = detection[order], truth[order], share[order]
    return Pairs(detection, truth, share)


def _near(windows: "_Windows", chosen: Integers, regions: bool) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yields the overlapping pairs of detections with the `chosen` truths, which are all regions or none is."""
    yield np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if not len(chosen) or not len(windows.detections):
        return
    ordered, begin, end = windows.of(chosen, regions)
    truths, top = windows.truths[ordered], windows.truths[ordered, 1]
    lowest, highest = windows.bounds(1, regions)
    before = np.concatenate([[0], np.cumsum(end - begin)])
    start, count = 0, len(begin)
    while start < count:
        stop = max(int(np.searchsorted(before, before[start] + _PAIRS_AT_ONCE, side="right")) - 1, start + 1)
        lengths = end[start:stop] - begin[start:stop]
        place = np.arange(before[start], before[stop]) + np.repeat(begin[start:stop] - before[start:stop], lengths)
        tops = top[place]
        possible = tops >= np.repeat(lowest[start:stop], lengths)
        possible &= tops <= np.repeat(highest[start:stop], lengths)
        detection, place = np.repeat(np.arange(start, stop), lengths)[possible], place[possible]
        share = overlap(windows.detections[detection], truths[place], of_first=regions)
        near = share >= windows.threshold
        yield detection[near], ordered[place[near]], share[near]
        start = stop


@dataclass(frozen=True, slots=True)
class _Windows:
    """Finds, for each detection, the truths of its image whose left and top edges lie where a partner's can lie."""

    detections: Floats
    detection_offsets: Integers
    truths: Floats
    truth_offsets: Integers
    threshold: float

    def bounds(self, axis: int, regions: bool) -> tuple[Floats, Floats]:
        """Returns the lowest [D] and the highest [D] left (`axis` 0) or top (1) edge of a partner.

        They are wider than in exact arithmetic by more than rounding can be off; the overlap decides in the end.
        """
        near, far = self.detections[:, axis], self.detections[:, axis + 2]
        size = np.maximum(far - near, 0.0)
        slack = 1e-9 * (size + np.abs(near))
        highest = near + size * (1 - self.threshold) + slack
        if regions:  # may begin anywhere before what lies in it
            return np.full(len(near), -np.inf), highest
        return near - size * ((1 - self.threshold) / self.threshold) - slack, highest

    def of(self, chosen: Integers, regions: bool) -> tuple[Integers, Integers, Integers]:
        """Returns `chosen` by image and left edge, and where in it each detection's window begins [D] and ends [D].

        Image and left edge make one number, so that one binary search serves all images.
        """
        images = np.arange(len(self.truth_offsets) - 1)
        edges = self.truths[chosen, 0]
        origin = edges.min()
        with np.errstate(over="ignore"):
            span = 2 * (edges.max() - origin) + 1.0
        if not np.isfinite(span * len(images)):
            raise ValueError("the boxes lie too far apart")
        image_of_truth = np.repeat(images, np.diff(self.truth_offsets))[chosen]
        first_of_image = np.searchsorted(image_of_truth, np.append(images, len(images)))
        key = image_of_truth * span + (edges - origin)
        order = np.argsort(key)
        key = key[order]
        counts = np.diff(self.detection_offsets)
        base = np.repeat(images * span, counts)
        slack = 8 * np.spacing(span * len(images))
        lowest, highest = (np.clip(edge - origin, -1.0, span) for edge in self.bounds(0, regions))
        begin = np.searchsorted(key, base + lowest - slack)
        end = np.searchsorted(key, base + highest + slack, side="right")
        begin = np.maximum(begin, np.repeat(first_of_image[:-1], counts))
        end = np.minimum(end, np.repeat(first_of_image[1:], counts))
        return chosen[order], begin, np.maximum(begin, end)
