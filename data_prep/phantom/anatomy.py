"""A procedural torso in Hounsfield units: what `phantom` draws.

Everything is a formula of the position in mm: x to the patient's left, y to the back, z to the
head, 0 in the middle of the torso's cross-section and z in 0…1 from the kidneys to the collar
bones. Organs are painted one over the other; a smooth displacement of the coordinates that
changes with the patient and slowly with z makes their outlines look grown.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Plane = Float[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]
Values = Float[np.ndarray, " n"]

FIELD_OF_VIEW_MM = 380.0
LENGTH_MM = 360.0


@dataclass(frozen=True)
class Ellipsoid:
    """An organ: centre and semi-axes (x, y in mm; z as a fraction of the torso), HU, edge power."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    hu: float
    turn: float = 0.0
    power: float = 2.0

    def level(self, x: Plane, y: Plane, z: float) -> Plane:
        """Below 1 inside; the distance from the centre in units of the surface."""
        (cx, cy, cz), (ax, ay, az) = self.centre, self.axes
        cosine, sine = np.cos(self.turn), np.sin(self.turn)
        u = ((x - cx) * cosine + (y - cy) * sine) / ax
        v = ((y - cy) * cosine - (x - cx) * sine) / ay
        w = abs(z - cz) / az
        return np.abs(u) ** self.power + np.abs(v) ** self.power + w**2


class Patient:
    """One patient's anatomy, a pure function of the seed.

    `draw(z, size)` returns a noise-free slice and the places for a lesion.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.rng = rng
        size = rng.normal(1.0, 0.07)
        self.width = min(158 * size * rng.uniform(0.95, 1.08), 168.0)
        self.depth = 108 * size * rng.uniform(0.92, 1.08)
        self.fat = rng.uniform(6, 24)
        self.offset = rng.normal((0, -8), 6)
        self.roll = rng.normal(0, 0.03)
        self.waves = rng.uniform(0, 2 * np.pi, (2, 4, 3))
        self.wave_mm = rng.uniform(2.0, 4.5)
        contrast = rng.uniform(0, 1) if rng.uniform() < 0.7 else 0.0
        self.blood = 45 + 190 * contrast
        self.marrow = rng.uniform(120, 240)
        self.lung_hu = rng.uniform(-890, -820)
        self.rib_phase = rng.uniform(0, 1)
        self.heart = _jitter(
            rng, (14.0, -22.0, 0.50), (54.0, 44.0, 0.17), 40.0 + 110.0 * contrast, -0.5
        )
        self.liver = _jitter(
            rng, (-52.0, -8.0, 0.20), (84.0, 66.0, 0.27), 58.0 + 50.0 * contrast, 0.15
        )
        self.spleen = _jitter(
            rng, (84.0, 40.0, 0.24), (22.0, 40.0, 0.15), 50.0 + 70.0 * contrast, -0.5
        )
        self.stomach = _jitter(rng, (52.0, -32.0, 0.22), (42.0, 30.0, 0.15), 12.0, 0.3)
        self.kidneys = [
            _jitter(rng, (s * 62.0, 42.0, z), (24.0, 30.0, 0.14), 32.0 + 140.0 * contrast, s * 0.5)
            for s, z in ((-1.0, 0.03), (1.0, 0.07))
        ]
        self.gall = _jitter(rng, (-42.0, -48.0, 0.10), (14.0, 18.0, 0.06), 8.0, 0.0)
        self.lungs = [
            Ellipsoid(
                (side * 0.50 * self.width, 2.0 + rng.normal(0.0, 3.0), 0.66),
                (0.385 * self.width, 0.80 * self.depth, 0.385),
                self.lung_hu,
                turn=side * 0.10,
                power=2.4,
            )
            for side in (-1.0, 1.0)
        ]
        self.bowel = [
            Ellipsoid(
                (rng.uniform(-80, 80), rng.uniform(-70, 5), rng.uniform(-0.1, 0.12)),
                (rng.uniform(10, 20), rng.uniform(9, 16), rng.uniform(0.05, 0.1)),
                rng.choice([-850.0, 25.0, 25.0, 150.0]),
                turn=rng.uniform(0, 3),
            )
            for _ in range(14)
        ]
        self.vessels = [tree for side in (-1, 1) for tree in self._grow(side)]
        self.texture = rng.normal(size=(6, 24, 24, 24)).astype(np.float32)

    def _grow(self, side: int) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
        """Grows a lung's vessels from the hilum: (start, end, radius, radius at the end) in mm."""
        segments, rng = [], self.rng
        hilum = np.array([side * 30.0, 6.0, 0.62 * LENGTH_MM])
        queue = []
        for _ in range(9):
            aim = np.array(
                [side * abs(rng.normal(0.8, 0.5)), rng.normal(0, 0.8), 1.3 * rng.normal()]
            )
            queue.append((hilum + rng.normal(0, 6, 3), aim / np.linalg.norm(aim), 3.8, 0))
        while queue:
            start, aim, radius, depth = queue.pop()
            end = start + aim * rng.uniform(16, 30)
            segments.append((start, end, radius, radius * 0.78))
            if depth < 5:
                for _ in range(2):
                    turn = aim + rng.normal(0, 0.45, 3)
                    queue.append((end, turn / np.linalg.norm(turn), radius * 0.74, depth + 1))
        return segments

    def draw(self, z: float, size: int) -> tuple[Plane, Mask, Mask]:
        """Returns HU without noise, the lung, and the soft organs, at height z (0…1)."""
        step = FIELD_OF_VIEW_MM / size
        axis = (np.arange(size) - (size - 1) / 2) * step
        x, y = self._coordinates(axis - self.offset[0], axis - self.offset[1], z)
        shoulder = 1 + 0.10 * np.clip((z - 0.75) / 0.25, 0, 1)
        width, depth = self.width * shoulder, self.depth * (1 - 0.12 * max(0.0, z - 0.8) / 0.2)
        radius = (np.abs(x / width) ** 2.5 + np.abs(y / depth) ** 2.5) ** 0.4
        inside_mm = (1 - radius) * depth
        muscle_mm = inside_mm - self.fat * (1 + 0.45 * np.clip(-y / depth, -1, 1))

        hu = np.full((size, size), -1000.0)
        self._table(hu, axis)
        hu[inside_mm > 0] = 30
        hu[inside_mm > 2] = -105
        hu[muscle_mm > 0] = 52
        wall = 15.0
        core = muscle_mm > wall
        hu[core] = -95
        lung, soft = self._organs(hu, x, y, z, core)
        self._ribs(hu, x, y, z, muscle_mm, wall)
        self._spine(hu, x, y, z, depth)
        lung &= hu < -300
        return hu, lung, soft & (hu > -20) & (hu < 200)

    def _coordinates(self, across: Values, down: Values, z: float) -> tuple[Plane, Plane]:
        """Returns x and y of every pixel: the grid, bent by long waves and rolled a little."""
        x, y = np.meshgrid(across, down)
        for grid, waves in ((x, self.waves[0]), (y, self.waves[1])):
            for k, (a, b, c) in enumerate(waves):
                length = 34.0 + 22 * k
                row = np.sin(across / length + a + 5 * z)
                grid += self.wave_mm * np.outer(np.cos(down / length + b - 4 * z + c), row)
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        return x * cosine + y * sine, y * cosine - x * sine

    def _organs(self, hu: Plane, x: Plane, y: Plane, z: float, core: Mask) -> tuple[Mask, Mask]:
        lung = np.zeros(hu.shape, bool)
        for organ in self.lungs:
            inside = (organ.level(x, y, z) < 1) & core
            inside &= np.abs(x) > 18 + 10 * np.exp(-(((z - 0.6) / 0.15) ** 2))
            hu[inside] = organ.hu + 0.6 * (y[inside] + 60) + 40 * self._noise(0, x, y, z, inside)
            lung |= inside
        self._lung_vessels(hu, x, y, z, lung)
        soft = np.zeros(hu.shape, bool)
        mediastinum = (np.abs(x) < 34) & (y > -60) & (y < 40) & core & ~lung & (z > 0.42)
        hu[mediastinum] = 20 + 45 * self._noise(1, x, y, z, mediastinum)
        for organ in (self.liver, self.spleen, *self.kidneys):
            level = organ.level(x, y, z)
            inside = (level < 1) & core
            hu[inside] = organ.hu + 9 * self._noise(2, x, y, z, inside)
            if organ in self.kidneys:
                hu[inside & (level < 0.28)] = -60
                hu[inside & (level < 0.28) & (np.abs(x) < abs(organ.centre[0]))] = -90
            else:
                branches = inside & (level < 0.8)
                branches[branches] = self._noise(3, x, y, z, branches) > 1.25
                hu[branches] = 0.35 * organ.hu + 0.65 * max(self.blood, 65)
            lung &= ~inside
            soft |= inside
        for loop in (self.gall, *(self.bowel if z < 0.2 else ())):
            level = loop.level(x, y, z)
            free = core & ~soft & ~lung
            hu[free & (level < 1.35)] = 38
            hu[free & (level < 1)] = loop.hu
        level = self.stomach.level(x, y, z)
        free = core & ~soft
        lung &= ~(free & (level < 1.25))
        hu[free & (level < 1.25)] = 45
        content = free & (level < 1)
        hu[content] = self.stomach.hu + 14 * self._noise(4, x, y, z, content)
        hu[content & (y < self.stomach.centre[1] - 8)] = -980
        level = self.heart.level(x, y, z)
        inside = (level < 1) & core
        hu[inside] = 48
        chamber = inside & (level < 0.72) & (np.abs(x - self.heart.centre[0] - 0.25 * y) > 5)
        hu[chamber] = self.heart.hu
        hu[core & (level >= 1) & (level < 1.12) & ~lung & (z > 0.42)] = -80
        lung &= ~inside
        soft |= inside
        self._pipes(hu, x, y, z)
        return lung, soft

    def _pipes(self, hu: Plane, x: Plane, y: Plane, z: float) -> None:
        """Great vessels, windpipe and gullet, which run through many slices."""
        back = 0.42 * self.depth
        pipes = [(20.0, back - 2, 11.5 + 2 * z, self.blood)]
        if z < 0.45:
            pipes.append((-22.0, back - 16, 11.0, 0.75 * self.blood + 10))
        if 0.60 < z < 0.86:
            pipes += [(-12.0, -22.0, 15.0, self.blood), (-34.0, -12.0, 9.0, self.blood + 20)]
        if 0.58 < z < 0.66:
            pipes.append((14.0, -14.0, 13.0, 0.9 * self.blood + 10))
        for cx, cy, radius, value in pipes:
            distance = np.hypot(x - cx, y - cy)
            hu[distance < radius + 2] = 42
            hu[distance < radius] = value
        if 0.75 < z <= 0.83:
            arch = np.abs(y - 8 + 0.9 * (x - 4)) < 12
            hu[arch & (np.abs(x - 4) < 20)] = self.blood
        if z > 0.45:
            hu[np.hypot(x - 4, (y - back + 14) * 1.3) < 6] = 35
        if z > 0.68:
            air = [(0.0, 10.0, 9.0)]
        elif z > 0.55:
            apart = 110 * (0.70 - z) + 8
            air = [(-apart, 9.0, 7.0), (apart, 11.0, 6.5)]
        else:
            air = []
        for cx, cy, radius in air:
            distance = np.hypot(x - cx, y - cy)
            hu[distance < radius + 2.2] = 30
            hu[distance < radius] = -990

    def _lung_vessels(self, hu: Plane, x: Plane, y: Plane, z: float, lung: Mask) -> None:
        height = z * LENGTH_MM
        points = np.stack([x[lung], y[lung], np.full(lung.sum(), height)], -1)
        values = hu[lung]
        for start, end, r0, r1 in self.vessels:
            if not min(start[2], end[2]) - r0 < height < max(start[2], end[2]) + r0:
                continue
            low, high = np.minimum(start, end) - r0 - 2, np.maximum(start, end) + r0 + 2
            near = np.flatnonzero(np.all((points[:, :2] > low[:2]) & (points[:, :2] < high[:2]), 1))
            along = (points[near] - start) @ (end - start) / np.sum((end - start) ** 2)
            along = np.clip(along, 0, 1)
            gap = np.linalg.norm(points[near] - start - along[:, None] * (end - start), axis=1)
            share = np.clip((r0 + (r1 - r0) * along - gap) / 1.6 + 0.5, 0, 1)
            value = min(self.blood, 150) * share + self.lung_hu * (1 - share)
            values[near] = np.maximum(values[near], value)
        hu[lung] = values

    def _ribs(self, hu: Plane, x: Plane, y: Plane, z: float, muscle_mm: Plane, wall: float) -> None:
        """Ribs run down from the back to the front, so a slice cuts each of them obliquely."""
        if z < 0.12:
            return
        angle = np.arctan2(np.abs(x) / self.width, y / self.depth)
        turn = (z * 9.5 + 1.35 * angle + self.rib_phase) % 1.0
        shell = (muscle_mm > wall - 9) & (muscle_mm < wall - 1) & (angle < 2.6)
        bone = shell & (turn < 0.42)
        hu[bone] = 620
        marrow = (muscle_mm > wall - 7) & (muscle_mm < wall - 3) & (turn > 0.06) & (turn < 0.36)
        hu[bone & marrow] = self.marrow
        if z > 0.45:
            sternum = (np.abs(x) < 17) & (muscle_mm > wall - 10) & (muscle_mm < wall) & (y < 0)
            hu[sternum] = 420
            hu[sternum & (np.abs(x) < 14) & (np.abs(muscle_mm - wall + 5) < 2.6)] = self.marrow
        if z > 0.62:
            for side in (-1, 1):
                u, v = side * x - 0.62 * self.width, y - 0.60 * self.depth
                blade = np.abs(v + 0.75 * u + 0.012 * u * u) < 4
                hu[blade & (np.abs(u) < 34) & (muscle_mm > 1) & (muscle_mm < wall + 3)] = 480

    def _spine(self, hu: Plane, x: Plane, y: Plane, z: float, depth: float) -> None:
        centre = 0.56 * depth
        for side in (-1, 1):
            back = ((x - side * 26) / 24) ** 2 + ((y - centre - 34) / 17) ** 2 < 1
            hu[back & (y < 0.93 * depth)] = 55
            if z < 0.22:
                hu[((x - side * 32) / 15) ** 2 + ((y - centre + 4) / 17) ** 2 < 1] = 58
        height = (z * 15 + self.rib_phase) % 1.0
        body = (x / 20) ** 2 + ((y - centre) / 16) ** 2
        if height < 0.22:
            hu[body < 1] = 85
        else:
            hu[body < 1] = 560
            inner = body < 0.76
            hu[inner] = self.marrow + 35 * self._noise(5, 2 * x, 2 * y, z, inner)
        ring = (x / 17) ** 2 + ((y - centre - 23) / 14) ** 2
        hu[(ring < 1) & (y > centre + 10)] = 480
        hu[(np.abs(x) < 4) & (y > centre + 30) & (y < centre + 52)] = 450
        if height > 0.5:
            hu[(np.abs(y - centre - 18 - 0.15 * np.abs(x)) < 5) & (np.abs(x) < 40)] = 380
        hu[(x / 10) ** 2 + ((y - centre - 22) / 8.5) ** 2 < 1] = 28

    def _table(self, hu: Plane, axis: Float[np.ndarray, " n"]) -> None:
        x, y = np.meshgrid(axis, axis)
        top = self.offset[1] + self.depth + 6 - 0.0006 * x**2
        under = (y - top > 0) & (np.abs(x) < 175)
        hu[under & (y - top < 26)] = -935
        hu[under & (y - top < 3)] = -420
        hu[under & (np.abs(y - top - 25) < 1.8)] = -420

    def _noise(self, channel: int, x: Plane, y: Plane, z: float, where: Mask) -> Values:
        """Smooth noise of about unit variance at the points of a mask, by interpolation."""
        height = z * LENGTH_MM / 7
        below = int(height)
        cube = self.texture[channel]
        layer = cube[below % 24] + (height - below) * (cube[(below + 1) % 24] - cube[below % 24])
        u, v = x[where] / 7, y[where] / 7
        i, j = np.floor(u).astype(int), np.floor(v).astype(int)
        u, v, i, j, k, l = u - i, v - j, i % 24, j % 24, (i + 1) % 24, (j + 1) % 24
        near = layer[i, j] + v * (layer[i, l] - layer[i, j])
        far = layer[k, j] + v * (layer[k, l] - layer[k, j])
        return 1.6 * (near + u * (far - near))


def _jitter(
    rng: np.random.Generator,
    centre: tuple[float, float, float],
    axes: tuple[float, float, float],
    hu: float,
    turn: float,
) -> Ellipsoid:
    """Returns an organ with a person's variation of place, size, density and tilt."""
    x, y, z = np.asarray(centre) + rng.normal(0, (5, 5, 0.012))
    ax, ay, az = np.asarray(axes) * rng.normal(1, 0.08, 3)
    tilt = turn + rng.normal(0, 0.12)
    return Ellipsoid((x, y, z), (ax, ay, az), hu + rng.normal(0, 6), tilt)
