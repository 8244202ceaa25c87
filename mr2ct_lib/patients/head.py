"""Virtual skull-stripped heads: folded cortex, white matter, ventricles, deep nuclei, cerebellum and brain stem.

Every structure is a closed form of the place, so a head can be painted on any grid. Places and sizes follow the MNI
convention (mm, origin near the anterior commissure). Each seed is a person with their own size, bends, atrophy and
folds.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from mr2ct_lib.patients.grids import grid_points
from mr2ct_lib.patients.shapes import Waves, chain_depth, ellipsoid_depth

HEAD_NAMES: dict[int, str] = {
    0: "background",
    1: "csf",
    2: "grey_matter",
    3: "white_matter",
    4: "ventricles",
    5: "caudate",
    6: "putamen",
    7: "pallidum",
    8: "thalamus",
    9: "cerebellar_grey_matter",
    10: "cerebellar_white_matter",
    11: "brain_stem",
}
_VALUE = {name: value for value, name in HEAD_NAMES.items()}


def _line(*knots: tuple) -> np.ndarray:
    return np.array(knots, np.float32)


# Right-sided tubes (x, y, z, radius) in mm; the left side is their mirror image.
_LATERAL = _line(
    (8, 30, 1, 2.4),
    (7, 17, 12, 3.8),
    (8, 0, 21, 4.0),
    (12, -24, 22, 4.0),
    (22, -42, 13, 5.6),
    (24, -62, 8, 2.8),
    (22, -76, 7, 1.5),
)
_TEMPORAL_HORN = _line((24, -42, 12, 5), (33, -32, -5, 2.6), (32, -12, -17, 1.6))
_CAUDATE = _line((11, 20, -2, 5.2), (14.5, 16, 8, 6), (17, 4, 18, 4.8), (19.5, -16, 23, 2.8), (26, -34, 18, 1.6))
_STEM = _line(
    (0, -20, 0, 12), (0, -22, -10, 13), (0, -22, -26, 16.5), (0, -26, -38, 14), (0, -34, -50, 8.5), (0, -40, -70, 6.5)
)


@dataclass(frozen=True)
class HeadPatient:
    """One virtual head; see `head_patient`. `paint` gives its labels on any grid."""

    seed: int
    scale: tuple[float, float, float]  # size of the person over the mean, x, y, z
    ventricles: float  # ventricle radius over the mean
    atrophy: float  # width of the sulci over the mean
    cortex: float  # thickness in mm
    tilt: np.ndarray  # 3x3 rotation of the head in the scanner
    folds: Waves
    fold_shift: np.ndarray  # how the left side's folds differ from the right side's, rad (waves,)
    fold_bend: np.ndarray  # how the folds wind on their way inwards, rad (waves,)
    depths: Waves
    bends: tuple[Waves, Waves, Waves]

    names = HEAD_NAMES

    @property
    def landmarks(self) -> dict[str, tuple[float, float, float]]:
        """Points in mm: the field of view's centre and the anterior commissure."""
        return {"centre": (0.0, 0.0, 0.0), "anterior_commissure": tuple(self.tilt @ (-_CENTRE * self.scale))}

    def paint(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Labels (uint8, values of `names`) at the voxel centres of the grid."""
        labels = np.zeros(int(np.prod(shape)), np.uint8)
        for part, points in grid_points(shape, affine):
            points = points @ self.tilt.astype(np.float32) / np.asarray(self.scale, np.float32) + _CENTRE
            reach = (points - np.float32([0, -18, 4])) / np.float32([80, 100, 90])
            near = np.flatnonzero(np.einsum("ij,ij->i", reach, reach) < 1)
            if len(near):
                labels[part.start + near] = self._label(points[near])
        return labels.reshape(shape)

    def _label(self, points: np.ndarray) -> np.ndarray:
        """Labels (n,) at `points` (n, 3) in the mean head's mm."""
        bent = points + np.stack([wave(points) for wave in self.bends], 1) * np.float32([1.5, 1.8, 1.6])
        side = np.abs(bent[:, 0])
        half = np.concatenate([side[:, None], bent[:, 1:]], 1)  # both halves laid over each other
        hull, rho = _cerebrum_depth(half)
        labels = np.zeros(len(points), np.uint8)
        cerebellum = _cerebellum_depth(half)
        stem = chain_depth(*bent.T, _STEM, (0.9, 1, 1))
        cistern = np.maximum.reduce(
            [
                ellipsoid_depth(half, (0, -15, -16), (22, 28, 20)),
                ellipsoid_depth(half, (0, -42, -9), (24, 19, 14)),
                cerebellum + 2.5,
                np.where(bent[:, 2] > -56, stem + 2.5, -1),
            ]
        )
        labels[(cistern > 0) & (bent[:, 2] > -62)] = _VALUE["csf"]
        inside = np.flatnonzero(hull > 0)
        labels[inside] = self._cerebrum(half[inside], points[inside, 0] < 0, hull[inside], rho[inside])
        self._cerebellum(labels, half, cerebellum)
        stem_part = (stem > 0) & (bent[:, 2] < 4) & (bent[:, 2] > -64)
        aqueduct = np.hypot(bent[:, 0], bent[:, 1] + 31) < 1.2
        labels[stem_part] = np.where(aqueduct & (bent[:, 2] > -14), _VALUE["ventricles"], _VALUE["brain_stem"])[
            stem_part
        ]
        self._deep(labels, half)
        return labels

    def _cerebrum(self, half: np.ndarray, left: np.ndarray, hull: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """CSF, grey or white matter at points inside the cerebrum's hull, by the distance to the nearest CSF."""
        side, y, z = half.T
        ahead = np.float32([18, -18, 6])
        spread = np.clip(rho, 0.72, None)
        surface = ahead + (half - ahead) / spread[:, None]  # folds are radial: one pattern on the hull, carried inwards
        turn = self.depths(half)
        phase = self.folds.phase + left[:, None] * self.fold_shift + (0.5 * turn)[:, None] * self.fold_bend
        value, slope = self.folds.value_and_slope(surface, phase)
        away = np.abs(value) / np.maximum(slope, 0.75 * 2 * np.pi / _FOLD) * spread  # mm to the sulcus
        width = self.atrophy * (0.4 + 0.9 * np.exp(-np.maximum(hull, 0) / 6))
        fissure = np.where(
            np.hypot((y + 10) / 44, (z + 3) / 31) > 1, side - 0.6, 30
        )  # between the halves, above the callosum
        fissure = np.maximum(fissure, np.where(z < -22, 22 - side, -30))
        reach = np.clip(17.5 + 6 * turn, 7, 30)  # how deep a sulcus goes
        away = np.hypot(away, np.maximum(np.minimum(hull, fissure + 6) - reach, 0))
        slope_z = -3 - 0.32 * y + 4 * turn  # the lateral fissure climbs backwards
        sylvian = np.hypot(np.abs(z - slope_z), np.maximum(0, 40 - side))
        sylvian = np.where((y > -42) & (y < 30), sylvian, 30) - 0.6
        insula = (
            np.hypot(
                np.abs(side - 41.5 - 1.5 * value), np.maximum(np.hypot((y - 2) / 22, (z - slope_z) / 13) - 1, 0) * 15
            )
            - 0.5
        )
        gap = np.minimum.reduce([hull - 0.7 * self.atrophy, away - width, fissure, sylvian, insula])
        return np.where(
            gap < 0, _VALUE["csf"], np.where(gap < self.cortex, _VALUE["grey_matter"], _VALUE["white_matter"])
        ).astype(np.uint8)

    def _cerebellum(self, labels: np.ndarray, half: np.ndarray, depth: np.ndarray) -> None:
        part = np.flatnonzero(depth > 0)
        side, y, z = half[part].T
        shell = np.sqrt(
            (side / 1.35) ** 2 + (y + 42) ** 2 + (1.25 * (z + 34)) ** 2
        )  # leaves lie around the fourth ventricle
        leaf = np.cos((shell + 0.6 * self.depths(half[part]) * 3) * np.float32(2 * np.pi / 8.5))
        core = ellipsoid_depth(half[part], (18, -58, -38), (19, 15, 9))
        core = np.maximum(core, ellipsoid_depth(half[part], (0, -52, -38), (20, 8, 8)))
        white = (core > 0) | ((leaf < -0.75) & (depth[part] > 5) & (core > -9))
        gap = (leaf > 0.93) & (depth[part] < 9) & (core < -4)
        labels[part] = np.select(
            [gap, white], [_VALUE["csf"], _VALUE["cerebellar_white_matter"]], _VALUE["cerebellar_grey_matter"]
        )

    def _deep(self, labels: np.ndarray, half: np.ndarray) -> None:
        """Basal ganglia, thalamus, callosum and ventricles over what is there."""
        part = np.flatnonzero((half[:, 0] < 46) & (np.abs(half[:, 1] + 20) < 70) & (np.abs(half[:, 2] + 6) < 46))
        half, label = half[part], labels[part]
        side, y, z = half.T
        grow = np.float32(self.ventricles)
        core = ellipsoid_depth(half, (0, -8, 4), (38, 34, 22)) > 0  # no cortex reaches here
        label[core & np.isin(label, [_VALUE["csf"], _VALUE["grey_matter"]]) & (side < 36) & (z > -8)] = _VALUE[
            "white_matter"
        ]
        ring = np.hypot((y + 10) / 44, (z + 3) / 31)
        label[(side < 9) & (ring < 1) & (ring > 0.8) & (z > 2)] = _VALUE["white_matter"]  # corpus callosum
        label[(side < 1.2) & (ring < 0.8) & (ring > 0.2) & (z > 4) & (y > -30)] = _VALUE[
            "white_matter"
        ]  # septum, fornix
        lentiform = half - np.float32([0, 2, 0])
        lentiform = np.concatenate(
            [(side + 0.35 * lentiform[:, 1] * (lentiform[:, 1] < 0))[:, None], lentiform[:, 1:]], 1
        )
        label[ellipsoid_depth(lentiform, (25.5, 0, 1), (7.5, 18, 11)) > 0] = _VALUE["putamen"]
        label[ellipsoid_depth(lentiform, (19, -4, -1), (5.5, 10, 7)) > 0] = _VALUE["pallidum"]
        label[chain_depth(*half.T, _CAUDATE) > 0] = _VALUE["caudate"]
        turned = np.stack([side + 0.35 * (y + 18), y, z], 1)
        label[ellipsoid_depth(turned, (11, -18, 8), (9.5, 16, 9.5)) > 0] = _VALUE["thalamus"]
        lateral = _LATERAL * np.float32([1, 1, 1, grow])
        temporal = _TEMPORAL_HORN * np.float32([1, 1, 1, grow])
        fluid = np.maximum(chain_depth(*half.T, lateral, (1, 1, 0.85)), chain_depth(*half.T, temporal))
        fluid = np.where(side > 0.7, fluid, -1)
        third = ellipsoid_depth(half, (0, -12, 0), (1.6 + 1.2 * grow, 15, 10))
        fourth = ellipsoid_depth(half, (0, -43, -33), (7 * grow**0.5, 5 * grow**0.5, 10))
        label[np.maximum.reduce([fluid, third, fourth]) > 0] = _VALUE["ventricles"]
        labels[part] = label


_FOLD = 23.0  # wavelength of the folds on the hull, mm: two sulci
_CENTRE = np.float32([0, -17, 8])  # middle of the mean brain, mm


def _cerebrum_depth(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth (n,) in mm below the cerebrum's hull, and the distance (n,) from its middle (hull: 1)."""
    side, y, z = half.T
    down = np.where(z < 8, np.float32(44), np.float32(64))
    width = 68 - 0.2 * np.maximum(y + 5, 0) - 0.05 * np.maximum(-y - 50, 0)
    rho = ((side / width) ** 2.4 + (np.abs(y + 17) / 86) ** 2.4 + (np.abs(z - 8) / down) ** 2.4) ** np.float32(1 / 2.4)
    main = (1 - rho) * np.float32(66)
    ahead = np.clip((y + 38) / 56, 0, 1)  # 0 over the cerebellum, 1 over the orbits
    middle = np.exp(-((side / 18) ** 2))
    floor = (1 - ahead) * (-13 + 0.3 * np.minimum(y + 38, 0) + 10 * middle) + ahead * (
        -27 + 0.1 * (y - 18) + 6 * middle
    )
    floor = floor + 11 * np.exp(-(((y + 10) / 26) ** 2)) * np.exp(-((side / 24) ** 4))
    base = z - floor
    main = np.minimum(main, base)
    temporal = ellipsoid_depth(half, (44, -12, -17), (21, 45, 26))
    return np.maximum(main, temporal), rho


def _cerebellum_depth(half: np.ndarray) -> np.ndarray:
    """Depth (n,) in mm below the surface of the cerebellum: two hemispheres and the vermis."""
    lobe = ellipsoid_depth(half, (23, -64, -37), (27, 27, 22))
    vermis = ellipsoid_depth(half, (0, -62, -32), (13, 23, 21))
    return np.minimum(np.maximum(lobe, vermis), -6 - 0.3 * (half[:, 1] + 64) * (half[:, 1] < -64) - half[:, 2])


def head_patient(seed: int) -> HeadPatient:
    """Return the virtual head of `seed`; the same seed is the same person.

    >>> affine = np.array([[6.0, 0, 0, -93], [0, 6, 0, -105], [0, 0, 20, -50], [0, 0, 0, 1]])
    >>> labels = head_patient(1).paint((32, 36, 6), affine)
    >>> labels.shape, labels[0, 0, 0].item()
    ((32, 36, 6), 0)
    """
    rng = np.random.default_rng([seed, 21])
    size, ventricles, atrophy = rng.uniform(0.94, 1.02), rng.uniform(0.7, 1.6), rng.uniform(0.7, 1.4)
    proportions = rng.uniform(0.975, 1.025, 3)
    angles = np.radians(rng.normal(0, 1, 3).clip(-2, 2) * 3)
    return HeadPatient(
        seed=seed,
        scale=tuple(size * proportions),
        ventricles=ventricles,
        atrophy=atrophy,
        cortex=rng.uniform(2.6, 3.2),
        tilt=Rotation.from_euler("ZYX", angles[::-1]).as_matrix(),
        folds=Waves.random(rng, 24, _FOLD, 0.2),
        fold_shift=rng.normal(0, 0.7, 24).astype(np.float32),
        fold_bend=rng.normal(0, 1, 24).astype(np.float32),
        depths=Waves.random(rng, 6, 45.0, 0.3),
        bends=tuple(Waves.random(rng, 4, 110.0, 0.3) for _ in range(3)),
    )
