"""Procedurally drawn people. Everything is measured in half face heights: the hairline is at y = -1, the chin at 1."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from components.widerface.pen import BLACK, WHITE, Colour, Pen, Points, arc, box, mixed, scaled

Random = np.random.Generator
Across = Callable[[float], float]
Curve = Callable[[float], Points]

# Blue, green, red.
SKINS: tuple[Colour, ...] = (
    (190, 205, 245), (165, 190, 235), (150, 180, 225), (135, 165, 215), (120, 150, 205),
    (100, 135, 190), (80, 115, 170), (65, 95, 145), (52, 76, 118), (42, 60, 92), (38, 50, 74),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (20, 18, 18), (28, 26, 30), (25, 35, 50), (35, 50, 75), (45, 70, 105),
    (90, 140, 180), (120, 175, 210), (35, 60, 120), (150, 150, 150), (205, 205, 205),
)  # fmt: skip
HAIR_STYLES = ("bald", "short", "short", "short", "fringe", "medium", "medium", "long", "long", "curly", "bun", "hood")
HATS = ("cap", "beanie", "brim", "helmet")


@dataclass(frozen=True, slots=True)
class Person:
    """A person's looks. Angles in radians, lengths in half face heights, turns in -1..1.

    Attributes:
        cheek: Half the width of the face.
        jaw: How much the face narrows towards the chin, 0..1.
        yaw: Turn of the head to the right of the picture; beyond 0.6 the pose is atypical.
        pitch: Nod, downwards.
        tilt: Roll of the head, clockwise.
        skin: Colour of the skin.
        hair: Colour of the hair, brows and beard.
        style: Hair style.
        hat: Name of a hat or an empty string.
        glasses: 0 none, 1 clear, 2 dark.
        beard: 0 none, 1 stubble, 2 moustache, 3 full.
        mouth: -1 (closed) to 1 (wide open; beyond 0.55 the expression is exaggerated).
        smile: Curvature of the mouth, -1..1.
        closed_eyes: Whether the eyes are shut.
        clothes: Colour of the clothes, and of what is worn with them.
        shoulders: Half the width of the shoulders.
        detail: Seed of small details.
        light: Direction (x, y) and strength of the light, each -1..1.
        back: Seen from behind: no face.
    """

    cheek: float
    jaw: float
    yaw: float
    pitch: float
    tilt: float
    skin: Colour
    hair: Colour
    style: str
    hat: str
    glasses: int
    beard: int
    mouth: float
    smile: float
    closed_eyes: bool
    clothes: tuple[Colour, Colour]
    shoulders: float
    detail: int
    light: tuple[float, float, float]
    back: bool

    def outline(self) -> Points:
        """Returns the outline of the face [N, 2], hairline to chin and ear to ear, before the head is tilted."""
        points = arc(0, 0, 1, 1, steps=40)
        x, y = points[:, 0], points[:, 1]
        narrow = np.where(y > 0, 1 - self.jaw * np.abs(y) ** 2.2, 1.0)
        wide = np.sign(x) * np.abs(x) ** 0.82 * self.cheek * narrow
        return np.stack([wide + 0.06 * self.yaw * y * (y > 0), y], axis=1)

    def extent(self) -> tuple[float, float, float, float]:
        """Returns x1, y1, x2, y2 of the tilted outline around the head's centre."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        turned = self.outline() @ np.array([[cos, sin], [-sin, cos]])
        (x1, y1), (x2, y2) = turned.min(axis=0), turned.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)

    def head(self) -> Points:
        """Returns the outline of head, hair and hat [N, 2], before the head is tilted."""
        reach = {"curly": 1.42, "hood": 1.32, "long": 1.3, "medium": 1.28}.get(self.style, 1.15)
        top = 1.5 if self.hat or self.style in ("curly", "bun", "hood") else 1.22
        low = {"long": 1.7, "hood": 1.25, "medium": 0.95}.get(self.style, 0.95)
        upper = arc(-0.12 * self.yaw, -0.1, self.cheek * reach, top, -100, 100, 18)
        lower = arc(0, 0.05, self.cheek * (reach if low > 1 else 1.05), low, 110, 250, 10)
        return np.concatenate([upper, lower])

    def torso(self) -> Points:
        """Returns the outline of neck, shoulders and arms [N, 2], which a tilt of the head does not move."""
        s = self.shoulders
        half = [(0.42, 0.6), (0.45, 1.2), (0.8, 1.42), (0.85 * s, 1.62), (s, 2.0), (1.08 * s, 3.4), (1.1 * s, 8.0)]
        right = np.array(half)
        return np.concatenate([right, (right * (-1, 1))[::-1]])


def random_person(rng: Random, light: tuple[float, float, float], back: bool = False) -> Person:
    """Chooses the looks of a person; all people in a picture share one `light`."""
    elderly = rng.random() < 0.15
    hair = HAIRS[int(rng.integers(8, 10) if elderly else rng.integers(0, 9))]
    if rng.random() < 0.02:
        hair = tuple(rng.uniform(30, 230, 3))  # dyed
    style = str(rng.choice(HAIR_STYLES))
    skin = SKINS[int(rng.integers(len(SKINS)))]
    skin = (skin[0] * rng.uniform(0.85, 1.1), skin[1] * rng.uniform(0.92, 1.06), skin[2] * rng.uniform(0.92, 1.06))
    bearded = style in ("bald", "short", "fringe") and rng.random() < 0.45
    return Person(
        cheek=rng.uniform(0.68, 0.82),
        jaw=rng.uniform(0.12, 0.38),
        yaw=float(np.clip(rng.normal(0, 0.38), -0.85, 0.85)),
        pitch=float(np.clip(rng.normal(0, 0.4), -1, 1)),
        tilt=float(np.clip(rng.normal(0, 0.16), -0.6, 0.6)),
        skin=scaled(skin, 1.0),
        hair=scaled(hair, rng.uniform(0.8, 1.2)),
        style=style,
        hat=str(rng.choice(HATS)) if rng.random() < 0.16 and style != "hood" else "",
        glasses=int(rng.choice((0, 1, 2), p=(0.78, 0.14, 0.08))),
        beard=int(rng.integers(1, 4)) if bearded else 0,
        mouth=rng.uniform(-1, 0.1) if rng.random() < 0.6 else rng.uniform(0, 1),
        smile=rng.uniform(-0.4, 1),
        closed_eyes=rng.random() < 0.08,
        clothes=(random_colour(rng), random_colour(rng)),
        shoulders=rng.uniform(1.75, 2.35),
        detail=int(rng.integers(1 << 31)),
        light=light,
        back=back,
    )


def random_colour(rng: Random) -> Colour:
    """Returns a colour: mostly muted, now and then bright."""
    grey = rng.uniform(25, 215)
    spread = 55.0 if rng.random() < 0.25 else 20.0
    blue, green, red = np.clip(grey + rng.normal(0, spread, 3), 8, 245)
    return float(blue), float(green), float(red)


def draw_torso(pen: Pen, person: Person) -> None:
    """Draws neck, shoulders and clothes. The pen's frame is the head's, not tilted."""
    rng = np.random.default_rng(person.detail)
    main, second = person.clothes
    s = person.shoulders
    outline = person.torso()
    pen.fill(outline[1:-1], main)
    kind = rng.integers(5)
    if kind == 0:  # stripes across the chest
        for y in np.arange(1.9, 6, 0.5):
            pen.fill(box(-s, y, s, y + 0.22), second)
    elif kind == 1:  # open jacket over a shirt, with a tie
        pen.fill([(-0.5, 1.25), (0.5, 1.25), (0.25, 3.4), (-0.25, 3.4)], WHITE)
        pen.fill([(-0.12, 1.45), (0.12, 1.45), (0.2, 3.2), (-0.2, 3.2)], second)
    elif kind == 2:  # straps of a bag or a dress
        pen.line([(-0.9 * s, 1.7), (0.4 * s, 5.0)], second, 0.2)
    elif kind == 3:  # a print
        pen.fill(arc(rng.uniform(-0.3, 0.3), 2.8, rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6)), second)
    for side in (-1, 1):  # sleeves
        pen.line([(side * 0.72 * s, 2.3), (side * 0.78 * s, 4.5)], scaled(main, 0.7), 0.07)
    x, y, strength = person.light
    steps = np.linspace(-1, 1, 8)
    gain = 1 + 0.22 * strength * x * steps[None, :] - 0.1 * np.abs(steps[None, :]) - 0.1 * steps[:, None] * abs(y)
    pen.shade(outline[2:-2], gain.astype(np.float32))
    neckline = rng.uniform(1.35, 1.75)
    skin = scaled(person.skin, 0.84)
    pen.fill([(-0.44, 0.5), (0.44, 0.5), (0.5, 1.25), (0.0, neckline), (-0.5, 1.25)], skin)
    pen.soft(arc(0, 0.98, 0.5, 0.3), scaled(person.skin, 0.45), 0.6, 0.12)  # the chin's shadow


def draw_head(pen: Pen, person: Person) -> None:
    """Draws hair, face and what is worn on them. The pen's frame is the head's, tilted."""
    rng = np.random.default_rng(person.detail + 1)
    before = pen.pixels.copy()
    _draw_back_hair(pen, person, rng)
    if person.back:
        _draw_nape(pen, person, rng)
    else:
        _draw_ears(pen, person)
        pen.fill(person.outline(), person.skin)
        _draw_face(pen, person, rng)
        _draw_front_hair(pen, person, rng)
    if person.hat:
        _draw_hat(pen, person, rng)
    pen.shade_changes(before, person.head(), _light_on_head(person))


def _light_on_head(person: Person) -> NDArray[np.float32]:
    """Returns gains [13, 13] over the head: a ball lit from one side."""
    x, y, strength = person.light
    across = np.linspace(-1, 1, 13)[None, :]
    down = np.linspace(-1, 1, 13)[:, None]
    falloff = 0.26 * np.clip(across**2 + 0.6 * down**2, 0, 1.4)
    return np.asarray(1.08 + 0.3 * strength * (x * across + 0.7 * y * down) - falloff, np.float32)


def _draw_back_hair(pen: Pen, person: Person, rng: Random) -> None:
    cheek, shift = person.cheek, -0.16 * person.yaw
    colour = scaled(person.hair, 0.75)
    if person.style == "bald":
        pen.fill(arc(shift, -0.18, cheek * 1.04, 0.98), scaled(person.skin, 0.95))
    elif person.style == "hood":
        fabric = person.clothes[1]
        pen.fill(np.concatenate([arc(shift, -0.1, cheek * 1.3, 1.32, -110, 110), [(1.1, 1.6), (-1.1, 1.6)]]), fabric)
    elif person.style in ("long", "medium"):
        low = rng.uniform(1.3, 1.9) if person.style == "long" else rng.uniform(0.7, 1.0)
        wide = cheek * rng.uniform(1.1, 1.3)
        hanging = [(wide, low), (0.6 * wide, low + 0.1), (-0.6 * wide, low + 0.1), (-wide, low)]
        pen.fill(np.concatenate([arc(shift, -0.15, cheek * 1.22, 1.16, -90, 90), hanging]), colour)
        if not person.back:
            neck = np.array([(-0.4, 0.6), (0.4, 0.6), (0.46, 1.3), (0.0, 1.5), (-0.46, 1.3)])
            pen.fill(neck, scaled(person.skin, 0.66))
    elif person.style == "curly":
        for angle in np.linspace(-120, 120, 13):
            x, y = arc(shift, -0.1, cheek * 1.15, 1.05, angle, angle + 1, 1)[0]
            pen.fill(arc(x, y, 0.3, 0.3, steps=10), scaled(person.hair, rng.uniform(0.65, 0.95)))
        pen.fill(arc(shift, -0.15, cheek * 1.2, 1.1), colour)
    else:
        pen.fill(arc(shift, -0.16, cheek * 1.12, 1.06), colour)
        if person.style == "bun":
            pen.fill(arc(shift + rng.uniform(-0.3, 0.3), -1.25, 0.32, 0.3), colour)


def _draw_nape(pen: Pen, person: Person, rng: Random) -> None:
    """The back of a head: hair down to the neck, ears, strands."""
    cheek = person.cheek
    _draw_ears(pen, person)
    bald = person.style == "bald"
    colour = person.skin if bald else person.clothes[1] if person.style == "hood" else person.hair
    pen.fill(arc(0, -0.12, cheek * 1.06, 1.06), colour)
    if not bald:
        pen.fill([(-0.75 * cheek, 0.4), (0.75 * cheek, 0.4), (0.6 * cheek, 1.05), (-0.6 * cheek, 1.05)], colour)
        _draw_strands(pen, colour, rng, lambda t: arc(0, -0.1, cheek * t, 0.95, -80, 80, 7), 7)


def _draw_ears(pen: Pen, person: Person) -> None:
    if person.style in ("long", "medium", "hood", "curly"):
        return
    for side in (-1, 1):
        if side * person.yaw < 0.35:  # the far ear is out of sight
            x = side * person.cheek * (1.02 - 0.12 * abs(person.yaw))
            pen.fill(arc(x, 0.02, 0.1, 0.22, steps=14), scaled(person.skin, 0.88))
            pen.fill(arc(x + 0.01 * side, 0.03, 0.045, 0.12, steps=10), scaled(person.skin, 0.68))


def _draw_face(pen: Pen, person: Person, rng: Random) -> None:
    """Draws what makes a face out of an oval."""
    yaw, cheek = person.yaw, person.cheek
    skin, shadow = person.skin, scaled(person.skin, 0.62)
    lip = mixed(scaled(skin, 0.8), (70, 60, 170), rng.uniform(0.25, 0.6))
    eye_y = -0.1 + 0.1 * person.pitch

    def across(u: float) -> float:
        """Where a point of the face, -1..1 from ear to ear, appears when the head is turned."""
        return cheek * (u * (1 - 0.18 * abs(yaw)) + 0.42 * yaw)

    for side in (-1, 1):
        pen.soft(arc(across(0.6 * side), 0.32, 0.2, 0.18), mixed(skin, (90, 90, 220), 0.5), 0.35, 0.12)
        pen.soft(arc(across(0.42 * side), eye_y - 0.03, 0.2, 0.15), shadow, 0.5, 0.08)
    pen.soft(arc(across(0), -0.55, 0.3, 0.2), scaled(skin, 1.18), 0.4, 0.15)
    _draw_beard(pen, person, across)
    for side in (-1, 1):
        near = 1 - 0.42 * max(0.0, yaw * side)
        _draw_eye(pen, person, across(0.42 * side), eye_y, near, rng)
        lift = rng.uniform(-0.03, 0.05)
        brow = np.array([(-0.19, 0.03 - lift * side), (0.0, -0.05), (0.19, 0.03 + lift * side)]) * (near, 1)
        brow += across(0.42 * side), eye_y - 0.21
        pen.line(brow, mixed(person.hair, shadow, 0.3), rng.uniform(0.05, 0.09))
    _draw_nose(pen, person, across, shadow)
    _draw_mouth(pen, person, across, lip)
    if person.glasses:
        _draw_glasses(pen, person, across, eye_y, rng)


def _draw_eye(pen: Pen, person: Person, x: float, y: float, near: float, rng: Random) -> None:
    rx = 0.155 * near
    lid = scaled(person.skin, 0.45)
    if person.closed_eyes:
        pen.line(arc(x, y, rx, 0.05, 100, 260, 8), lid, 0.035)
        return
    ry = 0.075 + 0.035 * max(0.0, person.mouth)
    pen.fill(arc(x, y, rx, ry, steps=14), WHITE)
    iris_x = x + 0.05 * person.yaw
    brown: Colour = (25, 45, 80) if rng.random() < 0.75 else (130, 110, 70)
    pen.fill(arc(iris_x, y, 0.075 * near, ry * 0.98, steps=12), brown)
    pen.fill(arc(iris_x, y, 0.038 * near, 0.042, steps=8), BLACK)
    pen.fill(arc(iris_x - 0.025, y - 0.025, 0.016, 0.016, steps=6), (255, 255, 255))
    pen.line(arc(x, y, rx * 1.05, ry * 1.1, -88, 88, 8), lid, 0.04)


def _draw_nose(pen: Pen, person: Person, across: Across, shadow: Colour) -> None:
    tip_x, tip_y = across(0) + 0.1 * person.yaw, 0.3 + 0.07 * person.pitch
    side = -1 if person.light[0] > 0 else 1
    bridge = across(0)
    pen.soft([(bridge, -0.15), (tip_x, tip_y), (tip_x + 0.16 * side, tip_y)], shadow, 0.6, 0.05)
    pen.soft(arc(tip_x, tip_y - 0.05, 0.07, 0.09, steps=10), scaled(person.skin, 1.25), 0.5, 0.05)
    pen.line(arc(tip_x, tip_y - 0.02, 0.14, 0.08, 95, 265, 8), shadow, 0.035)
    for nostril in (-1, 1):
        pen.fill(arc(tip_x + 0.07 * nostril, tip_y + 0.04, 0.032, 0.02, steps=6), scaled(shadow, 0.55))


def _draw_mouth(pen: Pen, person: Person, across: Across, lip: Colour) -> None:
    x, y = across(0) + 0.05 * person.yaw, 0.6 + 0.06 * person.pitch
    half = (0.26 + 0.08 * max(0.0, person.smile)) * (1 - 0.25 * abs(person.yaw))
    bend = 0.09 * person.smile
    spread = np.linspace(-1, 1, 9)
    upper = np.stack([x + half * spread, y - bend * spread**2 - 0.055 * (1 - spread**2)], axis=1)
    gape = 0.06 + 0.26 * max(0.0, person.mouth)
    lower = np.stack([x + half * spread, y - bend * spread**2 + gape * (1 - spread**2)], axis=1)
    pen.soft(np.add(lower, (0, 0.07)), scaled(person.skin, 0.6), 0.35, 0.05)
    pen.fill(np.concatenate([upper, lower[::-1]]), lip)
    if person.mouth > 0.1:
        inside = np.concatenate([upper * (1, 1) + (0, 0.04), (lower - (0, 0.05))[::-1]])
        pen.fill(inside, (35, 25, 70))
        teeth = np.stack([x + 0.8 * half * spread, y - bend * spread**2 + 0.02], axis=1)
        pen.line(teeth, WHITE, 0.06)
    else:
        seam = np.stack([x + half * spread, y - bend * spread**2 + 0.012 * (1 - spread**2)], axis=1)
        pen.line(seam, scaled(lip, 0.5), 0.03)


def _draw_beard(pen: Pen, person: Person, across: Across) -> None:
    x, y = across(0) + 0.04 * person.yaw, 0.6 + 0.06 * person.pitch
    if person.beard in (1, 3):
        chin = person.outline()
        chin = chin[chin[:, 1] > 0.25]
        inner = arc(x, 0.42, 0.5 * person.cheek, 0.16, 80, -80, 7)
        beard = np.concatenate([chin, inner[::-1]])
        pen.soft(beard, person.hair, 0.35 if person.beard == 1 else 0.92, 0.06)
    if person.beard in (2, 3):
        pen.fill([(x, y - 0.17), (x + 0.28, y + 0.02), (x, y - 0.07), (x - 0.28, y + 0.02)], person.hair)


def _draw_glasses(pen: Pen, person: Person, across: Across, eye_y: float, rng: Random) -> None:
    frame = BLACK if rng.random() < 0.7 else random_colour(rng)
    ry = rng.uniform(0.14, 0.2)
    for side in (-1, 1):
        near = 1 - 0.42 * max(0.0, person.yaw * side)
        lens = arc(across(0.42 * side), eye_y + 0.02, 0.235 * near, ry, steps=14)
        if person.glasses == 2:
            pen.fill(lens, (30, 25, 25))
            pen.soft(lens[:5], (200, 190, 180), 0.4, 0.03)
        pen.line(lens, frame, 0.035, closed=True)
        pen.line([(across(0.7 * side), eye_y), (across(side), eye_y - 0.03)], frame, 0.04)
    pen.line([(across(-0.14), eye_y), (across(0.14), eye_y)], frame, 0.04)


def _draw_front_hair(pen: Pen, person: Person, rng: Random) -> None:
    if person.style == "bald":
        return
    cheek, shift = person.cheek, -0.16 * person.yaw
    if person.style == "hood":
        fabric = person.clothes[1]
        outer = arc(shift, -0.1, cheek * 1.3, 1.3, -150, 150)
        inner = arc(0, 0.02, cheek * 0.97, 0.98, 150, -150)
        pen.fill(np.concatenate([outer, inner]), scaled(fabric, 0.92))
        return
    reach = rng.uniform(70, 88)
    depth = rng.uniform(0.62, 0.75) if person.style == "fringe" else rng.uniform(0.78, 1.0)
    parting = rng.uniform(-0.3, 0.3)
    outer = arc(shift, -0.16, cheek * 1.14, rng.uniform(1.04, 1.14), -100, 100, 20)
    inner = arc(0.3 * shift, 0.1, cheek * 0.95, depth, reach, -reach, 16)
    inner[:, 1] += 0.12 * np.sin(np.linspace(0, np.pi, 16) * 2 + parting * 6) * (depth < 0.95)
    pen.fill(np.concatenate([outer, inner]), person.hair)
    _draw_strands(pen, person.hair, rng, lambda t: arc(shift, -0.16, cheek * t, 1.1 * t, -70, 70, 7), 5)
    if person.style in ("long", "medium"):
        low = 1.1 if person.style == "long" else 0.6
        for side in (-1, 1):
            lock = np.array([(0.85 * cheek, -0.4), (1.18 * cheek, -0.4), (1.22 * cheek, low), (0.95 * cheek, low)])
            pen.fill(lock * (side, 1), scaled(person.hair, 0.9))


def _draw_strands(pen: Pen, colour: Colour, rng: Random, curve: Curve, count: int) -> None:
    for _ in range(count):
        strand = curve(rng.uniform(0.92, 1.08))
        first = int(rng.integers(0, 3))
        pen.line(strand[first : first + 4], scaled(colour, rng.uniform(0.7, 1.5)), 0.03)


def _draw_hat(pen: Pen, person: Person, rng: Random) -> None:
    cheek, shift = person.cheek, -0.1 * person.yaw
    colour, trim = person.clothes[1], scaled(person.clothes[1], 0.6)
    low = -0.72
    crown = arc(shift, low + 0.02, cheek * 1.2, rng.uniform(0.62, 0.78), -90, 90, 18)
    pen.fill(crown, colour)
    if person.hat == "cap" and not person.back:
        x = shift + 0.5 * person.yaw
        pen.fill(np.concatenate([arc(x, low, cheek * 1.1, 0.2, 90, 270, 12)]), trim)
    elif person.hat == "beanie":
        pen.fill(np.add(box(-1.2 * cheek, low - 0.16, 1.2 * cheek, low), (shift, 0)), trim)
    elif person.hat == "brim":
        pen.fill(arc(shift, low, cheek * 1.75, 0.16), trim)
    elif person.hat == "helmet":
        pen.line(arc(shift, low + 0.02, cheek * 1.2, 0.6, -90, 90, 12), trim, 0.1)
        for side in (-1, 1):
            pen.line([(side * cheek * 1.05, low), (side * cheek * 0.8, 0.85)], trim, 0.05)


def paint(
    picture: NDArray[np.uint8], person: Person, scale: float, centre: tuple[float, float], softness: float = 0.0
) -> None:
    """Draws a person into a picture [H, W, 3].

    Args:
        picture: Drawn on in place.
        person: The person.
        scale: Pixels per half face height.
        centre: x and y of the middle of the face, pixels.
        softness: Standard deviation of a blur over the head, pixels.
    """
    draw_torso(Pen(picture, scale, centre), person)
    height, width = picture.shape[:2]
    x1, x2 = int(np.floor(centre[0] - 1.9 * scale)), int(np.ceil(centre[0] + 1.9 * scale))
    y1, y2 = int(np.floor(centre[1] - 1.9 * scale)), int(np.ceil(centre[1] + 2.2 * scale))
    x1, y1, x2, y2 = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
    if x1 >= x2 or y1 >= y2:
        return
    region = picture[y1:y2, x1:x2]
    # Small heads are drawn larger and averaged down, as a lens would.
    factor = 1 if scale >= 36 else 2 if scale >= 18 else 4 if scale >= 9 else 8
    enlarged = region if factor == 1 else np.repeat(np.repeat(region, factor, axis=0), factor, axis=1)
    offset = (np.array(centre) - (x1, y1)) * factor
    draw_head(Pen(enlarged, scale * factor, offset, person.tilt), person)
    if factor > 1:
        region[:] = cv2.resize(enlarged, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
    if softness > 0.3:
        mask = np.zeros(region.shape[:2], np.uint8)
        Pen(mask, scale, np.array(centre) - (x1, y1), person.tilt).fill(person.head(), (255, 255, 255))
        _soften(region, mask, softness)


def _soften(region: NDArray[np.uint8], mask: NDArray[np.uint8], softness: float) -> None:
    """Blurs what a mask [h, w] covers, and its surroundings less and less."""
    mask = np.asarray(cv2.blur(mask, (2 * round(2 * softness) + 1,) * 2), np.uint8)
    weight = cv2.merge([mask, mask, mask])
    blurred = cv2.multiply(cv2.GaussianBlur(region, (0, 0), softness), weight, scale=1 / 255)
    region[:] = cv2.add(blurred, cv2.multiply(region, 255 - weight, scale=1 / 255))
