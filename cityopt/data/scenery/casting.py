"""Who is in a scene, and where: counts per class, lanes and pavements, no two things on one spot.

Between the street and the builders of things. Rare classes come by schedule rather than by luck, so that a
holdout of 30 images already has them all; which ones a scene gets depends on the seed and its number alone.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cityopt.data.scenery.canvas import Sprite, Stage
from cityopt.data.scenery.cars import build_car, build_caravan, build_trailer
from cityopt.data.scenery.figures import (
    build_bicycle,
    build_bicycle_group,
    build_motorcycle,
    build_person,
    build_person_group,
)
from cityopt.data.scenery.lorries import build_bus, build_train, build_truck
from cityopt.data.scenery.street import Street, tram_lanes
from cityopt.data.scenery.view import Pose

# Share of the images that a guest appears in, and the step of its golden-ratio-like sequence over image numbers.
GUESTS: dict[str, tuple[float, float]] = {
    "train": (0.26, math.sqrt(2)), "bus": (0.26, math.sqrt(3)), "truck": (0.30, math.sqrt(5)),
    "motorcycle": (0.40, math.sqrt(7)), "bicycle": (0.55, math.sqrt(11)), "persongroup": (0.12, math.sqrt(13)),
    "cargroup": (0.10, math.sqrt(17)), "bicyclegroup": (0.10, math.sqrt(19)), "caravan": (0.04, math.sqrt(23)),
    "trailer": (0.04, math.sqrt(29)), "nobody": (0.03, math.sqrt(31)),
}  # fmt: skip
# Half width, height and half length, in metres, for shadows and for finding room.
SIZES: dict[str, tuple[float, float, float]] = {
    "car": (0.95, 1.55, 2.3), "truck": (1.25, 3.5, 4.2), "bus": (1.28, 3.2, 5.7), "train": (1.3, 3.5, 11.0),
    "caravan": (1.0, 2.5, 2.5), "trailer": (1.0, 1.15, 1.3), "person": (0.3, 1.75, 0.25),
    "bicycle": (0.25, 1.75, 0.9), "motorcycle": (0.35, 1.75, 1.05), "group": (1.8, 1.75, 1.5),
}  # fmt: skip
Footprint = tuple[list[tuple[float, float]], float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Casting:
    """The guests of one scene; `along` says whether its tram follows the street or crosses it."""

    guests: frozenset[str]
    along: bool = True

    def wants(self, guest: str) -> bool:
        """Tell whether this guest is to appear."""
        return guest in self.guests and "nobody" not in self.guests


def draw_casting(seed: int, number: int) -> Casting:
    """Choose the guests of image `number`: each appears at a steady rate, never far from its share."""
    offsets = random.Random(seed)
    guests = {name for name, (share, step) in GUESTS.items() if (offsets.random() + number * step) % 1 < share}
    return Casting(frozenset(guests), along=number % 2 == 0)


@dataclass(slots=True)
class Things:
    """Sprites in order of placement, footprints on the ground, and the boxes that are taken on the canvas."""

    sprites: list[Sprite] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


Spot = Callable[[], Pose]
TwoWheeler = Callable[[Stage, float, float, float, bool], list[Sprite]]


class _Placer:
    """Try spots until one is inside the picture and not much hidden by what stands already."""

    def __init__(self, stage: Stage, street: Street, height: int, width: float) -> None:
        self.stage, self.street, self.rng = stage, street, stage.rng
        self.height, self.width = float(height), width
        self.things = Things()

    def place(self, size: str, spot: Spot, build: Callable[[Pose], Sequence[Sprite]], overlap: float = 0.3) -> bool:
        half, height, reach = SIZES[size]
        for _ in range(20):
            pose = spot()
            corners = pose.place([(-half, 0, -reach), (half, 0, -reach), (half, 0, reach), (-half, 0, reach)])
            box = self._box(corners, height)
            if min(z for _, _, z in corners) > 5.2 and self._fits(box, overlap):
                self.things.boxes.append(box)
                self.things.footprints.append(([(x, z) for x, _, z in corners], height))
                self.things.sprites += build(pose)
                return True
        return False

    def _box(self, corners: Sequence[tuple[float, float, float]], height: float) -> Box:
        points = self.stage.camera.outline([(x, y, z) for x, _, z in corners for y in (0.0, height)])
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return min(xs), min(ys), max(xs), max(ys)

    def _fits(self, box: Box, overlap: float) -> bool:
        left, top, right, bottom = box
        visible = (min(right, self.width) - max(left, 0)) * (min(bottom, self.height * 0.95) - max(top, 0))
        area = (right - left) * (bottom - top)
        if min(right, self.width) - max(left, 0) <= 0 or visible < 0.45 * area:
            return False
        return all(_shared(box, other) < overlap for other in self.things.boxes)


def _shared(a: Box, b: Box) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return wide * tall / smaller if wide > 0 and tall > 0 else 0.0


def cast_things(stage: Stage, street: Street, casting: Casting, canvas_size: tuple[int, int]) -> Things:
    """Place everything that moves or parks; "nobody" leaves the street empty. `canvas_size` is (height, width)."""
    placer = _Placer(stage, street, *canvas_size)
    if "nobody" in casting.guests:
        return placer.things
    _place_large(placer, casting)
    _place_groups(placer, casting)
    _place_two_wheelers(placer, casting)
    rng = stage.rng
    for _ in range(rng.choice((1, 2, 3, 3, 4, 5))):
        placer.place("car", lambda: _car_spot(placer, 9, 28), lambda pose: [build_car(stage, pose)])
    for _ in range(rng.choice((0, 1, 2, 3, 4, 5))):
        placer.place("person", lambda: _walk_spot(placer, 7.0, 13), lambda pose: [_anyone(stage, pose)])
    for _ in range(rng.randint(0, 2)):
        placer.place("car", lambda: _car_spot(placer, 32, 65), lambda pose: [build_car(stage, pose)])
    for _ in range(rng.randint(1, 3)):
        placer.place("person", lambda: _walk_spot(placer, 18, 40), lambda pose: [_anyone(stage, pose)])
    return placer.things


def _anyone(stage: Stage, pose: Pose) -> Sprite:
    return build_person(stage, pose.x, pose.z, stage.rng.choice((0.92, 0.97, 1.0, 1.05, 0.7)))


def _place_large(placer: _Placer, casting: Casting) -> None:
    stage = placer.stage
    if casting.wants("train"):
        placer.place("train", lambda: _tram_spot(placer, casting.along), lambda pose: [build_train(stage, pose)], 0.5)
    if casting.wants("bus"):
        placer.place("bus", lambda: _lorry_spot(placer), lambda pose: [build_bus(stage, pose)])
    if casting.wants("truck"):
        placer.place("truck", lambda: _lorry_spot(placer), lambda pose: [build_truck(stage, pose)])
    for name, build in (("caravan", build_caravan), ("trailer", build_trailer)):
        if casting.wants(name):
            placer.place(name, lambda: _parked_spot(placer, 10, 28), partial(_one, stage, build))


def _one(stage: Stage, build: Callable[[Stage, Pose], Sprite], pose: Pose) -> list[Sprite]:
    return [build(stage, pose)]


def _place_two_wheelers(placer: _Placer, casting: Casting) -> None:
    stage, rng = placer.stage, placer.rng
    for name, build in (("motorcycle", build_motorcycle), ("bicycle", build_bicycle)):
        for _ in range(rng.choice((1, 1, 2)) if casting.wants(name) else 0):
            ridden = rng.random() < 0.6
            placer.place(
                name,
                (lambda: _ride_spot(placer)) if ridden else (lambda: _walk_spot(placer, 7.4, 14.0, turned=True)),
                partial(_two_wheeler, stage, build, ridden),
            )


def _two_wheeler(stage: Stage, build: TwoWheeler, ridden: bool, pose: Pose) -> list[Sprite]:
    return build(stage, pose.x, pose.z, pose.heading - math.pi / 2, ridden)


def _place_groups(placer: _Placer, casting: Casting) -> None:
    stage = placer.stage
    if casting.wants("persongroup"):
        placer.place("group", lambda: _walk_spot(placer, 16, 34), lambda p: [build_person_group(stage, p.x, p.z)])
    if casting.wants("bicyclegroup"):
        placer.place("group", lambda: _walk_spot(placer, 10, 22), lambda p: [build_bicycle_group(stage, p.x, p.z)])
    if casting.wants("cargroup"):
        placer.place("car", lambda: _parked_spot(placer, 40, 70), lambda p: [_car_group(stage, p)])


def _car_group(stage: Stage, pose: Pose) -> Sprite:
    cars = [build_car(stage, Pose(pose.x, pose.z + 5.4 * i, pose.heading)) for i in (3, 2, 1, 0)]
    return Sprite("cargroup", pose.z, [part for car in cars for part in car.parts])


def _within_view(x: float, z: float) -> float:
    """Pull x into the field of view at this distance."""
    return max(-0.40 * z, min(0.40 * z, x))


def _car_spot(placer: _Placer, near: float, far: float) -> Pose:
    rng, street = placer.rng, placer.street
    mode = rng.choices(("ahead", "oncoming", "parked", "across"), (2, 3, 4, 3 if street.crossing else 0))[0]
    z = near * (far / near) ** rng.random()
    if mode == "ahead":
        return Pose(rng.uniform(-0.3, 0.5), z + 2, rng.uniform(-0.05, 0.05))
    if mode == "oncoming":
        return Pose(2 * street.centre + rng.uniform(-0.3, 0.2), z, math.pi + rng.uniform(-0.05, 0.05))
    return _across_spot(placer) if mode == "across" else _parked_spot(placer, near, far)


def _parked_spot(placer: _Placer, near: float, far: float) -> Pose:
    rng, street = placer.rng, placer.street
    z, turn = near * (far / near) ** rng.random(), rng.uniform(-0.06, 0.06)
    if street.rails or rng.random() < 0.5:
        return Pose(street.kerbs[1] + (-0.95 if street.kerbs[1] > 3.3 else 0.9), z, turn)
    return Pose(street.kerbs[0] + (1.05 if street.kerbs[0] < -6.4 else -0.7), z, math.pi * rng.randint(0, 1) + turn)


def _across_spot(placer: _Placer) -> Pose:
    rng, (near, far) = placer.rng, placer.street.crossing or (20.0, 28.0)
    rightward = rng.random() < 0.5
    z = near + (far - near) * (0.28 if rightward else 0.72)
    return Pose(rng.uniform(-0.38, 0.38) * z, z, (math.pi / 2 if rightward else -math.pi / 2) + rng.uniform(-0.1, 0.1))


def _lorry_spot(placer: _Placer) -> Pose:
    rng, street = placer.rng, placer.street
    if street.crossing and rng.random() < 0.5:
        return _across_spot(placer)
    z = rng.uniform(15, 32)
    if rng.random() < 0.5:
        return Pose(2 * street.centre - 0.2, z, math.pi + rng.uniform(-0.05, 0.05))
    return Pose(rng.uniform(-0.2, 0.7), z + 2, rng.uniform(-0.08, 0.08))


def _tram_spot(placer: _Placer, along: bool) -> Pose:
    rng, street = placer.rng, placer.street
    if along or not street.crossing:
        return Pose(tram_lanes(street)[0], rng.uniform(23, 38), math.pi * rng.randint(0, 1))
    near, far = street.crossing
    return Pose(rng.uniform(-6, 6), (near + far) / 2, rng.choice((-1, 1)) * math.pi / 2)


def _walk_spot(placer: _Placer, near: float, far: float, turned: bool = False) -> Pose:
    """Somewhere on a pavement, now and then on the road."""
    rng, street = placer.rng, placer.street
    z = near * (far / near) ** rng.random()
    side = rng.randint(0, 1)
    lo, hi = sorted((street.kerbs[side], street.fronts[side]))
    x = rng.uniform(lo + 0.4, hi - 0.4) if rng.random() < 0.8 else rng.uniform(*street.kerbs)
    turn = rng.choice((0.0, math.pi)) + rng.uniform(-0.7, 0.7) if turned else 0.0
    return Pose(_within_view(x, z), z, math.pi / 2 + turn)


def _ride_spot(placer: _Placer) -> Pose:
    """Somewhere on the road, riding across or at an angle."""
    rng = placer.rng
    z = 7.4 * (14.0 / 7.4) ** rng.random()
    turn = rng.choice((0.0, math.pi)) + rng.choice((-1, 1)) * rng.uniform(0.0, 1.0)
    return Pose(_within_view(rng.uniform(placer.street.kerbs[0], placer.street.kerbs[1]), z), z, math.pi / 2 + turn)
