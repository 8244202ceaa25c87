"""What the two papers print: their settings and their tables, to stand beside what is measured here.

- Hiasa et al. 2018, arXiv 1803.06629: CycleGAN with gradient consistency (GC), MR to CT of the hip.
- Wang et al. 2018, arXiv 1808.03944: DicycleGAN, aligned synthesis through deformable offsets.

Every setting has a mark that says whose word it is (MARKS). Where the paper's text at hand lacks a value, the mark is
"S" or "I", never "P".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from mr2ct_lib.files import InputError

MARKS = MappingProxyType(
    {
        "P": "the paper's own text",
        "S": "a secondary source that agrees with the paper where both speak; not in the paper's text at hand",
        "I": "inferred, because the paper leaves it open",
    }
)


@dataclass(frozen=True)
class Setting:
    """One setting of a paper: its value, where it comes from (a key of MARKS), and what it is."""

    value: float | int | str | bool | tuple
    mark: str
    meaning: str


CYCLEGAN: Mapping[str, Setting] = MappingProxyType(
    {
        "mr_volumes": Setting(302, "P", "unlabelled MR volumes for training"),
        "ct_volumes": Setting(613, "P", "unlabelled CT volumes for training"),
        "labelled_ct": Setting(20, "P", "CT volumes with all structures labelled"),
        "labelled_mr": Setting(10, "P", "MR volumes with four structures labelled"),
        "paired_patients": Setting(3, "P", "patients with both MR and CT"),
        "structures": Setting(22, "P", "labelled muscles and bones"),
        "mr_repetition_time": Setting(7.9, "P", "TR of the spoiled gradient echo, ms"),
        "mr_echo_time": Setting(3.08, "P", "TE, ms"),
        "mr_flip_angle": Setting(30, "P", "flip angle, degrees"),
        "mr_field_strength": Setting(1.0, "P", "T"),
        "mr_field_of_view": Setting(320, "P", "coronal field of view, mm"),
        "mr_slab": Setting(76, "P", "slab thickness, mm"),
        "mr_slice": Setting(2, "P", "slice thickness without gap, mm"),
        "ct_field_of_view": Setting(360, "P", "axial field of view, mm"),
        "ct_slice_thickness": Setting(
            (2.0, 6.0, 1.0), "P", "slice distance at pelvis and proximal femur, shaft, distal femur, mm"
        ),
        "size": Setting(256, "P", "slice height and width, pixels"),
        "ct_window": Setting((-150, 350), "P", "HU mapped to grey levels 0 and 255"),
        "mr_window": Setting((0, 100), "P", "MR values mapped to grey levels 0 and 255"),
        "lambda_cycle": Setting(3.0, "P", "weight of the cycle loss, Eq. 6"),
        "lambda_gc": Setting(0.3, "P", "weight of the gradient-consistency loss, Eq. 6"),
        "residual_blocks": Setting(9, "P", "residual blocks of the 2D ResNet generator"),
        "receptive_field": Setting(70, "P", "PatchGAN discriminator, pixels"),
        "learning_rate": Setting(2e-4, "P", "Adam"),
        "iterations_constant": Setting(100_000, "P", "iterations at that learning rate"),
        "iterations_decay": Setting(100_000, "P", "iterations during which it falls linearly to 0"),
        "batch_size": Setting(1, "I", "slices of each domain per step; as in CycleGAN"),
        "pool_size": Setting(50, "I", "synthetic images kept for the discriminators; as in CycleGAN"),
        "beta1": Setting(0.5, "I", "Adam; as in CycleGAN"),
        "gc_operator": Setting(
            "central difference",
            "I",
            "gradient of Eq. 4; [-1, 0, +1] with replicated borders in a later public library",
        ),
        "gc_absolute": Setting(True, "I", "NCC of |gradient|; Eq. 4 prints no absolute value"),
        "segmenter_learning_rate": Setting(1e-4, "P", "Adam, U-Net on two channels"),
        "segmenter_iterations": Setting(100_000, "P", "iterations of the U-Net"),
        "segmenter_folds": Setting(5, "P", "cross-validation of the U-Net on MR alone"),
        "segmenter_loss": Setting("Dice + cross-entropy", "I", "loss of the U-Net; the paper gives none"),
        "segmenter_batch_size": Setting(16, "I", "slices per step of the U-Net; the paper gives none"),
        "segmenter_decay": Setting("linear to 0 over the last half", "I", "falling rate of the U-Net"),
        "segmenter_residual_units": Setting(1, "I", "residual units per level of the U-Net; 0 in the original U-Net"),
        "mae": Setting("grey levels of [0, 255]", "P", "Table 1, where the CT covers the MR"),
        "psnr": Setting("20 log10(255 / sqrt(MSE))", "P", "Table 1, on normalised images, dB"),
        "mutual_information": Setting("mean over slices", "P", "Fig. 4(a), a synthesis and its own source"),
        "mutual_information_bins": Setting(64, "I", "of the joint histogram, per axis; the paper gives none"),
    }
)

DICYCLEGAN: Mapping[str, Setting] = MappingProxyType(
    {
        "train_pairs": Setting(38, "P", "IXI head pairs for training"),
        "test_pairs": Setting(28, "P", "IXI head pairs for the test"),
        "spacing": Setting(1.8, "P", "isotropic, mm"),
        "size": Setting(128, "P", "training crops, pixels; whole slices in the test"),
        "normalisation": Setting("z-score", "P", "each image by its own mean and SD"),
        "aneurysm_patients": Setting(20, "P", "patients with T2* and CT"),
        "aneurysm_spacing": Setting((1.56, 1.56, 5.0), "P", "mm"),
        "aneurysm_size": Setting(192, "P", "crops, pixels"),
        "residual_blocks": Setting(9, "P", "residual blocks of the generator"),
        "offset_layers": Setting(4, "P", "before the input block, both down-samplings and the first residual block"),
        "offset_kernel": Setting(
            3, "I", "convolution from C features to (dy, dx) of each; bilinear, borders clamped, initially 0"
        ),
        "lambda_align": Setting(0.9, "S", "weight of the alignment loss"),
        "lambda_cycle": Setting(10.0, "S", "weight of the cycle loss, offsets off"),
        "lambda_dicycle": Setting(10.0, "S", "weight of the cycle loss, offsets on"),
        "nmi": Setting("2 I / (H(source) + H(target))", "I", "NMI in [0, 1] (P); its form is inferred"),
        "learning_rate": Setting(2e-4, "P", "Adam"),
        "epochs_constant": Setting(100, "P", "epochs at that learning rate"),
        "epochs_decay": Setting(100, "P", "epochs during which it falls linearly to 0"),
        "patience_constant": Setting(10, "P", "epochs without a lower total loss that end the first phase"),
        "patience_decay": Setting(20, "P", "the same for the second phase"),
        "augmentation": Setting("flips, rotations, shearing, translations", "P", "of the training images"),
        "ssim": Setting("means, variances, covariance of whole volumes", "P", "Tables 1 to 3, on z-scored images"),
        "psnr_range": Setting("5 to 11 SD", "I", "data range of the PSNR, not printed; see `implied_range`"),
    }
)

METHODS: Mapping[str, Mapping[str, Setting]] = MappingProxyType({"cyclegan": CYCLEGAN, "dicyclegan": DICYCLEGAN})


def settings_table(method: str) -> pd.DataFrame:
    """Return all settings of a method ("cyclegan" or "dicyclegan") with their marks; InputError for another name.

    >>> settings_table("cyclegan").loc["lambda_gc", "value"]
    0.3
    """
    if method not in METHODS:
        raise InputError(f'method: "{method}"; expected {" or ".join(METHODS)}')
    rows = {name: (setting.value, setting.mark, setting.meaning) for name, setting in METHODS[method].items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "mark", "meaning"])
    return table.rename_axis("setting").astype(object)


def cyclegan_errors() -> pd.DataFrame:
    """Return Table 1 of Hiasa et al.: MAE (grey levels) and PSNR (dB, 255) of three paired patients and their mean.

    Index (metric, patient), patient 1, 2, 3 or "mean"; columns (volumes, loss): "20" or ">300", "no GC" or "GC".
    The printed +- are not the SD of the three rows and are left out. Patients 1 and 2 are printed; patient 3 follows
    from the mean.

    >>> float(cyclegan_errors().loc[("MAE", "mean"), (">300", "GC")])
    25.541
    """
    values = {
        ("MAE", 1): (30.121, 30.276, 26.899, 26.388),
        ("MAE", 2): (26.927, 26.911, 22.319, 21.593),
        ("MAE", 3): (33.651, 32.156, 29.631, 28.643),
        ("MAE", "mean"): (30.233, 29.781, 26.283, 25.541),
        ("PSNR", 1): (14.797, 14.742, 15.643, 15.848),
        ("PSNR", 2): (15.734, 15.628, 17.255, 17.598),
        ("PSNR", 3): (14.510, 14.820, 15.674, 15.950),
        ("PSNR", "mean"): (15.014, 15.063, 16.190, 16.465),
    }
    columns = pd.MultiIndex.from_product([["20", ">300"], ["no GC", "GC"]], names=["volumes", "loss"])
    index = pd.MultiIndex.from_tuples(values, names=["metric", "patient"])
    return pd.DataFrame(list(values.values()), index=index, columns=columns)


def cyclegan_dice() -> pd.DataFrame:
    """Return Dice of Hiasa et al. on 10 labelled MRs: MR + synthetic CT (> 300 volumes, GC), and MR alone (5-fold).

    Index: structure; columns (input, "mean" or "sd"). MR alone learns from 8 labelled MRs per fold, the other from 20
    labelled CTs: the paper's comparison, and a bound from above only where it is the better of the two.
    """
    values = {
        "pelvis": (0.808, 0.036, 0.815, 0.046),
        "femur": (0.883, 0.029, 0.921, 0.023),
        "gluteus_medius": (0.804, 0.040, 0.825, 0.029),
        "gluteus_minimus": (0.669, 0.054, 0.752, 0.045),
    }
    inputs = ["MR + synthetic CT", "MR alone"]
    columns = pd.MultiIndex.from_product([inputs, ["mean", "sd"]], names=["input", "statistic"])
    return pd.DataFrame.from_dict(values, orient="index").set_axis(columns, axis=1).rename_axis("structure")


def cyclegan_p_values() -> pd.DataFrame:
    """Return the paired t-tests that Hiasa et al. report: measure, better side, against what, bound of p.

    Mutual information is Fig. 4(a), Dice is section 3.2. Wang et al. report no test.
    """
    rows = [
        ("mutual information", ">300 volumes", "20 volumes", 0.01),
        ("mutual information, MR to CT", "GC", "no GC", 0.01),
        ("Dice, pelvis", ">300 volumes", "20 volumes", 0.01),
        ("Dice, femur", ">300 volumes", "20 volumes", 0.01),
        ("Dice, gluteus_medius", ">300 volumes", "20 volumes", 0.01),
        ("Dice, gluteus_minimus", ">300 volumes", "20 volumes", 0.05),
        ("Dice, gluteus_minimus", "GC", "no GC", 0.01),
    ]
    return pd.DataFrame(rows, columns=["measure", "better", "against", "p_below"])


def dicyclegan_errors() -> pd.DataFrame:
    """Return Tables 1 to 3 of Wang et al.: MSE (SD squared), PSNR (dB), SSIM on z-scored images.

    Index (direction, condition), condition "undeformed", "deformed" or "in the aorta"; columns (metric, model). The
    SSIM is the paper's own, from means, variances and covariance of whole volumes: compare it with
    `metrics.ssim_whole`, not with the windowed `metrics.ssim`. The range of the PSNR is not printed. The paper's
    standard deviations and further digits are not in the text at hand and therefore not here.

    >>> table = dicyclegan_errors()["PSNR"].loc[("PD -> T2", "deformed")]
    >>> round(float(table["DicycleGAN"] - table["CycleGAN"]), 2)
    2.8
    """
    values = {
        ("PD -> T2", "undeformed"): (0.186, 0.183, 27.35, 26.49, 0.854, 0.871),
        ("T2 -> PD", "undeformed"): (0.134, 0.146, 29.68, 28.85, 0.892, 0.883),
        ("PD -> T2", "deformed"): (0.586, 0.145, 19.52, 22.32, 0.608, 0.784),
        ("T2 -> PD", "deformed"): (0.561, 0.141, 19.42, 22.86, 0.600, 0.771),
        ("T2* -> CT", "in the aorta"): (0.516, 0.287, 18.32, 23.71, 0.572, 0.712),
        ("CT -> T2*", "in the aorta"): (0.521, 0.299, 19.12, 22.66, 0.582, 0.756),
    }
    models = ["CycleGAN", "DicycleGAN"]
    columns = pd.MultiIndex.from_product([["MSE", "PSNR", "SSIM"], models], names=["metric", "model"])
    index = pd.MultiIndex.from_tuples(values, names=["direction", "condition"])
    return pd.DataFrame(list(values.values()), index=index, columns=columns)


def implied_range(mse: float, psnr: float) -> float:
    """Return the data range for which an MSE has this PSNR: sqrt(MSE) 10^(PSNR / 20).

    Wang et al. do not print the range of their PSNR. MSE and PSNR of the undeformed heads imply 9 to 11 SD, about 10;
    the deformed heads imply only 5 to 7. A mean of PSNRs over images is larger than the PSNR of the mean MSE, so these
    are upper estimates. Raises InputError unless the MSE is positive.

    >>> round(implied_range(0.186, 27.35), 1)
    10.1
    """
    if not mse > 0:
        raise InputError(f"mse: {mse}; expected a positive number")
    return float(np.sqrt(mse) * 10 ** (psnr / 20))
