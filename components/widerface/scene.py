"""Composes a synthetic picture: the places of people, who hides whom, and the exact boxes."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from components.formats.wider import Face
from components.widerface.pen import Colour, Pen, Points, arc, scaled
from components.widerface.people import SKINS, Person, Random, paint, random_colour, random_person
from components.widerface.scenery import Picture, background, expose, hard_negatives

# Face heights are log-uniform between these shares of the picture's height.
SMALLEST, LARGEST = 0.06, 0.60
CROWD = (9, 15)  # faces in a crowd: from, to
FEW_WEIGHTS = (0.28, 0.2, 0.16, 0.12, 0.1, 0.08, 0.06)  # of 1, 2, … 7 faces
OVERLAPPED = 0.02  # share of the faces in crowds that are partly hidden by another person
COVERED = 0.045  # share of all faces with a hand or an object in front
HIDDEN = (0.06, 0.40)  # how much of such a face is hidden, from, to
COARSE = 4  # pixels per cell of the map on which places are searched
CANDIDATES = 400


@dataclass(slots=True)
class Place:
    """A person in a picture.

    Attributes:
        person: The person.
        scale: Pixels per half face height.
        centre: Middle of the face, pixels.
        box: x1, y1, x2, y2 of the face, pixels.
        cover: Polygons [N, 2] before the face and their colour, in the head's frame, not tilted.
    """

    person: Person
    scale: float
    centre: tuple[float, float]
    box: tuple[float, float, float, float]
    cover: list[tuple[Points, Colour]]

    def pen(self, picture: Picture, tilted: bool = False) -> Pen:
        """Returns a pen in the head's frame."""
        return Pen(picture, self.scale, self.centre, self.person.tilt if tilted else 0.0)


def draw_scene(rng: Random, crowd: bool | None, width: int, height: int) -> tuple[Picture, list[Face]]:
    """Draws a picture and returns it with its faces, farthest first.

    Args:
        rng: The picture's own generator.
        crowd: True for a crowd, False for a few people, None for no face at all.
        width: Pixels.
        height: Pixels.

    Returns:
        The picture [height, width, 3] uint8, BGR, and the faces, whose occlusion is measured on what was drawn.
    """
    angle = rng.uniform(0, 2 * np.pi)
    light = float(np.cos(angle)), -abs(float(np.sin(angle))), rng.uniform(0.2, 1.0)
    picture = background(rng, width, height)
    hard_negatives(picture, rng, int(rng.integers(2, 9) if crowd is None else rng.integers(0, 5)), light)
    places = _places(rng, crowd, light, width, height)
    softness = [place.scale * 2 * rng.uniform(0, 0.03) if rng.random() < 0.3 else 0.0 for place in places]
    for place, blur in zip(places, softness, strict=True):
        paint(picture, place.person, place.scale, place.centre, blur)
        for polygon, colour in place.cover:
            place.pen(picture).fill(polygon, colour)
    extreme = expose(picture, rng)
    hidden = _hidden_shares(places, width, height)
    faces = [_face(place, share, blur, extreme) for place, share, blur in zip(places, hidden, softness, strict=True)]
    return picture, faces


def _face(place: Place, hidden: float, blur: float, extreme: bool) -> Face:
    """Returns the annotation in WIDER FACE's terms: partial occlusion is 1 to 30 %, heavy is more."""
    left, top, right, bottom = place.box
    person = place.person
    relative_blur = blur / (2 * place.scale)
    return Face(
        (round(left), round(top), round(right - left), round(bottom - top)),
        blur=0 if relative_blur < 0.01 else 1 if relative_blur < 0.025 else 2,
        expression=int(person.mouth > 0.55),
        illumination=int(extreme),
        occlusion=0 if hidden < 0.01 else 1 if hidden <= 0.3 else 2,
        pose=int(abs(person.yaw) > 0.6 or abs(person.tilt) > 0.45),
    )


def _places(rng: Random, crowd: bool | None, light: tuple[float, float, float], width: int, height: int) -> list[Place]:
    """Finds places for people, nearest first, and returns them farthest first: the order of drawing."""
    if crowd is None:
        return []
    count = int(rng.integers(CROWD[0], CROWD[1] + 1)) if crowd else 1 + int(rng.choice(7, p=FEW_WEIGHTS))
    heights = height * np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), count))
    covered = np.zeros((-(-height // COARSE), -(-width // COARSE)), np.uint8)  # by nearer people
    places: list[Place] = []
    for index, face_height in enumerate(np.sort(heights)[::-1]):
        person = random_person(rng, light)
        x1, y1, x2, y2 = person.extent()
        scale = float(face_height / (y2 - y1))
        size = (x2 - x1) * scale, float(face_height)
        behind = crowd and (index == 1 or (index > 1 and rng.random() < OVERLAPPED))
        corner = _corner(rng, covered, size, places[int(rng.integers(len(places)))] if behind else None, crowd)
        if corner is None:
            continue
        left, top = corner
        box = (left, top, left + size[0], top + size[1])
        cover = _random_cover(rng, person) if not behind and rng.random() < COVERED else []
        place = Place(person, scale, (left - x1 * scale, top - y1 * scale), box, cover)
        for polygon, tilted in _silhouette(place):
            centre = np.array(place.centre) / COARSE
            Pen(covered[..., None], scale / COARSE, centre, person.tilt * tilted).stamp(polygon, 1)
        places.append(place)
    return places[::-1]


def _corner(
    rng: Random, covered: NDArray[np.uint8], size: tuple[float, float], nearer: Place | None, crowd: bool
) -> tuple[float, float] | None:
    """Returns the top left corner of a face of `size` (width, height), or None if there is no room.

    Args:
        rng: The picture's generator.
        covered: 1 where nearer people are, one cell for `COARSE` pixels.
        size: Width and height of the face, pixels.
        nearer: A person who shall hide a part of this face; None if the face shall be free.
        crowd: Large faces of a crowd stand low, so that their bodies leave room.
    """
    height, width = covered.shape[0] * COARSE, covered.shape[1] * COARSE
    w, h = size
    low = 0.74 * height - h if crowd and h > 0.22 * height else 0.02 * height
    left = rng.uniform(1, width - w - 1, CANDIDATES)
    top = rng.uniform(max(1.0, low), height - h - 1, CANDIDATES)
    if nearer is not None:
        x1, y1, x2, y2 = nearer.box
        left = rng.uniform(x1 - 0.9 * w, x2 - 0.1 * w, CANDIDATES)
        top = rng.uniform(y1 - 0.9 * h, y2 - 0.4 * h, CANDIDATES)
    inside = (left >= 1) & (top >= 1) & (left + w <= width - 1) & (top + h <= height - 1)
    total = cv2.integral(covered)
    columns = np.clip(np.stack([left, left + w]) / COARSE, 0, covered.shape[1])
    rows = np.clip(np.stack([top, top + h]) / COARSE, 0, covered.shape[0])
    (x1, x2), (y1, y2) = np.floor(columns).astype(int), np.floor(rows).astype(int)
    x2, y2 = np.minimum(x2 + 1, covered.shape[1]), np.minimum(y2 + 1, covered.shape[0])
    hidden = (total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1]) / ((x2 - x1) * (y2 - y1))
    wanted = inside & ((hidden >= HIDDEN[0]) & (hidden <= HIDDEN[1]) if nearer is not None else hidden == 0)
    if wanted.any():
        choice = int(np.argmax(wanted))
    else:
        choice = int(np.argmin(np.where(inside, hidden, 2.0)))
        if not inside[choice] or hidden[choice] > HIDDEN[1]:
            return None
    return float(left[choice]), float(top[choice])


def _silhouette(place: Place) -> list[tuple[Points, bool]]:
    """Returns polygons that hide others, in the head's frame, and whether each tilts with the head."""
    person = place.person
    return [(person.torso(), False), (person.head(), True), *((polygon, False) for polygon, _ in place.cover)]


def _random_cover(rng: Random, person: Person) -> list[tuple[Points, Colour]]:
    """Returns an object in front of the face that hides a share within `HIDDEN` of it, found by bisection."""
    kind = int(rng.integers(4))
    shapes = _hand(rng, person) if kind == 0 else _sheet(rng) if kind == 1 else _mug(rng) if kind == 2 else _stick(rng)
    angle = rng.uniform(0.25, 0.75) * 2 * np.pi  # from a side or from below
    direction = np.array([np.sin(angle), -np.cos(angle)])
    wanted, near, far = rng.uniform(*HIDDEN), 0.0, 3.0
    for _ in range(7):
        middle = (near + far) / 2
        moved = [(polygon + direction * middle, colour) for polygon, colour in shapes]
        near, far = (near, middle) if _covered_share(person, moved) < wanted else (middle, far)
    return [(polygon + direction * far, colour) for polygon, colour in shapes]


def _covered_share(person: Person, shapes: list[tuple[Points, Colour]]) -> float:
    mask = np.zeros((72, 72), np.uint8)
    Pen(mask[..., None], 30, (36, 36), person.tilt).stamp(person.outline(), 1)
    whole = cv2.countNonZero(mask)
    for polygon, _ in shapes:
        Pen(mask[..., None], 30, (36, 36)).stamp(polygon, 0)
    return 1 - cv2.countNonZero(mask) / whole


def _hand(rng: Random, person: Person) -> list[tuple[Points, Colour]]:
    skin = person.skin if rng.random() < 0.7 else SKINS[int(rng.integers(len(SKINS)))]
    turn = rng.uniform(-0.6, 0.6)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    forearm = np.array([(-0.22, 0.2), (0.22, 0.2), (0.35, 3.0), (-0.35, 3.0)])
    shapes = [(forearm, scaled(skin, 0.82)), (arc(0, 0, 0.4, 0.45), scaled(skin, 0.92))]
    for x in (-0.28, -0.1, 0.09, 0.27):
        shapes.append((arc(x, -0.5, 0.09, 0.4, steps=12), scaled(skin, rng.uniform(0.86, 1.0))))
    return [(polygon @ rotation, colour) for polygon, colour in shapes]


def _sheet(rng: Random) -> list[tuple[Points, Colour]]:
    """A book, a phone, a board."""
    w, h, slant = rng.uniform(0.4, 1.6), rng.uniform(0.5, 1.4), rng.normal(0, 0.15)
    edge = np.array([(-w, -h), (w, -h + slant), (w, h + slant), (-w, h)])
    return [(edge, random_colour(rng)), (edge * 0.85, random_colour(rng))]


def _mug(rng: Random) -> list[tuple[Points, Colour]]:
    """A mug, a ball, a balloon."""
    colour = random_colour(rng)
    return [(arc(0, 0, 0.55, rng.uniform(0.5, 0.8)), colour), (arc(-0.12, -0.15, 0.3, 0.3), scaled(colour, 1.25))]


def _stick(rng: Random) -> list[tuple[Points, Colour]]:
    """A microphone, an ice cream."""
    colour = random_colour(rng)
    return [
        (np.array([(-0.12, 0), (0.12, 0), (0.2, 2.4), (-0.2, 2.4)]), scaled(colour, 0.5)),
        (arc(0, 0, 0.36, 0.42), colour),
    ]


def _hidden_shares(places: list[Place], width: int, height: int) -> list[float]:
    """Returns which share of each face lies under what was drawn after it, measured in whole pixels."""
    owner = np.zeros((height, width), np.uint8)
    areas = []
    for number, place in enumerate(places, start=1):
        canvas = owner[..., None]
        place.pen(canvas).stamp(place.person.torso(), 0)
        place.pen(canvas, tilted=True).stamp(place.person.head(), 0)
        place.pen(canvas, tilted=True).stamp(place.person.outline(), number)
        areas.append(int((owner == number).sum()))
        for polygon, _ in place.cover:
            place.pen(canvas).stamp(polygon, 0)
    seen = np.bincount(owner.ravel(), minlength=len(places) + 1)
    return [1 - seen[number] / area for number, area in enumerate(areas, start=1)]
