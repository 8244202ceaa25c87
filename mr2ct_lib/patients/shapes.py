"""Solids and smooth random fields of which virtual patients consist, at coordinates of any shape.

Tubes and outlines are signed distances in mm (negative inside), chains and ellipsoids are depths (positive inside).
Where muscles meet, the smaller distance wins, so that there are no gaps and no overlaps.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

REACH = 4.0  # mm around a tube's box in which it may still be painted


class SectionTable(NamedTuple):
    """Sections of a tube, one per mm from `lowest` (mm) along z.

    `columns` float32 (7, m): x, y, cos, sin, half length, half width, bend.
    """

    columns: np.ndarray
    lowest: float


def section_table(sections: np.ndarray) -> SectionTable:
    """Interpolate sections along z, to be looked up by height.

    `sections` (n, 7): z, x, y, half length, half width (mm), angle of the long axis from x (degrees), and how far the
    section bends at its ends (mm, along the width axis). Angles go the short way from section to section.
    """
    rows = np.array(sorted(map(tuple, sections)), dtype=np.float64)
    turns = np.round(np.diff(rows[:, 5]) / 180.0).cumsum()
    rows[1:, 5] -= 180.0 * turns
    rows[1:, 6] *= np.where(turns % 2, -1.0, 1.0)  # half a turn exchanges the two ends and the side of the bend
    z = np.arange(rows[0, 0], rows[-1, 0] + 1.0)
    x, y, long, wide, angle, bend = (np.interp(z, rows[:, 0], column) for column in rows.T[1:])
    angle = np.radians(angle)
    columns = np.stack([x, y, np.cos(angle), np.sin(angle), long, wide, bend]).astype(np.float32)
    return SectionTable(columns, float(rows[0, 0]))


def tube(x: np.ndarray, y: np.ndarray, z: np.ndarray, sections: np.ndarray | SectionTable) -> np.ndarray:
    """Signed distance (mm, first order) to a tube along z whose sections are bent ellipses (see `section_table`).

    A tube that is used more than once is given as its SectionTable.

    >>> straight = [(-50, 0, 0, 10, 5, 0, 0), (50, 0, 0, 10, 5, 0, 0)]
    >>> tube(*np.array([[0.0, 12, 0], [0, 0, 4], [0, 0, 0]], dtype=np.float32), straight).round(1).tolist()
    [-5.0, 2.0, -1.0]
    """
    table, lowest = sections if isinstance(sections, SectionTable) else section_table(sections)
    height = np.rint(z - np.float32(lowest)).astype(np.intp)
    cx, cy, cos, sin, long, wide, bend = table.take(height, axis=1, mode="clip")
    dx, dy = x - cx, y - cy
    u = (dx * cos + dy * sin) / long
    v = dy * cos - dx * sin
    v = (v - bend * np.minimum(u * u, 2.25)) / wide + np.float32(1e-3)
    rho = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / long) ** 2 + (v / wide) ** 2)
    distance = (rho - 1) * rho / slope
    top = lowest + table.shape[1] - 1
    return np.maximum(distance, np.maximum(z - np.float32(top), np.float32(lowest) - z))


def tube_bounds(sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,) of the box that holds a tube."""
    rows = np.asarray(sections, dtype=np.float64)
    angle = np.radians(rows[:, 5])
    half_x = np.hypot(rows[:, 3] * np.cos(angle), rows[:, 4] * np.sin(angle)) + np.abs(rows[:, 6] * np.sin(angle))
    half_y = np.hypot(rows[:, 3] * np.sin(angle), rows[:, 4] * np.cos(angle)) + np.abs(rows[:, 6] * np.cos(angle))
    half = np.stack([half_x, half_y, np.zeros_like(half_x)], axis=1) + REACH
    middle = rows[:, [1, 2, 0]]
    return (middle - half).min(axis=0), (middle + half).max(axis=0)


def chain_bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,) of the box that holds a chain."""
    rows = np.asarray(points, dtype=np.float64)
    return (rows[:, :3] - rows[:, 3:]).min(axis=0), (rows[:, :3] + rows[:, 3:]).max(axis=0)


def ellipsoid_depth(points: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    """Return the depth in mm below an ellipsoid's surface at `points` (..., 3), positive inside, to first order.

    >>> ellipsoid_depth(np.array([[0.0, 0, 0], [9, 0, 0], [12, 0, 0]]), (0, 0, 0), (10, 10, 10)).round(3).tolist()
    [10.0, 1.0, -2.0]
    """
    middle, (a, b, c) = np.asarray(centre, points.dtype), np.asarray(radii, points.dtype)
    x, y, z = ((points[..., axis] - middle[axis]) / half for axis, half in enumerate((a, b, c)))
    rho = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / a, y / b, z / c
    slope = np.sqrt(x * x + y * y + z * z)
    return np.where(rho > 1e-3, (1 - rho) * rho / np.maximum(slope, 1e-9), np.float32(min(radii)))


def chain_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray, line: np.ndarray, flat: tuple = (1, 1, 1)) -> np.ndarray:
    """Depth in mm inside a chain of round cones: `line` (m, 4) holds x, y, z, radius of its knots; positive inside.

    `flat` stretches each axis before distances are taken (values below 1 make the chain wider along that axis).

    >>> chain_depth(*np.array([[0.0, 0], [0, 3], [5, 5]]), np.array([[0.0, 0, 0, 2], [0, 0, 10, 4]])).tolist()
    [3.0, 0.0]
    """
    line = np.asarray(line, x.dtype)
    wx, wy, wz = np.asarray(flat, x.dtype)
    best = None
    for first, second in zip(line[:-1], line[1:], strict=True):
        ax, ay, az = (second[:3] - first[:3]) * (wx, wy, wz)
        px, py, pz = (
            (axis - start) * weight for axis, start, weight in zip((x, y, z), first, (wx, wy, wz), strict=False)
        )
        t = np.clip((px * ax + py * ay + pz * az) * (1 / (ax * ax + ay * ay + az * az)), 0, 1)
        px -= t * ax
        py -= t * ay
        pz -= t * az
        depth = first[3] + t * (second[3] - first[3]) - np.sqrt(px * px + py * py + pz * pz)
        best = depth if best is None else np.maximum(best, depth)
    return best


def add_chain(distance: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, line: tuple) -> None:
    """Unite a solid of signed `distance` (mm, negative inside) with a chain, in place: min(distance, -chain_depth).

    The chain is computed in its box only: beyond it `distance` stays as it is, right in its sign and wherever negative.
    """
    (low_x, low_y, low_z), (high_x, high_y, high_z) = (corner.tolist() for corner in chain_bounds(line))
    inside = (z > low_z - 1) & (z < high_z + 1) & (y > low_y - 1) & (y < high_y + 1)
    near = np.flatnonzero(inside & (x > low_x - 1) & (x < high_x + 1))
    depth = chain_depth(x.take(near), y.take(near), z.take(near), line)
    distance.put(near, np.minimum(distance.take(near), -depth))


def outline(x: np.ndarray, y: np.ndarray, z: np.ndarray, rows: tuple) -> np.ndarray:
    """Signed distance (mm, in the axial plane) to a stack of outlines, flat in front and rounder at the back.

    `rows` (n, 5): z, x of the middle, half width, y of the middle, half depth, mm; the ends are cut off flat.
    """
    table, lowest = _outline_table(rows)
    index = np.rint(z - np.float32(lowest)).astype(np.intp)
    middle_x, wide, middle_y, deep = table.take(index, axis=1, mode="clip")
    v = (y - middle_y) / deep
    front = v > 0
    u = np.square((x - middle_x) / wide)
    v *= v
    # the squares of two superellipses, of power 4 (flat between the iliac spines) and 2 (round), mixed at the back
    square = np.sqrt(u * u + v * v)
    rho = np.sqrt(np.where(front, square, np.float32(0.35) * square + np.float32(0.65) * (u + v)))
    distance = (rho - 1) * np.minimum(wide, deep)
    return np.maximum(distance, np.maximum(np.float32(lowest) - z, z - np.float32(rows[-1][0])))


@cache
def _outline_table(rows: tuple) -> tuple[np.ndarray, float]:
    """Return the outlines of `rows` one per mm, float32 (4, m), and the lowest height in mm."""
    heights, *columns = np.array(rows, dtype=np.float64).T
    fine = np.arange(heights[0], heights[-1] + 1.0)
    return np.stack([np.interp(fine, heights, column) for column in columns]).astype(np.float32), float(fine[0])


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Waves:
    """A smooth random field of unit variance: a sum of cos(k . p + phase); k in rad/mm (n, 3), phase in rad (n,)."""

    k: np.ndarray
    phase: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, count: int, wavelength: float, spread: float = 0.25) -> "Waves":
        """`count` plane waves of random direction, wavelengths within a fraction `spread` of `wavelength` (mm)."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = 2 * np.pi / (wavelength * rng.uniform(1 - spread, 1 + spread, (count, 1)))
        return cls((direction * length).astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    @classmethod
    def of_seed(cls, seed: int, length: float, count: int = 6) -> "Waves":
        """The `count` waves of a seed, of lengths from 0.7 to 1.5 times `length` (mm)."""
        rng = np.random.default_rng(seed)
        k, phase = np.empty((count, 3)), np.empty(count)
        for wave in range(count):
            direction = rng.normal(size=3)
            k[wave] = direction * 2 * np.pi / (length * rng.uniform(0.7, 1.5) * np.linalg.norm(direction))
            phase[wave] = rng.uniform(0, 2 * np.pi) - np.pi / 2
        return cls(k.astype(np.float32), phase.astype(np.float32))

    def on(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values at coordinates of any one shape, a wave at a time: little memory where there are many points."""
        total = np.float32(0)
        for (kx, ky, kz), phase in zip(self.k, self.phase, strict=True):
            total = total + np.cos(kx * x + ky * y + kz * z + phase)
        return total * np.float32(np.sqrt(2 / len(self.phase)))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (n,) at `points` (n, 3) in mm."""
        return np.cos(points @ self.k.T + self.phase).sum(1) * np.float32(np.sqrt(2 / len(self.phase)))

    def value_and_slope(self, points: np.ndarray, phase: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return values (n,) and the length of their gradient (n,) per mm; `phase` (n, waves) replaces the phases."""
        angle = points @ self.k.T + (self.phase if phase is None else phase)
        scale = np.float32(np.sqrt(2 / len(self.phase)))
        x, y, z = ((np.sin(angle) @ self.k) * scale).T
        return np.cos(angle).sum(1) * scale, np.sqrt(x * x + y * y + z * z)
