"""Turn three-dimensional models into the painted parts of a sprite.

Between the builders (cars, lorries, buildings) and the canvas: convex bodies are culled, lit and projected, face
by face.
Model frame: metres, x right, y up, z ahead. A decal is a polygon that lies on a face and is seen with it.
"""

import math
from collections.abc import Sequence

from cityopt.data.scenery.canvas import Part, Stage
from cityopt.data.scenery.outlines import hull
from cityopt.data.scenery.view import Color, Pose, Vec, centre_of, normal_of

Decal = tuple[list[Vec], Color]
Profile = Sequence[tuple[float, float]]
Rectangle = tuple[float, float, float, float, Color]  # left, bottom, right, top as shares of a face, and its colour
Strips = dict[int, tuple[Color | None, list[Rectangle]]]


def on_quad(quad: Sequence[Vec], left: float, bottom: float, right: float, top: float) -> list[Vec]:
    """Cut a rectangle from a quad (bottom left, bottom right, top right, top left) by shares 0 … 1 of its sides."""
    return [_within(quad, u, v) for u, v in ((left, bottom), (right, bottom), (right, top), (left, top))]


def _within(quad: Sequence[Vec], u: float, v: float) -> Vec:
    a, b, c, d = quad
    wa, wb, wc, wd = (1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v
    return (
        a[0] * wa + b[0] * wb + c[0] * wc + d[0] * wd,
        a[1] * wa + b[1] * wb + c[1] * wc + d[1] * wd,
        a[2] * wa + b[2] * wb + c[2] * wc + d[2] * wd,
    )


class Sculptor:
    """Collect the parts of one model that stands at `pose`."""

    def __init__(self, stage: Stage, pose: Pose) -> None:
        self.stage, self.pose = stage, pose
        self.parts: list[Part] = []

    def face(self, corners: list[Vec], inside: Vec, color: Color, decals: Sequence[Decal] = ()) -> bool:
        """Add a planar face of a body that contains the point `inside`, unless it looks away; tell whether it shows."""
        camera, light = self.stage.camera, self.stage.light
        world = self.pose.place(corners)
        normal = normal_of(world)
        middle, core = centre_of(world), self.pose.place([inside])[0]
        if sum(n * (m - c) for n, m, c in zip(normal, middle, core, strict=True)) < 0:
            normal = (-normal[0], -normal[1], -normal[2])
        if not camera.sees(middle, normal):
            return False
        depth = math.hypot(middle[0], middle[2])
        self.parts.append(Part(camera.outline(world), light.shade(color, normal, depth)))
        for points, decal_color in decals:
            shaded = (*light.shade(decal_color, normal, depth), *decal_color[3:])
            self.parts.append(Part(camera.outline(self.pose.place(points)), shaded, solid=False))
        return True

    def prism(
        self,
        profile: Profile,
        half_widths: Sequence[float],
        color: Color,
        sides: Sequence[Decal] = (),
        strips: Strips | None = None,
    ) -> None:
        """Add a convex body: a side profile of (z, y) corners, spread to both sides by a half width per corner.

        `sides` are decals of the right side (x > 0), mirrored to the left. `strips[i]` recolours the face between
        corners i and i + 1 and puts (left, bottom, right, top, colour) rectangles on it.
        """
        inside = (0.0, sum(y for _, y in profile) / len(profile), sum(z for z, _ in profile) / len(profile))
        for i in range(len(profile)):
            (z0, y0), (z1, y1) = profile[i], profile[(i + 1) % len(profile)]
            w0, w1 = half_widths[i], half_widths[(i + 1) % len(profile)]
            quad = [(-w0, y0, z0), (w0, y0, z0), (w1, y1, z1), (-w1, y1, z1)]
            own, rectangles = (strips or {}).get(i, (None, []))
            decals = [(on_quad(quad, *rectangle[:4]), rectangle[4]) for rectangle in rectangles]
            self.face(quad, inside, own or color, decals)
        for sign in (1.0, -1.0):
            corners = [(sign * w, y, z) for (z, y), w in zip(profile, half_widths, strict=True)]
            mirrored = [([(sign * x, y, z) for x, y, z in points], c) for points, c in sides]
            self.face(corners, inside, color, mirrored)

    def wheel(self, x: float, z: float, radius: float, hub: Color = (150, 152, 156)) -> None:
        """Add a wheel whose outer disc lies at `x`; the hub shows on the side that the camera sees."""
        camera, light = self.stage.camera, self.stage.light
        inner = x - math.copysign(0.24, x)
        discs = {at: self.pose.place(_disc(at, z, radius)) for at in (x, inner)}
        depth = discs[x][0][2]
        self.parts.append(Part(hull([p for disc in discs.values() for p in camera.outline(disc)]), (24, 24, 27)))
        outward = self.pose.place([(x, radius, z), (inner, radius, z)])
        normal = (outward[0][0] - outward[1][0], 0.0, outward[0][2] - outward[1][2])
        if camera.sees(outward[0], normal):
            disc = self.pose.place(_disc(x, z, radius * 0.62, radius))
            self.parts.append(Part(camera.outline(disc), light.hazed(hub, depth), solid=False))
            cap = self.pose.place(_disc(x, z, radius * 0.2, radius))
            self.parts.append(Part(camera.outline(cap), light.hazed((60, 60, 64), depth), solid=False))


def _disc(x: float, z: float, radius: float, middle: float | None = None) -> list[Vec]:
    y = radius if middle is None else middle
    return [(x, y + radius * math.sin(a), z + radius * math.cos(a)) for a in _ANGLES]


_ANGLES = tuple(i * math.pi / 7 for i in range(14))
