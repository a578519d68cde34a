"""Whether the slices of a series form a regular stack, from their geometry alone.

Nothing is interpolated or mended. Who trains on single slices may keep an irregular series; who
wants volumes must not. Lengths are in mm, in patient coordinates: x to the left, y to the back,
z to the head (DICOM PS3.3 C.7.6.2.1.1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# Helical scans place slices to a few hundredths of a mm, and no slice distance is so small.
POSITION_MM = 0.05
# Off the usual: two positions that jitter or have one decimal are 0.1 mm off together, and a bit.
DISTANCE_MM = 0.11
# A lost slice doubles the distance, jitter changes it by a few percent.
GAP = 1.5
# So many equal wide distances in a row are another slice distance, not as many lost slices.
RUN = 3
# Gantries are tilted in steps of half a degree.
TILT_DEGREES = 0.4
# In-plane shift that shear must reach: rounded positions of two near slices look sheared.
SHEAR_MM = 0.2
THICKNESS_MM = 0.01
PIXEL_MM = 1e-4


class Irregularity(NamedTuple):
    """What is irregular: a fixed phrase, and numbers with their units."""

    finding: str
    detail: str


@dataclass(frozen=True)
class Stack:
    """The slices of one series in any order.

    Attributes:
        normals: Unit vector at right angles to each slice.
        origins: Centre of the first pixel of each slice, mm.
        thickness_mm: Of each slice, NaN if unknown.
        sizes: Rows and columns of each slice.
        pixel_mm: Distance of rows and of columns of each slice, NaN if unknown.
    """

    normals: Float[np.ndarray, "n 3"]
    origins: Float[np.ndarray, "n 3"]
    thickness_mm: Float[np.ndarray, " n"]
    sizes: Int[np.ndarray, "n 2"]
    pixel_mm: Float[np.ndarray, "n 2"]

    def normal(self) -> Float[np.ndarray, "3"]:
        """The normal of the first slice, turned to the head."""
        normal = self.normals[0]
        return normal if normal[2] >= 0 else -normal

    def positions(self) -> Float[np.ndarray, " n"]:
        """Where the slices lie along the normal, mm."""
        return self.origins @ self.normal()

    def distance(self) -> float:
        """Median distance of neighbours, mm; NaN for less than two positions."""
        distances = self._distances()
        return float(np.median(distances)) if len(distances) else float("nan")

    def irregularities(self) -> list[Irregularity]:
        """What is irregular, the gravest first; empty for a regular stack or a single slice."""
        checks = (self._mixed(), self._doubled(), self._spaced(), self._tilted())
        return [found for check in checks for found in check]

    def _distances(self) -> Float[np.ndarray, " m"]:
        steps = np.diff(np.sort(self.positions()))
        return steps[steps > POSITION_MM]

    def _mixed(self) -> list[Irregularity]:
        found = []
        angle = _degrees(np.abs(self.normals @ self.normal()).min())
        if angle > TILT_DEGREES:
            found.append(Irregularity("mixed orientations", f"{angle:.1f} degrees apart"))
        sizes = len(np.unique(self.sizes, axis=0))
        if sizes > 1:
            found.append(Irregularity("mixed sizes", f"{sizes} sizes"))
        if _spread(self.pixel_mm).max() > PIXEL_MM:
            low, high = np.nanmin(self.pixel_mm), np.nanmax(self.pixel_mm)
            found.append(Irregularity("mixed pixel spacing", f"{low:.4g} to {high:.4g} mm"))
        if _spread(self.thickness_mm) > THICKNESS_MM:
            low, high = np.nanmin(self.thickness_mm), np.nanmax(self.thickness_mm)
            found.append(Irregularity("changing slice thickness", f"{low:.4g} to {high:.4g} mm"))
        return found

    def _doubled(self) -> list[Irregularity]:
        doubled = len(self.origins) - 1 - len(self._distances())
        detail = f"{doubled} of {len(self.origins)} slices"
        return [Irregularity("duplicate positions", detail)] if doubled else []

    def _spaced(self) -> list[Irregularity]:
        distances, usual = self._distances(), self.distance()
        wide = distances > GAP * usual
        gap = wide & ~_in_run(distances, wide)
        found = []
        if gap.any():
            missing = int(np.rint(distances[gap] / usual - 1).clip(1).sum())
            widest = distances[gap].max()
            detail = f"{missing} missing, widest gap {widest:.4g} mm"
            found.append(Irregularity("missing slices", detail))
        rest = distances[~gap]
        if len(rest) and np.abs(rest - usual).max() > DISTANCE_MM:
            detail = f"{rest.min():.4g} to {rest.max():.4g} mm"
            found.append(Irregularity("changing slice distance", detail))
        return found

    def _tilted(self) -> list[Irregularity]:
        """Tilted against the patient, or moved in-plane from slice to slice, as tilt makes it."""
        plane = _degrees(float(self.normal()[2]))
        order = np.argsort(self.positions())
        moved = self.origins[order[-1]] - self.origins[order[0]]
        along = float(moved @ self.normal())
        aside = float(np.linalg.norm(moved - along * self.normal()))
        shear = float(np.degrees(np.arctan2(aside, along)))
        sheared = shear > TILT_DEGREES and aside > SHEAR_MM and along > POSITION_MM
        if plane <= TILT_DEGREES and not sheared:
            return []
        detail = f"{plane:.1f} degrees" + (f", sheared by {shear:.1f} degrees" * sheared)
        return [Irregularity("gantry tilt", detail)]


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def _spread(values: Float[np.ndarray, " n *rest"]) -> Float[np.ndarray, "*rest"]:
    """Largest minus smallest, without NaN; 0 if all are NaN."""
    known = np.isfinite(values)
    high = np.where(known, values, -np.inf).max(axis=0)
    low = np.where(known, values, np.inf).min(axis=0)
    return np.where(known.any(axis=0), high - low, 0.0)


def _in_run(
    distances: Float[np.ndarray, " m"], wide: Bool[np.ndarray, " m"]
) -> Bool[np.ndarray, " m"]:
    """Which wide distances are one of at least RUN equal ones in a row."""
    in_run = np.zeros_like(wide)
    start = 0
    for stop in range(1, len(distances) + 1):
        ends = stop == len(distances) or abs(distances[stop] - distances[start]) > DISTANCE_MM
        if ends:
            in_run[start:stop] = wide[start:stop] & (stop - start >= RUN)
            start = stop
    return in_run
