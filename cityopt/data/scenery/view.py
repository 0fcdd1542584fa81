"""Camera and light of a synthetic street scene, and small vector and colour arithmetic.

First step of the flow view → canvas → (street, buildings, cars, figures …) → scene → synthetic. Plain Python floats:
for polygons of four corners they are several times faster than arrays.

World frame: metres, x right, y up from the ground, z forward; the camera stands at (0, height, 0).
Canvas frame: pixels of the supersampled canvas, x right, y down.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

Vec = tuple[float, float, float]
Point = tuple[float, float]
Color = tuple[int, ...]

NEAR_M = 3.0


def mix(a: Color, b: Color, share_of_b: float) -> Color:
    """Blend two RGB colours; a share of 0 gives `a`, 1 gives `b`."""
    t = share_of_b
    return int(a[0] + (b[0] - a[0]) * t), int(a[1] + (b[1] - a[1]) * t), int(a[2] + (b[2] - a[2]) * t)


def scaled(color: Color, factor: float) -> Color:
    """Brighten or darken an RGB colour by a factor >= 0, clipped at 255."""
    r, g, b = int(color[0] * factor), int(color[1] * factor), int(color[2] * factor)
    return r if r < 255 else 255, g if g < 255 else 255, b if b < 255 else 255


def jittered(color: Color, rng: random.Random, spread: float = 0.12) -> Color:
    """Vary an RGB colour in brightness, and a little in hue."""
    factor = 1 + rng.uniform(-spread, spread)
    return tuple(max(0, min(255, round(x * factor * (1 + rng.uniform(-spread, spread) / 3)))) for x in color)


def normal_of(corners: list[Vec]) -> Vec:
    """Compute the unit normal of a planar polygon from its first three corners; its sign follows their order."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners[:3]
    ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    length = math.sqrt(x * x + y * y + z * z) or 1.0
    return x / length, y / length, z / length


def centre_of(corners: Iterable[Vec]) -> Vec:
    """Average the corners."""
    xs, ys, zs = zip(*corners, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys), sum(zs) / len(zs)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera that looks along z; `focal`, `cx` and `horizon` in canvas pixels, `height` in metres."""

    focal: float
    cx: float
    horizon: float
    height: float

    def outline(self, points: Iterable[Vec]) -> list[Point]:
        """Project a polygon in the world to the canvas; what lies behind the near plane is pushed onto it."""
        focal, cx, horizon, height = self.focal, self.cx, self.horizon, self.height
        projected = []
        for x, y, z in points:
            k = focal / (z if z > NEAR_M else NEAR_M)
            projected.append((cx + k * x, horizon + k * (height - y)))
        return projected

    def frames(self, x: float, z: float, reach_m: float) -> bool:
        """Tell whether something at (x, z) that reaches so far to both sides can be in the picture."""
        return z > NEAR_M and (abs(x) - reach_m) * self.focal < self.cx * z

    def sees(self, corner: Vec, normal: Vec) -> bool:
        """Tell whether a face with this outward normal shows its front."""
        return normal[0] * corner[0] + normal[1] * (corner[1] - self.height) + normal[2] * corner[2] < 0


@dataclass(frozen=True, slots=True)
class Light:
    """Sun, sky and haze; `sun` points to the sun, strengths are factors on surface colours."""

    sun: Vec
    sun_strength: float
    ambient: float
    tint: tuple[float, float, float]
    haze: Color
    haze_m: float
    zenith: Color
    clouds: float

    def shade(self, color: Color, normal: Vec, depth_m: float) -> Color:
        """Light a surface: ambient from above, sun by Lambert's law, haze with the distance."""
        x, y, z = self.sun
        sun = max(0.0, normal[0] * x + normal[1] * y + normal[2] * z)
        factor = self.ambient * (0.86 + 0.14 * normal[1]) + self.sun_strength * sun
        return self.hazed(scaled(color, factor), depth_m)

    def hazed(self, color: Color, depth_m: float) -> Color:
        """Fade a colour into the haze; a fourth channel (alpha) is kept."""
        return (*mix(color, self.haze, 1 - math.exp(-max(depth_m, 0.0) / self.haze_m)), *color[3:])


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a model stands: its origin on the ground and its heading, 0 = away from the camera, in radians."""

    x: float
    z: float
    heading: float = 0.0

    def place(self, points: Iterable[Vec]) -> list[Vec]:
        """Move model points (x right, y up, z ahead of the model, in metres) to the world."""
        c, s = math.cos(self.heading), math.sin(self.heading)
        return [(self.x + x * c + z * s, y, self.z - x * s + z * c) for x, y, z in points]


WEATHERS: tuple[tuple[float, float, tuple[float, float, float], Color, float, Color, float], ...] = (
    # sun, ambient, tint, haze, haze distance (m), zenith, clouds
    (0.60, 0.82, (1.04, 1.00, 0.95), (196, 212, 228), 320, (74, 128, 196), 0.45),  # clear
    (0.12, 1.10, (0.98, 1.00, 1.03), (208, 213, 218), 200, (166, 178, 190), 0.80),  # overcast
    (0.62, 0.90, (1.09, 1.00, 0.87), (236, 212, 178), 230, (104, 140, 190), 0.50),  # low sun
    (0.28, 1.00, (1.01, 1.00, 0.98), (214, 216, 214), 120, (178, 192, 204), 0.30),  # hazy
)


def draw_light(rng: random.Random) -> Light:
    """Choose the weather and the sun's place for one scene."""
    sun, ambient, tint, haze, haze_m, zenith, clouds = rng.choices(WEATHERS, (4, 3, 2, 1.5))[0]
    azimuth, elevation = rng.uniform(0.6, 5.7), rng.uniform(0.45, 1.0)  # never straight ahead, where it would blind
    toward = (
        math.sin(azimuth) * math.cos(elevation),
        math.sin(elevation),
        math.cos(azimuth) * math.cos(elevation),
    )
    return Light(toward, sun, ambient, tint, jittered(haze, rng, 0.04), haze_m, jittered(zenith, rng, 0.08), clouds)


def draw_camera(height: int, width: int, rng: random.Random) -> Camera:
    """Mount the camera for a canvas of `height` x `width` pixels: a field of view of 45 degrees, near Cityscapes."""
    focal = 1.2 * min(width, 2.2 * height)
    return Camera(focal, width / 2, height * rng.uniform(0.40, 0.46), rng.uniform(1.55, 1.85))
