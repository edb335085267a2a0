"""Cluttered backgrounds, and hard negatives: things that resemble faces."""

import cv2
import numpy as np
from numpy.typing import NDArray

from components.widerface.pen import BLACK, WHITE, Colour, Pen, arc, box, mixed, scaled
from components.widerface.people import SKINS, Random, paint, random_colour, random_person

Picture = NDArray[np.uint8]


def background(rng: Random, width: int, height: int) -> Picture:
    """Returns a picture [height, width, 3] of nothing in particular: sky, walls, windows, foliage, clutter."""
    shrink = 2 if rng.random() < 0.5 else 1  # half of the backgrounds are out of focus
    w, h = -(-width // shrink), -(-height // shrink)
    top, bottom = np.array(random_colour(rng)), np.array(random_colour(rng))
    ramp = np.linspace(0, 1, h)[:, None, None]
    picture = np.ascontiguousarray(np.broadcast_to(top + (bottom - top) * ramp, (h, w, 3)).astype(np.uint8))
    pen = Pen(picture, h, (0, 0))  # a unit is the picture's height
    wide = w / h
    for draw in rng.choice(len(_LAYERS), size=int(rng.integers(2, 5))):
        _LAYERS[draw](pen, rng, wide)
    _grain(picture, rng, cell=int(rng.integers(2, 24)), strength=rng.uniform(4, 28))
    if shrink > 1:
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return picture


def _grain(picture: Picture, rng: Random, cell: int, strength: float) -> None:
    """Adds a coarse texture of cells of about `cell` pixels and a standard deviation of `strength`."""
    h, w = picture.shape[:2]
    coarse = rng.standard_normal((h // cell + 2, w // cell + 2), np.float32) * strength
    texture = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    picture[:] = cv2.add(picture, cv2.merge([texture, texture, texture]), dtype=cv2.CV_8U)


def _boxes(pen: Pen, rng: Random, wide: float) -> None:
    """Furniture, boards, crates."""
    for _ in range(int(rng.integers(4, 26))):
        x, y = rng.uniform(0, wide), rng.uniform(0, 1)
        w, h = np.exp(rng.uniform(-3.5, -0.7, 2))
        colour = random_colour(rng)
        slant = rng.normal(0, 0.1 * w)
        pen.fill([(x, y), (x + w, y + slant), (x + w, y + h + slant), (x, y + h)], colour)
        if rng.random() < 0.4:
            pen.line([(x, y), (x + w, y + slant)], scaled(colour, 0.6), 0.008)


def _windows(pen: Pen, rng: Random, wide: float) -> None:
    """A house front: rows of windows."""
    x0, x1 = np.sort(rng.uniform(0, wide, 2))
    y0 = rng.uniform(0, 0.4)
    wall, glass = random_colour(rng), random_colour(rng)
    pen.fill(box(x0, y0, x1, 1), wall)
    step = rng.uniform(0.07, 0.2)
    for x in np.arange(x0 + 0.2 * step, x1 - step, step):
        for y in np.arange(y0 + 0.2 * step, 1, 1.3 * step):
            pen.fill(box(x, y, x + 0.6 * step, y + 0.8 * step), scaled(glass, rng.uniform(0.7, 1.3)))


def _foliage(pen: Pen, rng: Random, wide: float) -> None:
    """Blobs of leaves or stones."""
    base: Colour = (40, 110, 60) if rng.random() < 0.6 else random_colour(rng)
    cx, cy = rng.uniform(0, wide), rng.uniform(0, 0.8)
    for _ in range(int(rng.integers(15, 50))):
        x, y = rng.normal((cx, cy), 0.2)
        r = rng.uniform(0.01, 0.07)
        pen.fill(arc(x, y, r, r * rng.uniform(0.5, 1.2), steps=9), scaled(base, rng.uniform(0.5, 1.5)))


def _poles(pen: Pen, rng: Random, wide: float) -> None:
    """Lamp posts, cables, branches."""
    for _ in range(int(rng.integers(2, 12))):
        ends = rng.uniform((0, -0.1), (wide, 1.1), (2, 2))
        if rng.random() < 0.6:
            ends[1, 0] = ends[0, 0] + rng.normal(0, 0.02)
        pen.line(ends, random_colour(rng), float(np.exp(rng.uniform(-6, -3))))


def _ground(pen: Pen, rng: Random, wide: float) -> None:
    """A floor with joints running to a vanishing point."""
    y, x = rng.uniform(0.45, 0.8), rng.uniform(0, wide)
    colour = random_colour(rng)
    pen.fill(box(0, y, wide, 1), colour)
    for end in np.linspace(-wide, 2 * wide, int(rng.integers(4, 14))):
        pen.line([(x, y), (end, 1.0)], scaled(colour, 0.8), 0.004)


def _lights(pen: Pen, rng: Random, wide: float) -> None:
    """Lamps and reflections, out of focus."""
    for _ in range(int(rng.integers(3, 16))):
        x, y, r = rng.uniform(0, wide), rng.uniform(0, 0.7), np.exp(rng.uniform(-4.5, -2.5))
        pen.soft(arc(x, y, r, r), mixed(WHITE, random_colour(rng), 0.4), rng.uniform(0.3, 0.9), 0.3 * r)


_LAYERS = (_boxes, _windows, _foliage, _poles, _ground, _lights)


def hard_negatives(picture: Picture, rng: Random, count: int, light: tuple[float, float, float]) -> None:
    """Draws `count` objects that are not faces: balls, discs, clocks, skin-coloured blobs, patterns, backs of heads."""
    height, width = picture.shape[:2]
    for radius in np.sort(height * np.exp(rng.uniform(np.log(0.03), np.log(0.25), count))):
        centre = rng.uniform(0, width), rng.uniform(0, height)
        kind = int(rng.integers(len(_NEGATIVES) + 2))
        if kind < len(_NEGATIVES):
            _NEGATIVES[kind](Pen(picture, float(radius), centre, rng.normal(0, 0.4)), rng, light)
        else:
            paint(picture, random_person(rng, light, back=True), float(radius), centre)


def _skin_or_any(rng: Random) -> Colour:
    return SKINS[int(rng.integers(len(SKINS)))] if rng.random() < 0.5 else random_colour(rng)


def _round_light(light: tuple[float, float, float]) -> NDArray[np.float32]:
    x, y, strength = light
    steps = np.linspace(-1, 1, 13)
    across, down = steps[None, :], steps[:, None]
    return np.asarray(1.1 + 0.4 * strength * (x * across + y * down) - 0.3 * (across**2 + down**2), np.float32)


def _ball(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:
    colour, shape = _skin_or_any(rng), arc(0, 0, rng.uniform(0.7, 1), 1)
    pen.fill(shape, colour)
    for _ in range(int(rng.integers(0, 5))):  # seams or panels
        pen.line(arc(rng.normal(0, 0.3), rng.normal(0, 0.3), 0.6, 0.6, 0, 160, 8), scaled(colour, 0.6), 0.05)
    pen.shade(shape, _round_light(light))


def _disc(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:  # noqa: ARG001 - flat objects
    for radius in np.linspace(1, 0.2, int(rng.integers(1, 6))):
        pen.fill(arc(0, 0, radius, radius), random_colour(rng))


def _clock(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:  # noqa: ARG001
    pen.fill(arc(0, 0, 1, 1), random_colour(rng))
    pen.fill(arc(0, 0, 0.88, 0.88), scaled(WHITE, rng.uniform(0.7, 1)))
    for angle in range(0, 360, 30):
        pen.line(np.concatenate([arc(0, 0, r, r, angle, angle + 1, 1) for r in (0.7, 0.82)]), BLACK, 0.05)
    for length, angle in zip((0.45, 0.65), rng.uniform(0, 360, 2), strict=True):
        pen.line(np.concatenate([[(0.0, 0.0)], arc(0, 0, length, length, angle, angle + 1, 1)]), BLACK, 0.06)


def _blob(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:
    shape = arc(0, 0, 1, 1, steps=14) * rng.uniform(0.4, 1.0, (14, 1))
    skin = SKINS[int(rng.integers(len(SKINS)))]
    pen.fill(shape, skin)
    for _ in range(int(rng.integers(0, 4))):  # dark spots where eyes might be, in no order
        x, y = rng.uniform(-0.5, 0.5, 2)
        pen.fill(arc(x, y, 0.1, 0.08, steps=8), scaled(skin, 0.4))
    pen.shade(shape, _round_light(light))


def _pattern(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:  # noqa: ARG001
    first, second = random_colour(rng), random_colour(rng)
    pen.fill(box(-1, -1, 1, 1), first)
    cells, checks = int(rng.integers(3, 8)), rng.random() < 0.5
    edges = np.linspace(-1, 1, cells + 1)
    for column in range(cells):
        for row in range(cells):
            if (row + column) % 2 if checks else row % 2:
                pen.fill(box(edges[column], edges[row], edges[column + 1], edges[row + 1]), second)


def _hand(pen: Pen, rng: Random, light: tuple[float, float, float]) -> None:
    skin = SKINS[int(rng.integers(len(SKINS)))]
    palm = arc(0, 0, 0.5, 0.55)
    pen.line([(0, 0.3), (rng.normal(0, 0.3), 2.5)], scaled(skin, 0.9), 0.55)
    pen.fill(palm, skin)
    for x, length in ((-0.36, 0.7), (-0.13, 0.9), (0.12, 0.9), (0.36, 0.75)):
        pen.line([(x, -0.3), (1.3 * x, -0.3 - length)], skin, 0.2)
    pen.line([(0.4, 0.1), (0.85, -0.35)], skin, 0.2)
    pen.shade(palm, _round_light(light))


_NEGATIVES = (_ball, _disc, _clock, _blob, _pattern, _hand)


def expose(picture: Picture, rng: Random) -> bool:
    """Gives the picture a camera's gamma, colour cast, vignette and noise; returns whether the light is extreme."""
    extreme = rng.random() < 0.08
    gain = rng.uniform(0.3, 0.55) if extreme else rng.uniform(0.75, 1.15)
    gamma = float(np.exp(rng.normal(0, 0.2)))
    cast = 1 + rng.normal(0, 0.05, 3)
    ramp = (np.arange(256) / 255.0) ** gamma
    table = np.clip(255 * gain * ramp[:, None] * cast, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    cv2.LUT(picture, table, picture)
    if rng.random() < 0.25:
        cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.1), picture)
    _noise(picture, rng, rng.uniform(1, 9))
    return extreme


def _noise(picture: Picture, rng: Random, strength: float) -> None:
    """Adds sensor noise of a standard deviation of `strength`; the tile repeats invisibly."""
    height, width = picture.shape[:2]
    tile = (rng.standard_normal((97, 131), np.float32) * strength).astype(np.int8)
    noise = np.tile(tile, (height // 97 + 1, width // 131 + 1))[:height, :width]
    picture[:] = cv2.add(picture, cv2.merge([noise, noise, noise]), dtype=cv2.CV_8U)
