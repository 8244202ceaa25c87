"""The tissue table: what each tissue does in MR and CT, and which tissue each named structure is made of.

Relaxation times at 1.0 and 1.5 T, proton densities and Hounsfield units from published measurements; values without a
source are choices and marked so in the comments. T1 at 1.0 T follows from 1.5 T / 3 T pairs by a power law.
"""

import re
from dataclasses import dataclass

import numpy as np

from mr2ct_lib.files import InputError


@dataclass(frozen=True)
class Tissue:
    """One tissue. Times in ms, `pd` relative to CSF = 1, `hu` and its spread within a tissue `hu_sd` in HU.

    `hu_sd` is measured in a real CT, so it includes that scan's noise (about 12 HU) besides the tissue's texture. `mtr`
    is the magnetisation transfer ratio of multi-slice spin echoes, see `physics.spin_echo`. Only heads are scanned by
    those here, so only brain tissues have one.
    """

    name: str
    t1_10: float
    t1_15: float
    t2: float
    t2star: float
    pd: float
    hu: float
    hu_sd: float
    mtr: float = 0.0


_ROWS = (
    # name, T1 1.0 T, T1 1.5 T, T2, T2*, PD, HU, SD of HU
    Tissue("air", 1.0, 1.0, 1.0, 1.0, 0.0, -1000, 0),  # no signal: PD is 0, times are place holders
    Tissue("gas", 1.0, 1.0, 1.0, 1.0, 0.0, -850, 100),
    Tissue("muscle", 990, 1130, 35, 27, 0.90, 35, 15),
    Tissue("fat", 250, 288, 100, 58, 0.95, -94, 23),
    Tissue("intermuscular_fat", 260, 300, 95, 50, 0.94, -84, 25),  # a choice: fat with some septa in it
    Tissue("yellow_marrow", 250, 288, 165, 25, 0.90, -60, 30),  # PD a choice
    Tissue("trabecular_bone", 530, 549, 49, 13, 0.85, 200, 90),  # red marrow between trabeculae; PD a choice
    Tissue("cortical_bone", 200, 200, 1.5, 1.0, 0.10, 1100, 200),
    Tissue("cartilage", 970, 1060, 42, 30, 0.60, 114, 14),  # T2* and PD a choice
    Tissue("blood", 1215, 1441, 290, 100, 0.85, 42, 13),  # T2* a choice
    Tissue("fluid", 4300, 4300, 2100, 1500, 1.00, 8, 10),  # CSF and urine
    Tissue("grey_matter", 1010, 1197, 95, 69, 0.83, 41, 8, mtr=0.14),  # MTR a choice: grey has fewer macromolecules
    Tissue("white_matter", 555, 646, 72, 61, 0.70, 26, 8, mtr=0.20),  # in vivo 0.19 to 0.21, Radunsky et al. 2021
    # a choice: between grey and white, iron shortens T2
    Tissue("deep_grey_matter", 900, 1070, 88, 60, 0.80, 40, 8, mtr=0.14),
    Tissue("liver", 485, 586, 46, 30, 0.90, 47, 13),
    Tissue("spleen", 925, 1057, 79, 50, 0.90, 35, 12),  # T2* and PD a choice
    Tissue("kidney", 876, 966, 87, 60, 0.95, 17, 20),  # T2* a choice
    Tissue("bowel_wall", 990, 1130, 35, 27, 0.90, 18, 18),  # relaxation as muscle; PD a choice
    Tissue("soft_organ", 1100, 1280, 75, 45, 0.88, 30, 15),  # a choice: uterus, prostate, filled bowel
    Tissue("skin", 700, 800, 35, 15, 0.70, 20, 20),  # a choice
    Tissue("vessel_wall", 990, 1130, 35, 27, 0.80, 50, 10),  # PD a choice
    Tissue("thrombus", 900, 1000, 35, 15, 0.75, 70, 10),  # organised: dark on T1 and T2; PD a choice
    Tissue("table", 1.0, 1.0, 1.0, 1.0, 0.0, -680, 60),
)
TISSUES: dict[str, Tissue] = {tissue.name: tissue for tissue in _ROWS}

_MUSCLES = (
    "gluteus_maximus gluteus_medius gluteus_minimus iliacus iliopsoas obturator_externus obturator_internus pectineus "
    "piriformis psoas_major adductor_muscles biceps_femoris gracilis rectus_femoris sartorius semimembranosus "
    "semitendinosus tensor_fasciae_latae vastus_lateralis_and_intermedius vastus_medialis erector_spinae autochthon "
    "quadratus_lumborum rectus_abdominis latissimus_dorsi oblique_muscles abdominal_wall gemelli psoas "
    "muscles heart diaphragm"
)
_BONES = (
    "pelvis hip femur sacrum spine vertebra vertebrae bone bones ribs rib lumbar_spine skull_diploe humerus scapula "
    "clavicula sternum"
)
_MEMBERS = {
    "air": "background air outside",
    "gas": "gas bowel_gas bowel_lumen stomach_gas sinus lung",
    "muscle": _MUSCLES,
    "fat": "subcutaneous_fat visceral_fat",
    "trabecular_bone": _BONES,
    "cortical_bone": "cortex_of_bone skull table_of_skull",
    "cartilage": "disc discs intervertebral_discs intervertebral_disc",
    "blood": "vessels femoral_vessels vessel aorta aorta_lumen lumen inferior_vena_cava vena_cava portal_vein "
    "iliac_artery iliac_vena",
    "fluid": "bladder urinary_bladder csf cerebrospinal_fluid ventricles ventricle spinal_canal gallbladder",
    "grey_matter": "cortical_grey_matter cerebral_cortex cerebellar_grey_matter brain",
    "white_matter": "cerebral_white_matter cerebellar_white_matter brainstem brain_stem corpus_callosum",
    "deep_grey_matter": "deep_nuclei thalamus caudate putamen pallidum amygdala hippocampus",
    "kidney": "kidneys kidney_cortex",
    "bowel_wall": "bowel colon small_bowel stomach duodenum esophagus",
    "soft_organ": "pelvic_contents bowel_contents prostate uterus rectum pancreas adrenal_gland organs",
    "vessel_wall": "aorta_wall aneurysm_wall",
    "thrombus": "aneurysm_thrombus aorta_thrombus",
    "table": "table_shell couch",
}
_TISSUE_OF = {name: name for name in TISSUES} | {
    structure: tissue for tissue, structures in _MEMBERS.items() for structure in structures.split()
}
_SUFFIXES = {"_cortex": "cortical_bone", "_cortical": "cortical_bone", "_marrow": "yellow_marrow"}


def plain(structure: str) -> str:
    """Return a structure's name in lower case, without its side.

    >>> plain("Femur left"), plain("right_femur"), plain("femur_left_cortex")
    ('femur', 'femur', 'femur_cortex')
    """
    name = re.sub(r"[ -]", "_", structure.strip().lower())
    return re.sub(r"^(left|right)_|_(left|right)(?=$|_cortex$|_cortical$|_marrow$)", "", name)


def tissue_of(structure: str) -> Tissue:
    """Return the tissue that a structure is made of; a bone's own name is its inside, `<bone>_cortex` its shell.

    Sides are understood (`kidney_left`). Raises InputError for a name that is not in the table.

    >>> tissue_of("gluteus_maximus").name, tissue_of("femur_cortex").name, tissue_of("kidney_left").name
    ('muscle', 'cortical_bone', 'kidney')
    """
    name = plain(structure)
    if name in _TISSUE_OF:
        return TISSUES[_TISSUE_OF[name]]
    for suffix, tissue in _SUFFIXES.items():
        if name.endswith(suffix) and _TISSUE_OF.get(name.removesuffix(suffix)) == "trabecular_bone":
            return TISSUES[tissue]
    raise InputError(
        f"structure {structure!r}: no tissue is known for it; expected a structure such as 'femur' or a tissue "
        f"({', '.join(sorted(TISSUES))}). Rename it in the names file"
    )


def lookup(names: dict[int, str], field: str) -> np.ndarray:
    """Return a float32 array such that `array[labels]` is the tissue's `field` at each voxel; NaN for nameless values.

    >>> lookup({0: "background", 2: "muscle"}, "hu").tolist()
    [-1000.0, nan, 35.0]
    """
    table = np.full(max(names) + 1, np.nan, dtype=np.float32)
    for value, name in names.items():
        table[value] = getattr(tissue_of(name), field)
    return table
