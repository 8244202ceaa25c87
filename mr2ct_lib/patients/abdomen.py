"""Virtual abdomens with an aortic aneurysm, and the two scanners' tables that press the same person's back differently.

A person is painted by closed forms in an unpressed shape ("the person's mm"). A posture ("mr": a flat table with a
padded coil, "ct": a curved couch) moves the tissues forwards and backwards, most at the back, less towards the front
wall. This is the deformation between the domains of a study that scans one person twice.
"""

from dataclasses import dataclass

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.patients.grids import grid_points
from mr2ct_lib.patients.shapes import Waves, chain_depth, ellipsoid_depth

_NAMES = (
    "background", "skin", "subcutaneous_fat", "visceral_fat", "abdominal_wall", "erector_spinae", "intermuscular_fat",
    "psoas", "vertebra", "vertebra_cortex", "disc", "spinal_canal", "rib", "rib_cortex", "kidney", "liver", "spleen",
    "bowel", "bowel_contents", "bowel_gas", "vena_cava", "aorta_lumen", "aorta_thrombus", "aorta_wall",
    "quadratus_lumborum", "table",
)  # fmt: skip
ABDOMEN_NAMES: dict[int, str] = dict(enumerate(_NAMES))
AORTA = ("aorta_lumen", "aorta_thrombus", "aorta_wall")  # together the mask in which the aneurysm experiment measures
_V = {name: value for value, name in ABDOMEN_NAMES.items()}
_HALF_WIDTH, _HALF_DEPTH, _POWER = 146.0, 98.0, 2.4  # the mean person's muscle wall, mm
_COLON = np.array(  # x, y, z, radius in mm, from the caecum to the sigmoid
    [[100, -4, -140, 21], [103, 4, -60, 22], [97, 14, 0, 20], [70, 58, 14, 19], [0, 76, -8, 17]]
    + [[-70, 60, 24, 18], [-103, 10, 40, 15], [-112, -12, 0, 13], [-112, -10, -60, 13], [-104, 0, -140, 14]],
    np.float32,
)
_COUCH_RADIUS, _MR_PRESS, _MATTRESS, _SHELL = 240.0, 14.0, 7.0, 4.0  # mm


def aorta_mask(labels: np.ndarray) -> np.ndarray:
    """True where `labels` (values of `ABDOMEN_NAMES`) show the aorta: lumen, thrombus and wall."""
    return np.isin(labels, [_V[name] for name in AORTA])


@dataclass(frozen=True)
class AbdomenPatient:
    """One virtual abdomen lying in one scanner; see `abdomen_patient`."""

    seed: int
    scanner: str  # "mr" or "ct": whether the CT couch is painted
    posture: str  # "mr" or "ct": whose table presses the back
    scale: tuple[float, float, float]
    fat: float  # mean thickness of the subcutaneous fat, mm
    aneurysm: tuple[float, float, float]  # largest radius, its z, its half length, mm
    lumen: tuple[float, float, float]  # largest radius of the blood, and how far from the middle (x, y), mm
    spine: tuple[float, float]  # z of a disc, distance from disc to disc, mm
    organs: np.ndarray  # (6, 3) shifts of kidneys right and left, liver, spleen, colon right and left, mm
    gas: float  # height of the gas level above the middle of a loop, mm
    bends: tuple[Waves, Waves, Waves]
    loops: tuple[Waves, Waves]

    names = ABDOMEN_NAMES

    @property
    def landmarks(self) -> dict[str, tuple[float, float, float]]:
        """Points in the scanner's mm: the field of view's centre and the middle of the aneurysm."""
        z = self.aneurysm[1]
        x, y, _ = (float(v[0]) for v in self._aorta(np.array([z], np.float32)))
        middle = self.to_scanner(np.array([[x, y, z]]) * self.scale)[0]
        return {"centre": (0.0, 0.0, 0.0), "aneurysm": tuple(float(v) for v in middle)}

    def to_scanner(self, points: np.ndarray) -> np.ndarray:
        """Move `points` (n, 3), in the unpressed person's mm, to where they lie on this posture's table."""
        points = np.array(points, float)
        points[:, 1] += self._press(points[:, 0]) * self._fade(points[:, 1])
        return points

    def from_scanner(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `to_scanner`: (n, 3) in the scanner's mm to the unpressed person's mm, to within 0.01 mm."""
        points = np.array(points)
        press, y = self._press(points[:, 0]), points[:, 1].copy()
        for _ in range(5):  # contracts by at least 4 a turn
            points[:, 1] = y - press * self._fade(points[:, 1])
        return points

    def paint(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Labels (uint8, values of `names`) at the voxel centres of the grid."""
        labels = np.zeros(int(np.prod(shape)), np.uint8)
        scale = np.asarray(self.scale, np.float32)
        reach = np.float32([_HALF_WIDTH, _HALF_DEPTH]) * scale[:2] + self.fat * 1.6 + 16
        for part, points in grid_points(shape, affine):
            near = np.flatnonzero((np.abs(points[:, 0]) < reach[0]) & (np.abs(points[:, 1]) < reach[1]))
            if len(near):
                labels[part.start + near] = self._label(self.from_scanner(points[near]) / scale)
            if self.scanner == "ct":
                part_labels = labels[part]
                part_labels[(part_labels == 0) & self._couch(points)] = _V["table"]
        return labels.reshape(shape)

    def _outline(self) -> tuple[float, float]:
        return self.scale[0] * _HALF_WIDTH + self.fat, self.scale[1] * _HALF_DEPTH + self.fat

    def _table(self, x: np.ndarray, posture: str) -> np.ndarray:
        """Height y (n,) in mm of the table's surface where it touches the person."""
        back = -self._outline()[1]
        if posture == "mr":
            return np.full_like(x, back + _MR_PRESS)
        return back - 3 + _COUCH_RADIUS - np.sqrt(np.maximum(_COUCH_RADIUS**2 - x * x, 0))

    def _press(self, x: np.ndarray) -> np.ndarray:
        """Return how far (n,) in mm the back's surface moves along y: onto the table, and not at all at the flanks."""
        width, depth = self._outline()
        free = -depth * np.maximum(1 - (np.abs(x) / width) ** _POWER, 0) ** (1 / _POWER)
        return (self._table(x, self.posture) - free) * np.exp(-((x / (0.72 * width)) ** 6))

    def _fade(self, y: np.ndarray) -> np.ndarray:
        """How much of the back's displacement reaches `y` (n,): 1 at the back, 0 from near the front wall on."""
        depth = self._outline()[1]
        t = np.clip((y + depth) / (1.9 * depth), 0, 1)
        return 1 - t * t * (3 - 2 * t)

    def _couch(self, points: np.ndarray) -> np.ndarray:
        below = self._table(points[:, 0], "ct") - _MATTRESS - points[:, 1]
        hollow = 45 - 0.0006 * points[:, 0] ** 2  # the underside is flatter than the top
        shell = ((below > 0) & (below < _SHELL)) | ((below > hollow) & (below < hollow + _SHELL))
        return shell & (np.abs(points[:, 0]) < 0.85 * _COUCH_RADIUS)

    def _aorta(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Middle (x, y) and outer radius of the aorta above its fork, (n,) each."""
        radius, level, length = self.aneurysm
        bulge = np.exp(-(((z - level) / length) ** 2))
        outer = 10.5 + (radius - 10.5) * bulge
        return -7 - 0.25 * radius * bulge + 3 * np.sin(z / 40), -16 + 0.9 * outer, outer

    def _label(self, points: np.ndarray) -> np.ndarray:
        """Labels (n,) at `points` (n, 3) in the mean person's mm."""
        points = points.astype(np.float32)
        p = points + np.stack([wave(points) for wave in self.bends], 1) * np.float32([2.0, 1.6, 2.5])
        x, y, z = p.T
        wide, deep = np.abs(x) / np.float32(_HALF_WIDTH), np.abs(y) / np.float32(_HALF_DEPTH)
        high = _POWER - 1
        rho = np.maximum(wide**_POWER + deep**_POWER, 1e-6) ** np.float32(1 / _POWER)
        slope = np.hypot(wide**high / _HALF_WIDTH, deep**high / _HALF_DEPTH) / np.maximum(rho, 0.1) ** high
        depth = (1 - rho) / np.maximum(slope, 1 / 150)  # mm below the muscle wall's surface
        depth = depth - np.where(y < 0, 6 * np.exp(-((x / 20) ** 2)), 0)  # the furrow over the spine
        fat = self.fat * (1 + 0.25 * np.sin(np.arctan2(np.abs(x) * 0.7, -y) * 2 + 0.6))
        labels = np.zeros(len(p), np.uint8)
        labels[depth > -fat] = _V["skin"]
        labels[depth > 2 - fat] = _V["subcutaneous_fat"]
        inside = np.flatnonzero(depth > 0)
        labels[inside] = self._inside(p[inside], depth[inside])
        return labels

    def _inside(self, p: np.ndarray, depth: np.ndarray) -> np.ndarray:
        x, y, z = p.T
        side = np.abs(x)
        label = np.full(len(p), _V["visceral_fat"], np.uint8)
        wall = 13 - 4 * (y > 0) * np.exp(-((x / 60) ** 4)) + 3 * (y < 0)
        cavity = depth - wall
        self._viscera(label, p, cavity)
        muscle = cavity < 0
        label[muscle] = _V["abdominal_wall"]
        label[muscle & (y > 0) & (side < 1.5)] = _V["intermuscular_fat"]  # linea alba
        layers = (side > 70) & (np.abs((depth % 4.6) - 2.3) > 1.9) & (depth > 2) & muscle
        label[layers] = _V["intermuscular_fat"]
        self._ribs(label, p, depth)
        back = (y < -50) & (side < 76 - 0.4 * np.maximum(-50 - y - 20, 0))
        label[back & (depth > 0)] = _V["intermuscular_fat"]
        bellies = (np.hypot((side - 33) / 29, (y + 72) / 22) < 1) | (np.hypot((side - 56) / 17, (y + 62) / 15) < 1)
        label[bellies | ((depth < 3) & (y < 0) & (side < 76))] = _V["erector_spinae"]
        psoas = np.clip(15 - 0.09 * z, 5, 24)
        label[np.hypot((side - 25 - psoas * 0.75) / 0.9, (y + 38) / 1.15) < psoas] = _V["psoas"]
        label[np.hypot((side - 60) / 17, (y + 50) / 8) < 1] = _V["quadratus_lumborum"]
        self._spine(label, p)
        self._vessels(label, p)
        return label

    def _spine(self, label: np.ndarray, p: np.ndarray) -> None:
        x, y, z = p.T
        side = np.abs(x)
        first, pitch = self.spine
        level = np.abs(((z - first) / pitch + 0.5) % 1 - 0.5) * pitch  # mm from the nearest disc's middle
        waist = np.float32(1) - 0.10 * np.clip((level - 5) / 12, 0, 1)
        body = (1 - np.hypot(x / 24, (y + 34) / 17.5) / waist) * 18
        hollow = 1 - np.hypot(x / 11, (y + 60) / 8.5)
        body = np.minimum(body, (np.hypot(x / 11, (y + 60) / 8.5) - 1) * 8)
        arch = (np.hypot(x / 17, (y + 61) / 14) < 1) & (hollow < 0) & (y < -52) & (level > 5)
        spinous = (side < 3.5) & (y < -70) & (y > -94) & (level > 0.2 * pitch)
        transverse = (
            (side < 42)
            & (np.abs(y + 56 + 0.22 * (side - 15)) < 4.2 - 0.05 * side)
            & (hollow < 0)
            & (level > 0.33 * pitch)
        )
        facet = (np.hypot((side - 17) / 7, (y + 68) / 7) < 1) & (level < 0.4 * pitch)
        label[arch | spinous | transverse | facet] = _V["vertebra_cortex"]
        core = ((side < 1.7) & (y < -73) & (y > -91) & spinous) | (
            (np.hypot((side - 17) / 5, (y + 68) / 5) < 1) & facet
        )
        label[core] = _V["vertebra"]
        label[hollow > 0] = _V["spinal_canal"]
        label[body > 0] = np.select(
            [level < 4.5, (level < 6.2) | (body < 1.7)], [_V["disc"], _V["vertebra_cortex"]], _V["vertebra"]
        )[body > 0]

    def _ribs(self, label: np.ndarray, p: np.ndarray, depth: np.ndarray) -> None:
        x, y, z = p.T
        start = self.spine[0]
        down = z - start + 0.55 * (y + 80)  # ribs run down and forwards
        across = np.abs(down % 30 - 15)
        ribs = (down > 40) & (z > start + 0.5 * (y + 40)) & (np.abs(x) > 45) & (y < 70)
        section = (1 - np.hypot(across / 6.5, (depth - 7.5) / 4.2)) * 4.2
        label[ribs & (section > 0)] = _V["rib_cortex"]
        label[ribs & (section > 1.4)] = _V["rib"]

    def _viscera(self, label: np.ndarray, p: np.ndarray, cavity: np.ndarray) -> None:
        x, y, z = p.T
        value, slope = self.loops[0].value_and_slope(p)
        second, second_slope = self.loops[1].value_and_slope(p)
        away = np.hypot(value / np.maximum(slope, 0.07), second / np.maximum(second_slope, 0.07))
        radius = 11.5 + 2 * np.sin(z / 30)
        room = np.minimum.reduce([cavity - 4, y - 20 + 9 * np.sin(x / 17 + z / 23), 104 - np.abs(x), 95 - z])
        loop = np.minimum(radius - away, room + 6)
        twig = np.hypot(np.sin(x / 7 + value), np.sin(y / 9 + z / 11 + second))  # small vessels of the mesentery
        label[(twig < 0.22) & (y > 0) & (room > -12)] = _V["vena_cava"]
        label[loop > 0] = _V["bowel"]
        label[loop > 3] = _V["bowel_contents"]
        filled = np.flatnonzero((loop > 3) & (y > 40))
        label[filled[self.loops[0](p[filled][:, [2, 0, 1]]) > 1.1]] = _V["bowel_gas"]
        kidney_right, kidney_left, liver, spleen, right, left = self.organs
        knots = _COLON.copy()
        knots[:, :3] += np.linspace(right, left, len(knots), dtype=np.float32)
        haustra = 2.2 * np.sin(z / 5 + x / 7)
        colon = np.minimum(chain_depth(*p.T, knots) + haustra, cavity - 1)
        label[colon > -2] = _V["visceral_fat"]
        label[colon > 0] = _V["bowel"]
        inner = np.flatnonzero(colon > 2.6)
        label[inner] = _V["bowel_contents"]
        raised = knots + np.float32([0, 24 + self.gas, 0, 16])  # gas rises to the front of the loop
        label[inner[chain_depth(*p[inner].T, raised) > 12]] = _V["bowel_gas"]
        for centre, shift in (((69, -21, 4), kidney_right), ((-66, -20, 14), kidney_left)):
            middle = np.asarray(centre, np.float32) + shift.astype(np.float32)
            inward = -np.sign(middle[0])
            turned = p - middle
            turned = np.stack(
                [turned[:, 0] + 0.18 * inward * turned[:, 2] * -1, turned[:, 1] + 0.12 * turned[:, 2], turned[:, 2]], 1
            )
            kidney = ellipsoid_depth(turned, (0, 0, 0), (29, 26, 56))
            sinus = ellipsoid_depth(turned, (inward * 17, 6, 0), (21, 9, 24))
            label[(kidney > -7) & (cavity > 0)] = _V["visceral_fat"]
            label[(kidney > 0) & (sinus < 0) & (cavity > -3)] = _V["kidney"]
        mass = np.maximum(
            ellipsoid_depth(p, tuple(np.array([84, 18, 62]) + liver), (68, 84, 100)),
            ellipsoid_depth(p, tuple(np.array([20, 52, 100]) + liver), (85, 38, 62)),
        )
        keep = (mass > 0) & (cavity > 1.5) & (label != _V["kidney"])
        fossa = ellipsoid_depth(p, tuple(np.array([69, -21, 4]) + kidney_right), (36, 33, 64)) < 0
        label[keep & fossa] = _V["liver"]
        organ = ellipsoid_depth(p, tuple(np.array([-104, -28, 75]) + spleen), (34, 48, 62))
        label[(organ > 0) & (cavity > 1.5) & (label != _V["kidney"])] = _V["spleen"]

    def _vessels(self, label: np.ndarray, p: np.ndarray) -> None:
        x, y, z = p.T
        middle_x, middle_y, outer = self._aorta(z)
        fork = -88.0
        over = z > fork
        gap = np.hypot(x - middle_x, y - middle_y)
        cava_x = middle_x + outer + 13
        cava = np.hypot((x - cava_x) / 13, (y + 9) / 9) < 1
        label[cava & over] = _V["vena_cava"]
        spread = np.maximum(fork - z, 0)
        iliac = np.hypot(np.abs(x + 5) - 6 - 0.55 * spread, y + 4 + 0.2 * spread)
        label[(iliac < 8.5) & ~over] = _V["vena_cava"]
        label[(gap < outer) & over] = _V["aorta_wall"]
        label[(gap < outer - 1.8) & over] = _V["aorta_thrombus"]
        largest, off_x, off_y = self.lumen
        ease = np.clip((outer - 10.5) / (self.aneurysm[0] - 10.5), 0, 1)
        lumen = np.minimum(8.7 + (largest - 8.7) * ease, outer - 1.8)
        room = np.maximum(outer - 1.8 - lumen, 0)
        length = np.maximum(np.hypot(off_x, off_y), 1e-6)
        push = np.minimum(1, room / length)
        inside = np.hypot(x - middle_x - off_x * push, y - middle_y - off_y * push) < lumen
        label[inside & over] = _V["aorta_lumen"]


def abdomen_patient(seed: int, scanner: str = "mr", posture: str | None = None) -> AbdomenPatient:
    """Return the virtual abdomen of `seed`, lying in `scanner`.

    Args:
        seed: the same seed is the same person.
        scanner: "mr" (flat table) or "ct" (curved couch, painted as "table" outside the body only: it is cut where the
            body presses into it, as the mean outline lies up to some 15 mm above the couch's surface).
        posture: whose table presses the back, "mr" or "ct", by default as `scanner`:
            `abdomen_patient(s, "ct", posture="mr")` is the true CT for the MR of the same person.

    Raises InputError for another scanner or posture.

    >>> mr, ct = abdomen_patient(3, "mr"), abdomen_patient(3, "ct")
    >>> back = np.array([[0.0, -90, 0]])
    >>> bool(mr.to_scanner(back)[0, 1] > ct.to_scanner(back)[0, 1])
    True
    """
    posture = posture or scanner
    for name, value in (("scanner", scanner), ("posture", posture)):
        if value not in ("mr", "ct"):
            raise InputError(f"{name}: {value!r}; expected 'mr' or 'ct'. Choose one")
    rng = np.random.default_rng([seed, 22])
    fat, radius = rng.uniform(11, 26), rng.uniform(20, 34)
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(2, 9)
    return AbdomenPatient(
        seed=seed,
        scanner=scanner,
        posture=posture,
        scale=tuple(rng.uniform(0.93, 1.06) * rng.uniform(0.97, 1.03, 3)),
        fat=fat,
        aneurysm=(radius, rng.uniform(-28, -4), rng.uniform(26, 42)),
        lumen=(min(rng.uniform(9.5, 16), radius - 3), shift * np.cos(angle), shift * np.sin(angle)),
        spine=(rng.uniform(-18, 18), rng.uniform(33, 38)),
        organs=rng.normal(0, [4, 4, 7], (6, 3)).clip(-12, 12),
        gas=rng.uniform(-6, 9),
        bends=tuple(Waves.random(rng, 4, 150.0, 0.3) for _ in range(3)),
        loops=(Waves.random(rng, 12, 62.0, 0.2), Waves.random(rng, 12, 62.0, 0.2)),
    )
