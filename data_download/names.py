"""What the values of each set's label maps stand for, as published, and numbers for TotalSegmentator's masks."""


def _numbered(words: str, first: int = 1) -> dict[int, str]:
    return dict(enumerate(words.split(), start=first))


def _counted(prefix: str, numbers: range) -> str:
    return " ".join(f"{prefix}{number}" for number in numbers)


HIP = _numbered(
    "pelvis femur sacrum spine gluteus_maximus gluteus_medius gluteus_minimus iliacus obturator_externus "
    "obturator_internus pectineus piriformis psoas_major adductor_muscles biceps_femoris gracilis rectus_femoris "
    "sartorius semimembranosus semitendinosus tensor_fasciae_latae vastus_lateralis_and_intermedius vastus_medialis "
    "erector_spinae quadratus_lumborum rectus_abdominis latissimus_dorsi oblique_muscles"
)
# FreeSurfer's numbers (136, 137, 163, 164: choroid plexus) and, from 502 on, those of SimNIBS's charm atlas. Each name
# is one that the tissue table of `mr2ct cohort` knows, so that the nearest of them stands for some structures.
_LEFT = {
    2: "cerebral_white_matter",
    3: "cerebral_cortex",
    4: "ventricles",
    5: "ventricle",  # inferior lateral
    7: "cerebellar_white_matter",
    8: "cerebellar_grey_matter",
    10: "thalamus",
    11: "caudate",
    12: "putamen",
    13: "pallidum",
    17: "hippocampus",
    18: "amygdala",
    25: "white_matter",  # lesion
    26: "deep_grey_matter",  # accumbens
    28: "deep_nuclei",  # ventral diencephalon
    30: "vessel",
    136: "vessels",  # choroid plexus
    137: "blood",  # choroid plexus of the inferior horn
}
_RIGHT = {10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58, 28: 60, 30: 62, 136: 163, 137: 164}
_MIDDLE = {
    14: "ventricles",  # third
    15: "ventricle",  # fourth
    16: "brain_stem",
    24: "csf",
    72: "cerebrospinal_fluid",  # fifth ventricle
    85: "cerebral_white_matter",  # optic chiasm
    502: "vessels",  # arteries
    506: "fluid",  # eyeballs
    507: "soft_organ",  # all other tissue
    508: "muscles",  # of the eyes
    509: "organs",  # mucosa
    511: "skin",
    512: "brainstem",  # spinal cord
    514: "blood",  # veins
    515: "skull",  # compact bone
    516: "skull_diploe",  # spongy bone
    530: "white_matter",  # optic nerves
}
HEAD = (
    {value: f"{name}_left" for value, name in _LEFT.items()}
    | {_RIGHT.get(value, value + 39): f"{name}_right" for value, name in _LEFT.items()}
    | _MIDDLE
)
# 1 to 117 as in TotalSegmentator's CT class map, so that CT and MR share their numbers; then what only the MR set has
TOTALSEGMENTATOR = _numbered(
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left "
    "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right "
    "esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left "
    "kidney_cyst_right sacrum vertebrae_S1 "
    + _counted("vertebrae_L", range(5, 0, -1)) + " " + _counted("vertebrae_T", range(12, 0, -1)) + " "
    + _counted("vertebrae_C", range(7, 0, -1)) + " "
    "heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
    "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right "
    "atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left "
    "iliac_artery_right iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left scapula_right "
    "clavicula_left clavicula_right femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left "
    "gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right "
    "autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull "
    + _counted("rib_left_", range(1, 13)) + " " + _counted("rib_right_", range(1, 13)) + " sternum costal_cartilages "
    "lung_left lung_right vertebrae intervertebral_discs quadriceps_femoris_left quadriceps_femoris_right "
    "thigh_medial_compartment_left thigh_medial_compartment_right thigh_posterior_compartment_left "
    "thigh_posterior_compartment_right sartorius_left sartorius_right"
)  # fmt: skip
AMOS = _numbered(
    "spleen kidney_right kidney_left gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
    "adrenal_gland_right adrenal_gland_left duodenum urinary_bladder prostate_or_uterus"
)
CHAOS = _numbered("liver kidney_right kidney_left spleen")  # its CT have the liver only
CTPELVIC1K = _numbered("sacrum hip_left hip_right lumbar_spine")
HIPMRI = _numbered("body bone urinary_bladder rectum prostate")
MMWHS = {
    205: "left_ventricle_myocardium",
    420: "left_atrium",
    500: "left_ventricle",
    550: "right_atrium",
    600: "right_ventricle",
    820: "ascending_aorta",
    850: "pulmonary_artery",
}


def as_json(names: dict[int, str]) -> dict[str, str]:
    """The names as names.json holds them, with the background.

    >>> as_json({2: "liver"})
    {'0': 'background', '2': 'liver'}
    """
    return {"0": "background"} | {str(value): name for value, name in sorted(names.items())}
