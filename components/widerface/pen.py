"""Anti-aliased drawing in a frame of its own on a part of a picture."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]
Colour = tuple[float, float, float]  # blue, green, red in 0..255
SUBPIXEL_BITS = 4
WHITE: Colour = (235, 238, 240)
BLACK: Colour = (18, 18, 20)


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """Returns `a` with a `share` (0..1) of `b` in it."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scaled(colour: Colour, factor: float) -> Colour:
    """Returns the colour, lighter or darker by a factor."""
    return (min(255.0, colour[0] * factor), min(255.0, colour[1] * factor), min(255.0, colour[2] * factor))


@lru_cache(maxsize=64)
def _unit_arc(start: float, stop: float, steps: int) -> Points:
    angles = np.radians(np.linspace(start, stop, steps, endpoint=abs(stop - start) < 360))
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0, steps: int = 24) -> Points:
    """Returns points [steps, 2] on an ellipse around (x, y); angles in degrees, 0 at the top, clockwise."""
    return _unit_arc(start, stop, steps) * (rx, ry) + (x, y)


def box(x1: float, y1: float, x2: float, y2: float) -> Points:
    """Returns the corners [4, 2] of an upright rectangle."""
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def fixed_point(points: Points) -> NDArray[np.int32]:
    """Returns pixel coordinates (0, 0 is the outer corner of the first pixel) as OpenCV's drawing wants them."""
    return np.rint((points - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


class Pen:
    """Draws on `pixels` [h, w, 3] in a frame of its own: pixel = matrix @ point + offset."""

    def __init__(self, pixels: NDArray[np.uint8], scale: float, offset: ArrayLike, angle: float = 0.0) -> None:
        """Points are turned by `angle` (radians, clockwise on the screen), scaled, then moved by `offset` (pixels)."""
        self.pixels = pixels
        self.scale = scale
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        self._transposed = np.array([[cos, sin], [-sin, cos]])
        self._offset = np.asarray(offset, np.float64)

    def to_pixels(self, points: ArrayLike) -> Points:
        """Returns points [N, 2] in pixels."""
        return np.asarray(np.asarray(points) @ self._transposed + self._offset, np.float64)

    def fill(self, points: ArrayLike, colour: Colour) -> None:
        """Fills a polygon [N, 2]."""
        cv2.fillPoly(self.pixels, [fixed_point(self.to_pixels(points))], colour, cv2.LINE_AA, SUBPIXEL_BITS)

    def stamp(self, points: ArrayLike, value: int) -> None:
        """Sets the pixels of a polygon [N, 2] of a map [h, w, 1], with hard edges."""
        cv2.fillPoly(self.pixels, [fixed_point(self.to_pixels(points))], value, cv2.LINE_8, SUBPIXEL_BITS)

    def line(self, points: ArrayLike, colour: Colour, width: float, closed: bool = False) -> None:
        """Draws a polyline [N, 2] of a `width` in units, at least a pixel."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(
            self.pixels, [fixed_point(self.to_pixels(points))], closed, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS
        )

    def soft(self, points: ArrayLike, colour: Colour, alpha: float, softness: float) -> None:
        """Blends a polygon [N, 2] in with `alpha` (0..1) and an edge that is `softness` units wide."""
        pixels = self.to_pixels(points)
        radius = max(0.5, softness * self.scale)
        height, width = self.pixels.shape[:2]
        x1, y1 = np.maximum(np.floor(pixels.min(axis=0) - 2 * radius).astype(int), 0)
        x2, y2 = np.minimum(np.ceil(pixels.max(axis=0) + 2 * radius).astype(int), (width, height))
        if x1 >= x2 or y1 >= y2:
            return
        mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
        cv2.fillPoly(mask, [fixed_point(pixels - (x1, y1))], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        size = 2 * max(1, round(radius)) + 1
        weight = cv2.blur(cv2.blur(mask, (size, size)), (size, size)).astype(np.float32)[..., None] * (alpha / 255)
        region = self.pixels[y1:y2, x1:x2]
        region[:] = region + weight * (np.array(colour, np.float32) - region)

    def shade(self, points: Points, gain: NDArray[np.float32]) -> None:
        """Multiplies the inside of a polygon [N, 2] by a coarse map of gains [n, m], stretched over its bounds."""
        pixels = self.to_pixels(points)
        mask = np.zeros(self.pixels.shape[:2], np.uint8)
        cv2.fillPoly(mask, [fixed_point(pixels)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        self._multiply(pixels, mask, gain)

    def shade_changes(self, before: NDArray[np.uint8], points: Points, gain: NDArray[np.float32]) -> None:
        """As `shade`, but over all that was drawn since `before`, a copy of `pixels`, near the polygon."""
        blue, green, red = cv2.split(cv2.absdiff(self.pixels, before))
        mask = cv2.threshold(cv2.max(cv2.max(blue, green), red), 0, 255, cv2.THRESH_BINARY)[1]
        self._multiply(self.to_pixels(points), np.asarray(mask, np.uint8), gain)

    def _multiply(self, pixels: Points, mask: NDArray[np.uint8], gain: NDArray[np.float32]) -> None:
        height, width = mask.shape
        left, top = np.floor(pixels.min(axis=0)).astype(int)
        right, bottom = np.ceil(pixels.max(axis=0)).astype(int) + 1
        x1, y1, x2, y2 = max(0, left), max(0, top), min(right, width), min(bottom, height)
        if x1 >= x2 or y1 >= y2:
            return
        stretched = cv2.resize(gain, (int(right - left), int(bottom - top)), interpolation=cv2.INTER_LINEAR)
        factor = stretched[y1 - top : y2 - top, x1 - left : x2 - left] - 1
        factor = 1 + factor * (mask[y1:y2, x1:x2] * np.float32(1 / 255))
        region = self.pixels[y1:y2, x1:x2]
        region[:] = cv2.multiply(region, cv2.merge([factor, factor, factor]), dtype=cv2.CV_8U)
