"""Any label map as a virtual patient: missing tissues are completed, and each seed deforms it into another person."""

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.same_grid import check_same_grid
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.patients.grids import voxel_centres
from mr2ct_lib.patients.shapes import Waves, smoothstep
from mr2ct_lib.patients.tissues import plain, tissue_of

FAT_MM = 12.0  # subcutaneous fat that complete_labels lays over a map without a body
SKIN_MM = 2.0
JOINT_MM = 5.0  # two bones this near to a point have cartilage there
RING_MM = 15.0  # gaps in the ring of bones and muscles around the belly, at most
LONG_BONES = ("femur", "humerus")
SHAFT_MM = 86.0  # below its highest point a long bone is a shaft
WAVE_MM = 150.0  # over which the deformations of a label map vary
SMALLEST_JACOBIAN = 0.3  # of such a deformation: below 0 it would fold


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _guess_body(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Closing of the labelled part in each axial slice (convex hull of its pieces), widened by FAT_MM."""
    from skimage.morphology import convex_hull_image

    hull = np.zeros_like(inside)
    for k in np.flatnonzero(inside.any(axis=(0, 1))):
        parts, count = ndimage.label(ndimage.binary_dilation(inside[:, :, k], iterations=max(1, int(12 / spacing[0]))))
        for part in range(1, count + 1):
            piece = inside[:, :, k] & (parts == part)
            if piece.sum() > 3:
                hull[:, :, k] |= convex_hull_image(piece)
    return ndimage.distance_transform_edt(~hull, sampling=spacing) <= FAT_MM + SKIN_MM


def _added(names: dict[int, str], tissues: dict[int, str]) -> list[str]:
    """Return the names that complete_labels adds to a map of these names, in the order of their new values."""
    bones = [names[value] for value in sorted(tissues) if tissues[value] == "trabecular_bone"]
    long = [bone for bone in bones if plain(bone) in LONG_BONES]
    soft = ["skin", "intermuscular_fat", "subcutaneous_fat", "cartilage", "pelvic_contents"]
    return soft + [f"{bone}_cortex" for bone in bones] + [f"{bone}_marrow" for bone in long]


def _belly(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the wide hollow that bones and muscles surround in axial slices, bool (I, J, K); narrow gaps are fat."""
    reach = max(1, int(round(RING_MM / spacing[:2].min())))
    around = [(reach + 1, reach + 1), (reach + 1, reach + 1), (0, 0)]
    cut = tuple(slice(low, -low or None) for low, _ in around)
    disc = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])  # in the slice only
    ring = ndimage.binary_closing(np.pad(inside, around), disc, iterations=reach)[cut]
    seen = ~ring
    for axis in (0, 1):  # a ring stands in front, behind and on both sides
        seen &= np.maximum.accumulate(ring, axis=axis)
        seen &= np.flip(np.maximum.accumulate(np.flip(ring, axis), axis=axis), axis)
    # by majority over neighbouring slices: the ring has gaps, here in one slice, there in another
    seen = (
        ndimage.uniform_filter1d(
            seen.astype(np.float32), max(1, int(round(4 * RING_MM / spacing[2]))), axis=2, mode="nearest"
        )
        > 0.4
    )
    wide = ndimage.binary_opening(seen & ~ring, disc, iterations=reach)
    return wide & (Waves.of_seed(17, 48.0).on(*voxel_centres(inside.shape, np.diag([*spacing, 1.0]))) > -0.8)


def _paint_joints(out: np.ndarray, labels: np.ndarray, bones: list[int], spacing: np.ndarray, cartilage: int) -> None:
    """Cartilage where nothing is labelled and two bones are near."""
    reach = np.ceil(JOINT_MM / spacing).astype(int)
    boxes = dict(enumerate(ndimage.find_objects(labels), start=1))
    for number, one in enumerate(bones):
        for other in bones[number + 1 :]:
            box = tuple(
                slice(max(0, max(a.start, b.start) - r), min(a.stop, b.stop) + r)
                for a, b, r in zip(boxes[one], boxes[other], reach, strict=True)
            )
            part = labels[box]
            if min(part.shape) and (part == one).any() and (part == other).any():
                close = [
                    ndimage.distance_transform_edt(part != bone, sampling=spacing) <= JOINT_MM for bone in (one, other)
                ]
                out[box][close[0] & close[1] & (part == 0)] = cartilage


def _paint_cortex(
    out: np.ndarray, labels: np.ndarray, value: int, spacing: np.ndarray, cortex: int, marrow: int | None
) -> None:
    """The outer shell of a bone; a long bone (with a value for `marrow`) has a thick one and marrow along its shaft."""
    bone = labels == value
    box = ndimage.find_objects(bone.astype(np.uint8))[0]
    grown = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
    solid = ndimage.binary_closing(np.pad(bone[grown], 2, mode="edge"), iterations=1)[2:-2, 2:-2, 2:-2]
    inner = np.pad(solid, 1, mode="edge")  # a bone cut by the scan's edge has no cortex there
    depth = ndimage.distance_transform_edt(inner, sampling=spacing)[1:-1, 1:-1, 1:-1]
    below = spacing[2] * (
        box[2].stop - 1 - grown[2].start - np.arange(depth.shape[2])
    )  # mm below the bone's highest point
    thick = 2.2 + 0.5 * spacing.min()  # mm, from the centre of the first voxel outside
    if marrow is not None:
        out[grown][bone[grown] & (below > SHAFT_MM)] = marrow
        thick = thick + 3.8 * smoothstep(below, SHAFT_MM - 16, SHAFT_MM + 38)
    out[grown][bone[grown] & (depth <= thick)] = cortex


def _paint_soft_tissue(
    labels: np.ndarray, values: dict[str, int], spacing: np.ndarray, body: np.ndarray | None
) -> np.ndarray:
    """Return the labels (I, J, K) with skin, fat and pelvic contents (name -> value) where the body is unlabelled."""
    inside = labels > 0
    step = [max(1, int(round(3.0 / mm))) for mm in spacing[:2]]  # soft outlines need no more than 3 mm in plane
    coarse, wide = inside[:: step[0], :: step[1]], spacing * (*step, 1)

    def fine(mask: np.ndarray) -> np.ndarray:
        return mask.repeat(step[0], axis=0).repeat(step[1], axis=1)[: labels.shape[0], : labels.shape[1]]

    if body is None:
        body = fine(_guess_body(coarse, wide))
    body = _largest(np.asarray(body, bool) | inside)
    body = np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], axis=2)
    rim = np.ones((3, 3, 1), bool)  # skin is counted in the axial plane: a scan's first and last slice are cuts
    within = ndimage.binary_erosion(body, rim, iterations=max(1, int(round(SKIN_MM / spacing[:2].min()))))
    near = ndimage.distance_transform_edt(~coarse, sampling=wide) <= 8.0
    core = fine(ndimage.binary_closing(np.pad(near, 6), iterations=5)[6:-6, 6:-6, 6:-6])
    empty = body & ~inside
    out = labels.astype(np.int16)
    for name, where in (
        ("skin", empty & ~within),
        ("pelvic_contents", empty & ~core & fine(_belly(coarse, wide))),
        ("intermuscular_fat", empty & core),
        ("subcutaneous_fat", empty),
    ):
        out[where & (out == 0)] = values[name]
    return out


def complete_labels(
    labels: np.ndarray, names: dict[int, str], spacing: np.ndarray, body: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Turn a map of muscles and bones into one of a whole patient.

    Labelled voxels keep their label, except that the outer shell of each bone becomes `<bone>_cortex` and the inside of
    a femur's shaft `femur_marrow`. Unlabelled voxels inside the body become cartilage between two bones, pelvic
    contents where a ring of bones and muscles encloses them, intermuscular fat near muscle and bone, otherwise
    subcutaneous fat; the rim becomes skin. A map that already names skin or fat is returned as it is.

    Args:
        labels: whole numbers (I, J, K).
        names: value -> name.
        spacing: voxel size (3,) in mm.
        body: bool (I, J, K); None guesses it: the closed labelled part with subcutaneous fat around it.

    Returns:
        The new labels (uint8 or int16) and names.

    Raises InputError for values without a name, names without a tissue, and a map without any label.
    """
    present = {value for value, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    missing = [value for value in present if value not in names]
    if missing:
        raise InputError(
            f"label map: values {missing} have no name; expected one for each value. Add them to the names"
        )
    tissues = {value: tissue_of(name).name for value, name in names.items()}
    if not present:
        raise InputError("label map: holds background only; expected some structures. Choose another file")
    have = {plain(names[value]) for value in present}
    names = {0: "background"} | dict(names)
    if "skin" in have or {"subcutaneous_fat", "fat"} & have:
        return labels.astype(np.uint8 if max(names) < 256 else np.int16), names

    spacing = np.asarray(spacing, dtype=float)
    values = {name: value for value, name in names.items()}
    for name in _added(names, tissues):
        values.setdefault(name, max(values.values()) + 1)
    names |= {value: name for name, value in values.items()}
    out = _paint_soft_tissue(labels, values, spacing, body)
    bones = [value for value in sorted(tissues) if tissues[value] == "trabecular_bone" and value in present]
    _paint_joints(out, labels, bones, spacing, values["cartilage"])
    for value in bones:
        _paint_cortex(
            out, labels, value, spacing, values[f"{names[value]}_cortex"], values.get(f"{names[value]}_marrow")
        )
    return out.astype(np.uint8 if max(names) < 256 else np.int16), names


@dataclass(frozen=True)
class LabelMapPatient:
    """Any label map through the interface of the virtual patients: nearest voxel, optionally smoothly deformed by seed.

    `labels` a Volume of unit "label"; `names` value -> name; `body` an optional Volume mask on the same grid; `seed`
    chooses the deformation (about `amplitude` mm, waves of about WAVE_MM, always invertible: see `displacement`);
    `deform=False` or seed 0 gives the map as it is. Without skin and fat the map is completed first (see
    `complete_labels`).

    Raises InputError as `complete_labels`, or when the body lies on another grid.
    """

    labels: Volume
    names: dict[int, str]
    body: Volume | None = None
    seed: int = 0
    deform: bool = True
    amplitude: float = 5.0
    completed: Volume = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.body is not None:
            check_same_grid(self.body, "body mask", self.labels, "the label map")
        body = None if self.body is None else self.body.array > 0
        array, names = complete_labels(self.labels.array, self.names, self.labels.spacing, body)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "completed", self.labels.replace(array=array, unit="label"))
        object.__setattr__(
            self, "labels", self.completed
        )  # what it was made of is no longer needed: a worker holds one copy
        object.__setattr__(self, "body", None)

    def with_seed(self, seed: int, deform: bool = True) -> "LabelMapPatient":
        """Return another patient from the same map, without completing it again."""
        other = copy(self)
        other.__dict__.pop("strength", None)  # of the deformation; the landmarks are the map's own
        object.__setattr__(other, "seed", seed)
        object.__setattr__(other, "deform", deform)
        return other

    def _waves(self, points: np.ndarray) -> np.ndarray:
        return np.stack([Waves.of_seed(3 * self.seed + axis, WAVE_MM).on(*points) for axis in range(3)])

    @cached_property
    def strength(self) -> float:
        """SD of the deformation in mm per axis: `amplitude`, or less for a seed that would nearly fold space."""
        affine = self.completed.affine
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.completed.array.shape], indexing="ij")).reshape(3, -1)
        places = affine[:3, :3] @ corners + affine[:3, 3:]
        low, high = places.min(axis=1), places.max(axis=1)
        step = WAVE_MM / 10
        lattice = np.diag([step, step, step, 1.0])
        lattice[:3, 3] = low
        field_ = self._waves(voxel_centres(tuple(int(n) for n in np.ceil((high - low) / step) + 2), lattice))
        slope = np.stack([np.stack(np.gradient(part, step)) for part in field_]).transpose(2, 3, 4, 0, 1)
        strength = float(self.amplitude)
        while np.linalg.det(np.eye(3) + strength * slope).min() < SMALLEST_JACOBIAN:
            strength *= 0.9
        return strength

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """Return the displacement (3, ...) in mm from `points` (3, ...) to where their tissue lies in the map.

        It is 0 for the map itself. points -> points + displacement(points) is invertible: its Jacobian determinant is
        positive everywhere.
        """
        if not (self.deform and self.seed):
            return np.zeros_like(points)
        return np.float32(self.strength) * self._waves(points)

    @cached_property
    def landmarks(self) -> dict[str, tuple[float, float, float]]:
        """Points in mm: "centre", between the femoral heads when the map names a femur, otherwise the map's middle."""
        array, affine = self.completed.array, self.completed.affine
        values = [value for value, name in self.names.items() if plain(name) == "femur"]
        index = np.argwhere(np.isin(array, values)) if values else np.empty((0, 3))
        if len(index) == 0:
            index = np.argwhere(array > 0)
            return {"centre": tuple(float(v) for v in affine[:3, :3] @ index.mean(axis=0) + affine[:3, 3])}
        points = index @ affine[:3, :3].T + affine[:3, 3]
        heads = []
        middle = 0.5 * (points[:, 0].min() + points[:, 0].max())
        for sign in (1, -1):
            side = points[sign * (points[:, 0] - middle) > 0]
            if len(side) == 0:
                continue
            top = side[side[:, 2] > side[:, 2].max() - 45]
            inner = (sign * top[:, 0]).min()
            head = top[sign * top[:, 0] < inner + 45]
            heads.append(0.5 * (head.min(axis=0) + head.max(axis=0)) * (1, 1, 0) + (0, 0, head[:, 2].max() - 23))
        heads = heads or points  # a femur in one sagittal plane has no sides
        return {"centre": tuple(float(v) for v in np.mean(heads, axis=0))}

    def paint(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Return labels (I, J, K) at the voxel centres of a grid; background outside of the map."""
        points = voxel_centres(shape, affine)
        if self.deform and self.seed:
            points = points + self.displacement(points)
        inverse = np.linalg.inv(self.completed.affine).astype(np.float32)
        index = np.rint(np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3, None, None, None]).astype(
            np.int32
        )
        size = np.array(self.completed.array.shape)[:, None, None, None]
        valid = ((index >= 0) & (index < size)).all(axis=0)
        index = np.clip(index, 0, size - 1)
        return np.where(valid, self.completed.array[tuple(index)], self.completed.array.dtype.type(0))
