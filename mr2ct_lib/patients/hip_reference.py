"""The reference hip: names of its structures, landmarks, and its solids, as distances and as painters.

Points are in mm relative to the midpoint between the femoral heads: x lateral, y anterior, z superior; one side, the
other is its mirror image. Bones are chains of round cones, balls and bent sheets; muscles are sections at a few heights
between origin and insertion. A painter(labels, x, y, z) paints over flat `labels` (uint8) at coordinates of one shape.
"""

from collections.abc import Callable

import numpy as np

from mr2ct_lib.patients import shapes as solid
from mr2ct_lib.patients.shapes import Waves, smoothstep

STRUCTURES = (
    "pelvis", "femur", "sacrum", "gluteus_maximus", "gluteus_medius", "gluteus_minimus", "iliacus",
    "obturator_externus", "obturator_internus", "pectineus", "piriformis", "psoas_major", "adductor_muscles",
    "biceps_femoris", "gracilis", "rectus_femoris", "sartorius", "semimembranosus", "semitendinosus",
    "tensor_fasciae_latae", "vastus_lateralis_and_intermedius", "vastus_medialis",
)  # fmt: skip
_NAMES = (
    "background", "pelvis", "femur", "sacrum", "spine", *STRUCTURES[3:], "erector_spinae", "quadratus_lumborum",
    "rectus_abdominis", "latissimus_dorsi", "oblique_muscles", "pelvis_cortex", "femur_cortex", "sacrum_cortex",
    "spine_cortex", "femur_marrow", "cartilage", "skin", "subcutaneous_fat", "intermuscular_fat", "bladder", "vessels",
    "pelvic_contents", "bowel", "bowel_gas", "spinal_canal",
)  # fmt: skip
HIP_NAMES: dict[int, str] = dict(enumerate(_NAMES))
VALUE = {name: value for value, name in HIP_NAMES.items()}
# label value -> the muscle or bone that it is part of; 0 for structures of several pieces, such as vertebrae
PIECE = np.zeros(len(HIP_NAMES), dtype=np.uint8)
for _name in (
    *STRUCTURES,
    "erector_spinae",
    "quadratus_lumborum",
    "rectus_abdominis",
    "latissimus_dorsi",
    "oblique_muscles",
):
    PIECE[
        [value for value, name in HIP_NAMES.items() if name.removesuffix("_cortex").removesuffix("_marrow") == _name]
    ] = VALUE[_name]

# Sections of the muscles: (z, x, y, half length, half width, angle in degrees, bend), mm; see shapes.tube. Typical
# positions, rounded; muscles that go on below the field of view end at its lower edge (z = -260).
MUSCLES: dict[str, tuple[tuple[float, ...], ...]] = {
    "gluteus_maximus": ((-158, 139, 2, 5, 2.5, 88, 1), (-123, 138, -10, 23, 15, 44, 0), (-89, 129, -29, 48, 15, 28, -1),
        (-54, 125, -50, 71, 13, 33, 23), (-20, 112, -66, 94, 13, 30, 37), (15, 104, -65, 97, 16, 33, 20),
        (49, 102, -64, 93, 16, 35, 12), (84, 96, -69, 63, 12, 36, 10), (118, 71, -75, 5, 3.2, 17, 0)),
    "gluteus_medius": ((-33, 156, 13, 9, 3, -78, 0), (-9, 154, 5, 47, 7, 84, 17), (15, 147, 14, 48, 13, 76, 13),
        (40, 143, 10, 60, 14, 64, 16), (64, 138, 3, 70, 15, 64, 28), (89, 131, -10, 75, 12, 58, 26),
        (113, 114, -30, 55, 8, 43, 1),
        (138, 105, -40, 19, 3, 41, 0)),
    "gluteus_minimus": ((13, 132, 19, 10, 3, -70, -2), (33, 124, 11, 37, 7, 80, 8), (52, 119, 16, 43, 9, 76, 8),
        (72, 121, 13, 38, 6, 70, 9), (91, 130, 11, 27, 2.5, 71, 9)),
    "iliacus": ((-62, 109, 15, 4, 2.5, 51, 0), (-33, 105, 25, 13, 8, 18, 0), (-4, 100, 36, 16, 7, 2, -4),
        (25, 94, 38, 15, 8, 31, 1), (55, 85, 20, 34, 6, 63, 2), (84, 93, 1, 38, 7, 63, 11),
        (113, 98, -15, 45, 4, 44, 12),
        (142, 95, -31, 19, 2.5, 31, 2)),
    "obturator_externus": ((-56, 53, -5, 24, 8, -26, 2), (-48, 59, -10, 34, 11, -28, 3), (-39, 59, -10, 38, 15, -23, 8),
        (-31, 64, -6, 40, 14, -28, 4), (-23, 64, -1, 23, 9, -37, 1)),
    "obturator_internus": ((-36, 47, -23, 21, 4, -45, -2), (-22, 50, -17, 34, 9, -56, -4), (-7, 53, -20, 31, 9, -67, 0),
        (8, 61, -27, 19, 6, -77, 1), (22, 67, -30, 12, 4, -83, 0), (37, 69, -23, 6, 2.5, -81, 0)),
    "pectineus": ((-101, 103, 17, 10, 2.5, -16, -1), (-83, 95, 16, 17, 3.5, -26, -3), (-64, 79, 13, 19, 5.6, -20, 3),
        (-46, 60, 17, 26, 4, -20, 4), (-28, 49, 23, 21, 3.2, -25, 3), (-9, 51, 28, 18, 2.5, -22, 2)),
    "piriformis": ((24, 77, -53, 5, 2.5, 31, 0), (32, 66, -56, 22, 6, 38, -2), (40, 55, -61, 27, 8, 47, -3),
        (49, 48, -63, 24, 10, 48, -2), (57, 45, -61, 22, 10, 33, -2), (66, 37, -61, 6, 3, 34, -1)),
    "psoas_major": ((19, 77, 25, 4, 3, -51, 0), (62, 64, 13, 10, 7, 38, 0), (105, 55, 0, 15, 12, -47, 0),
        (147, 44, -7, 20, 13, -69, 0), (190, 38, -13, 19, 8, -69, -1), (233, 32, -21, 16, 6, -77, -2),
        (276, 23, -42, 4, 2.5, 88, 0)),
    "adductor_muscles": ((-260, 79, 62, 46, 20, -4, 6), (-167, 79, 22, 46, 20, -4, 6), (-145, 78, 14, 44, 20, -11, 15),
        (-124, 76, 11, 45, 22, -19, 9), (-102, 74, 2, 41, 21, -27, 9), (-81, 68, -2, 43, 24, -36, 4),
        (-59, 48, 8, 33, 15, -35, 8),
        (-38, 29, 25, 13, 4, -29, 0)),
    "biceps_femoris": ((-260, 120, 39, 15, 9, 39, 0), (-167, 120, -1, 15, 9, 39, 0), (-140, 116, -10, 12, 6.3, 54, 0),
        (-114, 112, -18, 8, 3.6, 76, 0), (-87, 103, -29, 5, 2.5, -78, 1)),
    "gracilis": ((-260, 32, 59, 22, 3.4, -62, 5), (-167, 32, 19, 22, 3.4, -62, 5), (-138, 31, 13, 23, 3.4, -66, 7),
        (-109, 31, 8, 24, 2.5, -67, 8), (-80, 31, 5, 24, 2.5, -70, 8)),
    "rectus_femoris": ((-260, 102, 108, 26, 10, 25, 0), (-167, 102, 68, 26, 10, 25, 0), (-129, 106, 57, 25, 9, 22, 1),
        (-92, 111, 46, 23, 10, 18, -1), (-54, 117, 42, 18, 9, 14, 0), (-17, 121, 41, 10, 7, 2, 0),
        (21, 111, 36, 4, 3, -52, 0)),
    "sartorius": ((-260, 60, 95, 20, 4, 3, 2), (-167, 60, 55, 20, 4, 3, 2), (-124, 69, 50, 16, 5, 2, 2),
        (-81, 85, 46, 12, 6, 26, 1), (-37, 100, 49, 12, 6, 22, 0), (6, 110, 54, 11, 5, 14, 1),
        (49, 105, 57, 5, 3, -4, 0)),
    "semimembranosus": ((-260, 76, 36, 14, 10, -29, 0), (-167, 76, -4, 8, 6, -29, 0), (-156, 77, -8, 6, 4, -61, 0),
        (-146, 78, -11, 5, 3, -68, 0), (-135, 80, -14, 4, 2.5, 90, 0)),
    "semitendinosus": ((-260, 97, 36, 13, 10, 6, 0), (-167, 97, -4, 13, 10, 6, 0), (-139, 97, -12, 13, 9, 2, 0),
        (-111, 96, -23, 14, 8, 1, -1), (-83, 92, -37, 9, 5, 24, -1), (-55, 92, -42, 11, 7, -77, -1),
        (-27, 94, -51, 6, 2.5, 81, 1)),
    "tensor_fasciae_latae": ((-128, 157, 63, 7, 2.5, -10, -1), (-93, 158, 53, 17, 4, -9, -2),
        (-57, 156, 47, 17, 7, -8, 0),
        (-22, 148, 47, 14, 7, -6, 1), (14, 136, 54, 14, 5, 14, -2), (49, 123, 58, 8, 3, 16, -2)),
    "vastus_lateralis_and_intermedius": ((-260, 155, 88, 37, 24, -72, 0), (-167, 155, 48, 37, 24, -72, 0),
        (-140, 154, 41, 36, 22, -47, 0), (-112, 152, 34, 33, 21, -43, 0), (-85, 151, 25, 31, 19, 89, 0),
        (-58, 149, 16, 31, 12, -65, -7), (-30, 144, 10, 4, 2.5, -29, 1)),
    "vastus_medialis": ((-260, 109, 91, 13, 9, 58, 0), (-167, 109, 51, 13, 9, 58, 0), (-136, 110, 37, 10, 8, 77, 0),
        (-105, 110, 25, 9, 5, -85, 1), (-74, 109, 14, 6, 2.5, 66, 1)),
    "erector_spinae": ((85, 16, -91, 14, 9, 6, 0), (136, 32, -73, 32, 19, 17, -1), (187, 38, -58, 39, 24, 31, -2),
        (238, 41, -65, 40, 19, 20, 7), (289, 41, -79, 41, 16, 1, 4)),
    "quadratus_lumborum": ((154, 93, -36, 23, 9, 23, 6), (194, 68, -29, 30, 9, 11, 2), (234, 52, -35, 24, 7, 10, -2),
        (274, 42, -50, 16, 5, -19, 0)),
    "rectus_abdominis": ((-8, 12, 43, 14, 4, -2, 1), (51, 20, 51, 24, 7, -5, -1), (111, 32, 90, 33, 6, 0, 3),
        (170, 41, 129, 38, 6, -7, 5), (230, 45, 133, 45, 5, -8, -4), (289, 38, 105, 39, 5, -1, 0)),
    "latissimus_dorsi": ((222, 103, -20, 33, 3, 39, 1), (244, 105, -31, 44, 3, 47, 0), (266, 113, -40, 49, 4, 47, 5),
        (288, 124, -42, 53, 3, 51, 11)),
    "oblique_muscles": ((24, 58, 42, 21, 2.6, 15, 1), (68, 76, 53, 24, 4.3, 8, 6), (112, 111, 71, 41, 7.8, -30, -4),
        (156, 144, 59, 83, 7.8, -74, -56), (201, 143, 56, 88, 7.8, -82, -76), (245, 132, 50, 83, 9, 90, -2),
        (289, 143, 18, 113, 11, 82, 87)),
}  # fmt: skip
# Sheet of the iliac wing and, below it, the inner wall of the acetabulum; the sacrum.
ILIUM = (
    (-18, 66, -14, 46, 4, -60, 0), (-6, 70, -16, 48, 6, -66, 0), (12, 75, -17, 44, 9, -72, 0),
    (28, 89, -9, 34, 17, -101, 0),
    (45, 91, -3, 38, 13, -108, -1), (63, 88, -16, 64, 10, -114, -9), (80, 92, -16, 86, 8, -115, -18),
    (97, 97, -20, 102, 7, -123, -18), (115, 100, -24, 92, 6, -132, -4), (132, 99, -32, 66, 6, -138, 0),
    (148, 92, -40, 24, 3, -151, 0),
)  # fmt: skip
SACRUM = (
    (-12, 0, -96, 5, 2, 0, 0), (15, 0, -99, 16, 5, 0, -5), (38, 0, -99, 40, 8, 0, 9), (61, 0, -88, 60, 14, 0, 26),
    (84, 0, -64, 62, 24, 0, 28), (107, 0, -53, 62, 15, 0, 22), (126, 0, -40, 36, 8, 0, 0),
)  # fmt: skip
HEAD = (98.0, 0.0, 0.0)
HEAD_RADIUS = 23.8
SOCKET_RADIUS = 26.5
NECK_BASE = (129.0, -14.0, -37.0)
SHAFT = (
    (-260, 132, 92, 17, 15, 80, 0), (-167, 132, 50, 17, 15, 80, 0), (-125, 132, 30, 17, 15, 90, 0),
    (-83, 129, 9, 18, 16, 130, 0), (-60, 127, -2, 21, 18, 150, 0), (-38, 131, -11, 24, 19, 160, 0),
)  # fmt: skip
NECK = ((*HEAD, 17), (112, -5, -15, 15.5), (*NECK_BASE, 17))
TROCHANTERS = (
    ((141, -22, -6, 7), (145, -19, -24, 13), (138, -12, -48, 15)),
    ((112, -20, -62, 7), (124, -8, -54, 11)),
)
PELVIS_CHAINS = (
    ((80, -27, 22, 13), (77, -35, -16, 13), (76, -42, -40, 14), (64, -41, -56, 10)),  # ischium and its tuberosity
    ((84, 10, 28, 12), (62, 24, 6, 8), (36, 31, -10, 7), (16, 27, -22, 9), (13, 14, -40, 9)),  # superior pubic ramus
    ((14, 9, -42, 8), (36, -12, -54, 6.5), (60, -36, -58, 9)),  # inferior ramus
)
VESSELS = (
    (
        (26, 10, 210, 6),
        (30, 12, 140, 5),
        (56, 28, 70, 5),
        (86, 47, 5, 5),
        (85, 42, -60, 4.5),
        (84, 44, -170, 4),
        (84, 70, -260, 4),
    ),
    (
        (24, 2, 210, 7),
        (28, 4, 140, 6),
        (50, 22, 70, 6),
        (76, 43, 5, 6),
        (78, 35, -60, 5.5),
        (76, 37, -170, 5),
        (76, 64, -260, 5),
    ),
)
# Body outline at FAT mm of subcutaneous fat: z, x of the middle, half width, y of the middle, half depth.
FAT = 21.0
TRUNK = (
    (-100, 0, 60, 22, 22), (-80, 0, 150, 10, 52), (-59, 0, 188, 4, 64), (-32, 0, 198, -13, 83), (-5, 0, 196, -24, 97),
    (22, 0, 191, -28, 100), (49, 0, 190, -27, 102), (76, 0, 187, -20, 107), (103, 0, 181, -7, 116),
    (130, 0, 176, 8, 123),
    (157, 0, 170, 24, 128), (184, 0, 170, 34, 131), (211, 0, 168, 36, 131), (265, 0, 164, 32, 128),
    (360, 0, 160, 30, 126),
)  # fmt: skip
LEG = (
    (-260, 106, 102, 58, 66), (-167, 106, 103, 26, 67), (-140, 107, 104, 18, 67), (-113, 107, 105, 10, 69),
    (-86, 108, 104, -2, 75), (-50, 110, 98, -12, 80), (-20, 110, 80, -20, 70),
)  # fmt: skip
CAVITY = (
    (-58, 0, -14, 9, 22, 0, 0), (-18, 0, -28, 22, 32, 0, 0), (10, 0, -28, 46, 42, 0, 0), (50, 0, -22, 62, 52, 0, 0),
    (85, 0, 6, 84, 52, 0, 0),
    (120, 0, 34, 100, 58, 0, 0), (170, 0, 56, 118, 74, 0, 0), (300, 0, 52, 120, 74, 0, 0),
)  # fmt: skip
LAYERS = ("background", "skin", "subcutaneous_fat", "subcutaneous_fat", "intermuscular_fat")  # from outside to inside
GROWTH = 1.0  # mm that muscles grow towards their neighbours


# the tubes among the bones and the cavity, ready to be looked up
_ILIUM, _SACRUM, _SHAFT, _CAVITY = (solid.section_table(sections) for sections in (ILIUM, SACRUM, SHAFT, CAVITY))


def follows_femur(q: np.ndarray) -> np.ndarray:
    """How far a reference point (3, ...) moves with the femur: 0 on the pelvis and the midline, 1 on the femur."""
    x, y, z = q - np.array(HEAD).reshape(3, *[1] * (q.ndim - 1))
    lateral = smoothstep(0.92 * x - 0.38 * z, -12, 22)
    below = smoothstep(-z, 66, 120)
    midline = np.maximum(smoothstep(q[0], 8, 45), smoothstep(-z, 80, 110))
    above = 1 - smoothstep(z, 20, 110)
    return np.maximum(lateral * above, below) * midline


def skin_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the skin at FAT mm of fat: trunk and leg of one side."""
    return np.minimum(solid.outline(x, y, z, TRUNK), solid.outline(x, y, z, LEG))


def paint_contents(
    labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, bladder: float, texture: Waves
) -> None:
    """Bowel, pelvic organs and the bladder inside the abdominal and pelvic cavity."""
    inside = np.flatnonzero(solid.tube(x, y, z, _CAVITY) < 0)
    height, part = z.take(inside), labels.take(inside)
    pattern = texture.on(x.take(inside), y.take(inside), height)
    part[pattern > -0.1] = VALUE["bowel"]
    part[(pattern > 1.75) & (height > 40)] = VALUE["bowel_gas"]
    part[(height < 62 + 12 * pattern) & (pattern > -1.0)] = VALUE["pelvic_contents"]
    labels.put(inside, part)
    middle, radii = (0, -2, 8 + 20 * bladder), (40 * bladder, 27 * bladder, 27 * bladder)
    near = np.flatnonzero((np.abs(z - middle[2]) < radii[2]) & (np.abs(y - middle[1]) < radii[1]))
    points = np.stack([x.take(near), y.take(near), z.take(near)], axis=-1)
    labels.put(near[solid.ellipsoid_depth(points, middle, radii) > 0], VALUE["bladder"])


def paint_vessel(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, line: tuple) -> None:
    """Paint one vessel into labels at the points (x, y, z) in mm. line: as in `shapes.chain_depth`."""
    labels[solid.chain_depth(x, y, z, line) > 0] = VALUE["vessels"]


def _paint_sacrum(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    distance = solid.tube(x, y, z, _SACRUM)
    labels[distance < 0] = VALUE["sacrum_cortex"]
    labels[distance < -1.2] = VALUE["sacrum"]


def _paint_spine(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    phase = np.mod(z - 118, 37.0)  # 28 mm of vertebra, 9 mm of disc
    waist = 1 - np.float32(0.10) * np.sin(np.clip(phase / 28, 0, 1) * np.pi)
    lean = np.float32(0.0008) * (z - 200) ** 2
    body = (np.hypot(x / (26 * waist), (y + 14 + lean) / (19 * waist)) - 1) * 19
    canal = np.hypot(x / 1.2, y + 41 + lean) - 7.5
    arch = np.minimum(np.hypot(x, y + 43 + lean) - 15, np.maximum(np.abs(x) - 4, np.abs(y + 64 + lean) - 16) + 0 * z)
    wing = np.hypot(y + 42 + lean, np.minimum(phase - 20, 0) + np.maximum(phase - 20, 0)) - 5
    wing = np.maximum(wing, np.abs(x) - 38)
    bone = np.minimum(np.minimum(body, arch), wing)
    ends = np.maximum(96 - z, z - 300)
    bone = np.maximum(bone, ends)
    disc = np.maximum(np.maximum(body, 28 - phase), ends)
    rim = np.maximum(bone, np.where(body < 0, np.maximum(body, np.maximum(phase - 28, -phase)), -99))
    labels[bone < 0] = VALUE["spine_cortex"]
    labels[rim < -1.2] = VALUE["spine"]
    labels[disc < 0] = VALUE["cartilage"]
    labels[np.maximum(canal, ends) < 0] = VALUE["spinal_canal"]


def _paint_pelvis(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    bone = solid.tube(x, y, z, _ILIUM)
    for points in PELVIS_CHAINS:
        solid.add_chain(bone, x, y, z, points)
    dx, dy, dz = x - HEAD[0], y - HEAD[1], z - HEAD[2]
    radius = np.sqrt(dx * dx + dy * dy + dz * dz)
    opening = 0.74 * dx + 0.22 * dy - 0.63 * dz  # towards the rim: lateral, anterior, inferior
    cup = np.maximum(np.maximum(radius - 33, SOCKET_RADIUS - radius), opening - 6)
    bone = np.maximum(np.minimum(bone, cup), SOCKET_RADIUS - radius)
    bone = np.maximum(bone, 2.2 - x)
    labels[bone < 0] = VALUE["pelvis_cortex"]
    labels[bone < -1.6] = VALUE["pelvis"]
    joint = (radius < SOCKET_RADIUS) & (opening < 6)
    symphysis = (x < 2.2) & (np.hypot(y - 21, z + 31) < 13)
    labels[joint | symphysis] = VALUE["cartilage"]
    labels[(radius < SOCKET_RADIUS) & (opening >= 6)] = VALUE["intermuscular_fat"]


def _paint_femur(labels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    shaft = solid.tube(x, y, z, _SHAFT)
    head = np.sqrt((x - HEAD[0]) ** 2 + (y - HEAD[1]) ** 2 + (z - HEAD[2]) ** 2) - HEAD_RADIUS
    bone = np.minimum(shaft, head)
    for points in (NECK, *TROCHANTERS):
        solid.add_chain(bone, x, y, z, points)
    cortex = 1.6 + 4.4 * smoothstep(-z, 45, 100)
    labels[bone < 0] = VALUE["femur_cortex"]
    inside = bone < -cortex
    labels[inside] = VALUE["femur"]
    labels[inside & (z < -62)] = VALUE["femur_marrow"]


BONES: dict[
    Callable[..., None], tuple[tuple[float, ...], tuple[float, ...]]
] = {  # and the box (low, high) that each lies in
    _paint_sacrum: solid.tube_bounds(SACRUM),
    _paint_spine: ((-1, -95, 80), (40, 30, 300)),
    _paint_pelvis: ((-1, -125, -70), (175, 100, 152)),
    _paint_femur: ((70, -50, -262), (172, 115, 28)),
}
