"""How like real scans the virtual ones are: python -m tools.realism [dice] [translators] [tissues] [noise]

Writes results/realism.json (and realism.csv, the Dice of each structure), and the pictures and tables of
docs/realism.md. Real scans are read from the folder that the environment variable MR2CT_REAL_DATA names; without it, it
ends with a message.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage

from mr2ct_lib.course import experiments
from mr2ct_lib.course.catalogue import SCANS
from mr2ct_lib.course.figures import show_images, synthesis_row
from mr2ct_lib.course.tables import CURVE, HIASA, HIPS
from mr2ct_lib.files import atomic, write_json
from mr2ct_lib.images.intensity import CT_WINDOW, Window
from mr2ct_lib.images.prepare import prepare
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume, read_volume
from mr2ct_lib.measures import evaluation
from mr2ct_lib.measures.baselines import fitted_curve
from mr2ct_lib.measures.label_metrics import dice
from mr2ct_lib.methods.segmentation import load_segmenter, predict, save_segmenter, train_segmenter
from mr2ct_lib.methods.settings import PROFILES
from mr2ct_lib.patients.abdomen import abdomen_patient
from mr2ct_lib.patients.acquisition import acquire_ct, acquire_mr
from mr2ct_lib.patients.cohort import make_cohort
from mr2ct_lib.patients.physics import Sequence
from tools import ROOT
from tools.record import provenance_of_machine

DOCS, RESULTS = ROOT / "docs", ROOT / "results"
PAGE = DOCS / "realism.md"
# label value in the real maps (117 classes for CT, 50 for MR) -> structures of the virtual abdomen; both sides together
CT_TISSUES = {
    "liver": ([5], ["liver"]), "spleen": ([1], ["spleen"]), "kidney": ([2, 3], ["kidney"]),
    "blood": ([52, 63], ["aorta_lumen", "vena_cava"]), "back muscle": ([86, 87], ["erector_spinae"]),
    "psoas": ([88, 89], ["psoas"]),
    "vertebra, inside": ([30, 31, 32], ["vertebra"]),
}  # fmt: skip
MR_TISSUES = {
    "liver": ([5], ["liver"]), "kidney": ([2, 3], ["kidney"]), "spleen": ([1], ["spleen"]),
    "back muscle": ([46, 47], ["erector_spinae"]),
}  # fmt: skip
# a T1-weighted gradient echo in one breath, as abdomens are commonly scanned; the real scan's own times are not known
T1_ABDOMEN = Sequence("T1 gradient echo", "spgr", tr=150.0, te=4.6, flip=80.0)
SEEDS = range(1, 9)  # of the virtual abdomens
SHOWN = "hip_many_gc"  # the recorded translator of the pictures
LONGEST, THREE = "hip_many_gc_long", (7, 1, 2)  # the translator that is measured with three seeds
WHO = ("virtual", "real")
PARTS = ["dice", "translators", "tissues", "noise"]
PATCH = 48  # pixels per side of the squares in which noise is measured


def real_folder() -> Path | None:
    """The folder of real scans, None where there is none."""
    folder = Path(os.environ.get("MR2CT_REAL_DATA", "no_folder"))
    return folder if folder.is_dir() else None


def real_slices(real: Path, profile: str) -> PreparedSlices:
    """The real label map scanned by the virtual MR and CT, as prepared slices."""
    folder = experiments.RUNS / profile / "realism"
    if not (folder / "prepared" / "prepared.json").is_file():
        maps = {"labels": real / "hip_labels/hip_labels.nii.gz", "names": real / "hip_labels/names.json"}
        maps["body"] = real / "hip_labels/body_mask.nii.gz"
        make_cohort("hip", folder / "cohort", 1, seed=5, paired=True, profile=SCANS[profile], workers=1, **maps)
        prepare(folder / "cohort", folder / "prepared", profile=SCANS[profile], workers=1)
    return PreparedSlices(folder / "prepared")


def measure_dice(real: Path, profile: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a U-Net on MR of virtual hips, use it on other virtual hips and on the real one; draws the picture, too.

    Beside it the recorded translator and its U-Net, which has seen no labelled MR.
    """
    training, test = (experiments.prepared(name, profile) for name in ("hip", "hip_test"))
    person, settings = real_slices(real, profile), PROFILES[profile].unet
    labels, names = experiments.structures(np.asarray(training.labels_source), training)
    folder = experiments.RUNS / profile / "realism" / "unet"
    if not folder.is_dir():
        unet = train_segmenter(
            np.array(training.source)[:, None], labels, names, channel_names=("MR",), size=profile,
            iterations=settings.iterations, learning_rate=settings.learning_rate,
        )  # fmt: skip
        save_segmenter(unet, folder)
    unet, table, examples = load_segmenter(folder), pd.DataFrame({"structure": list(names.values())}), {}
    two_channels, to_ct = load_segmenter(RESULTS / "segmenters" / SHOWN), experiments.recorded_translator(SHOWN)
    for who, slices in (("virtual", test), ("real", person)):
        images, (truth, _) = np.array(slices.source), experiments.structures(np.asarray(slices.labels_source), slices)
        found = {
            who: predict(unet, images[:, None]),
            f"{who}, MR + synthetic CT": predict(two_channels, np.stack([images, to_ct.translate(images)], axis=1)),
        }
        examples[who] = images, truth, found[who]
        # a structure of less than 50 pixels in all is hardly in the field of view
        for column, predicted in found.items():
            overlap = dice(predicted, truth, names)
            table[column] = [overlap[name] if (truth == v).sum() >= 50 else np.nan for v, name in names.items()]
    draw_hips(examples, len(person.source) // 2, DOCS / "realism_hips.jpg")
    table = table.dropna().round(3)
    return table.set_index("structure").to_dict("index"), table


def measure_translators(real: Path, profile: str) -> dict[str, Any]:
    """Measure translators on virtual test hips and on the real one: MAE in grey levels; draws the picture.

    The recorded ones, each of one seed, and those of the longest training, of three; these are trained where they are
    missing, an hour of one core each.
    """
    people = {"virtual": experiments.prepared("hip_test", profile), "real": real_slices(real, profile)}
    rows: dict[str, dict[str, float]] = {}
    longest = [experiments.translator(LONGEST, "full", seed) for seed in THREE]
    for who, data in people.items():
        synthetic = {name: experiments.recorded_translator(name).translate(data.source) for name in HIASA}
        made = {HIPS[name]: [images] for name, images in synthetic.items()}
        for name, spin in ((LONGEST, False), (f"{LONGEST}_spin", True)):
            made[f"{HIPS[name]}, three seeds"] = [one.translate(data.source, spin=spin) for one in longest]
        made[HIPS[CURVE]] = [fitted_curve(data.source, data.target, data.source, data.valid)]
        rivals = evaluation.baselines(experiments.prepared("hip", profile), data)
        for name, networks in (made | {HIPS[name]: [images] for name, images in rivals.items()}).items():
            errors = [evaluation.measure(images, data)["MAE"].mean() for images in networks]
            row = rows.setdefault(name, {})
            row[who] = round(float(np.mean(errors)), 1)
            if len(errors) > 1:
                row[f"{who}_sd"] = round(float(np.std(errors, ddof=1)), 1)
    source, target = (data.windows[domain] for domain in ("source", "target"))
    shown, at = synthetic[SHOWN], len(data.source) // 2  # of the last one, who is real
    three = source.from_network(data.source[at]), target.from_network(shown[at]), target.from_network(data.target[at])
    save(synthesis_row(*three, source, target, pixel=data.preparation.pixel), DOCS / "realism_synthesis.jpg")
    return rows


def draw_hips(examples: dict, middle: int, path: Path) -> None:
    """MR, true and predicted structures of two slices of the first patient, virtual above real."""
    fig, axes = plt.subplots(2, 6, figsize=(12.5, 4.6), layout="constrained")
    for row, who in zip(axes, ("virtual", "real"), strict=True):
        for column, number in enumerate((middle - 2, middle + 2)):
            titles = (f"{who}: MR", "structures", "predicted")
            for ax, images, title in zip(row[3 * column :], examples[who], titles, strict=False):
                grey = images.dtype.kind == "f"
                colours, low, high = ("gray", -1, 1) if grey else ("nipy_spectral", 0, 23)
                ax.imshow(images[number], interpolation="nearest", cmap=colours, vmin=low, vmax=high)
                ax.set_title(title, fontsize=11)
                ax.set_axis_off()
    save(fig, path)


def save(fig: plt.Figure, path: Path) -> None:
    """Write a figure as a small JPEG or PNG."""
    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=80, **({"pil_kwargs": {"quality": 85}} if path.suffix == ".jpg" else {}))
    plt.close(fig)


def inside(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """Voxels of a structure without its border (partial volume)."""
    return ndimage.binary_erosion(np.isin(labels, values))


def fat_of(hu: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fat, which real maps don't label: unlabelled voxels of -200 to -20 HU whose neighbours are such voxels, too."""
    return ndimage.binary_erosion((labels == 0) & (hu > -200) & (hu < -20))


def virtual_abdomen(
    seed: int, modality: str, shape: tuple, spacing: np.ndarray
) -> tuple[Volume, np.ndarray, dict[str, int]]:
    """A scan of a virtual abdomen with the real one's voxels: (scan, labels, value of each name)."""
    person = abdomen_patient(seed, {"MR": "mr", "CT": "ct"}[modality])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    if modality == "CT":
        scan, labels = acquire_ct(person, shape, affine, seed, noise=12.0, table=None, supersample=(2, 2, 2))
    else:
        scan, labels = acquire_mr(person, shape, affine, T1_ABDOMEN, seed, bias=0.0, gain=100.0, supersample=(2, 2, 2))
    return scan, labels.array, {name: value for value, name in person.names.items()}


def measure_tissues(real: Path) -> dict[str, Any]:
    """Return median and spread of HU, and the order of MR signals, in real and virtual abdomens; draw the picture."""
    ct, ct_labels = (
        read_volume(real / "ct/abdomen_ct_small.nii.gz", "HU"),
        read_volume(real / "ct/abdomen_ct_small_labels.nii.gz", "label"),
    )
    mr, mr_labels = (
        read_volume(real / "mr/abdomen_mr.nii.gz"),
        read_volume(real / "mr/abdomen_mr_labels.nii.gz", "label"),
    )
    scans = {
        m: [virtual_abdomen(seed, m, (128, 104, 30), np.array([3.0, 3.0, 3.0])) for seed in SEEDS] for m in ("CT", "MR")
    }
    hu: dict[str, Any] = {}
    for tissue, (values, names) in ({"fat": ([], [])} | CT_TISSUES).items():
        if tissue == "fat":
            real_parts = [ct.array[fat_of(ct.array, ct_labels.array)]]
            unlabelled = [
                (scan.array, np.where(np.isin(labels, fats(value)), 0, labels)) for scan, labels, value in scans["CT"]
            ]
            virtual_parts = [hu_values[fat_of(hu_values, labels)] for hu_values, labels in unlabelled]
        else:
            real_parts = [ct.array[inside(ct_labels.array, values)]]
            virtual_parts = [
                scan.array[inside(labels, [value[name] for name in names])] for scan, labels, value in scans["CT"]
            ]
        (rm, rs), (vm, vs) = (middle_and_spread(np.concatenate(parts)) for parts in (real_parts, virtual_parts))
        hu[tissue] = {"real": rm, "real_sd": rs, "virtual": vm, "virtual_sd": vs}
    signal: dict[str, Any] = {}
    for tissue, (values, names) in MR_TISSUES.items():
        real_signal = float(np.median(mr.array[inside(mr_labels.array, values)]))
        virtual_signal = np.concatenate(
            [scan.array[inside(labels, [value[n] for n in names])] for scan, labels, value in scans["MR"]]
        )
        signal[tissue] = {"real": real_signal, "virtual": float(np.median(virtual_signal))}
    for who in ("real", "virtual"):
        liver = signal["liver"][who]
        for tissue in signal.values():
            tissue[who] = round(tissue[who] / liver, 2)  # MR has no unit: liver is 1
    draw_abdomens(ct, mr, scans, DOCS / "realism_abdomens.jpg")
    return {"hu": hu, "mr": signal}


def fats(value: dict[str, int]) -> list[int]:
    """Label values of fat in a virtual abdomen."""
    return [value[name] for name in ("subcutaneous_fat", "visceral_fat", "intermuscular_fat")]


def middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and SD as the middle half of the values tells it (a normal distribution's half is 1.349 SD wide)."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return round(float(median), 1), round(float((high - low) / 1.349), 1)


def draw_abdomens(ct: Volume, mr: Volume, scans: dict, path: Path) -> None:
    """An axial slice of each: virtual and real, CT and T1-weighted MR."""
    bright = {"MR, virtual": scans["MR"][2][0].array, "MR, real": mr.array}
    images = {"CT, virtual": scans["CT"][2][0].array, "CT, real": ct.array} | bright
    windows = dict.fromkeys(("CT, virtual", "CT, real"), CT_WINDOW)
    windows |= {title: Window(0.0, float(np.percentile(array, 99)), "a.u.") for title, array in bright.items()}
    slices = {title: array[::-1, ::-1, array.shape[2] // 2].T for title, array in images.items()}
    save(show_images(slices, windows, columns=2, plane="axial"), path)


def spectrum(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return cycles per pixel and radial noise power (share of the largest) of square patches, high-pass filtered."""
    window = np.hanning(PATCH)[:, None] * np.hanning(PATCH)
    power = np.mean([np.abs(np.fft.fft2((p - ndimage.gaussian_filter(p, 6.0)) * window)) ** 2 for p in images], axis=0)
    frequency = np.hypot(np.fft.fftfreq(PATCH)[:, None], np.fft.fftfreq(PATCH)[None])
    edges = np.linspace(0.03, 0.5, 17)
    bands = [power[(frequency >= a) & (frequency < b)].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return (edges[:-1] + edges[1:]) / 2, np.array(bands) / max(bands)


def quiet_patches(hu: np.ndarray, count: int = 24) -> list[np.ndarray]:
    """The most even squares of soft tissue in axial slices: low SD after smoothing, 0 to 90 HU throughout."""
    patches = []
    for k in range(hu.shape[2]):
        smooth = ndimage.gaussian_filter(hu[:, :, k].astype(float), 4.0)
        for i in range(0, hu.shape[0] - PATCH, PATCH // 3):
            for j in range(0, hu.shape[1] - PATCH, PATCH // 3):
                part = smooth[i : i + PATCH, j : j + PATCH]
                if part.min() > 0 and part.max() < 90:
                    patches.append((float(part.std()), hu[i : i + PATCH, j : j + PATCH, k].astype(float)))
    return [patch for _, patch in sorted(patches, key=lambda pair: pair[0])[:count]]


def measure_noise(real: Path) -> dict[str, Any]:
    """Return and draw the noise power spectra in even soft tissue of a real CT and of a virtual liver, same pixels."""
    series, shape = read_volume(real / "dicom_ct"), (384, 288, 12)
    affine = np.diag([*series.spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * series.spacing + (0, 0, 50)  # where the liver is large
    scan, _ = acquire_ct(abdomen_patient(3, "ct"), shape, affine, 3, table=None, supersample=(2, 2, 1))
    patches = {"real": quiet_patches(series.array), "virtual": quiet_patches(scan.array)}
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained", width_ratios=(1.6, 1, 1))
    values: dict[str, Any] = {}
    for ax, (who, images) in zip(axes[1:], patches.items(), strict=True):
        frequency, power = spectrum(images)
        residual = np.concatenate([(p - ndimage.gaussian_filter(p, 6.0)).ravel() for p in images])
        above = frequency[power >= 0.5]
        values[who] = {
            "sd": round(float(residual.std()), 1), "peak": round(float(frequency[power.argmax()]), 2),
            "half_from": round(float(above.min()), 2), "half_to": round(float(above.max()), 2), "patches": len(images),
        }  # fmt: skip
        axes[0].plot(frequency, power, "o-", label=who)
        ax.imshow(images[0] - images[0].mean(), cmap="gray", vmin=-60, vmax=60)
        ax.set_title(f"{who}, {PATCH} x {PATCH} pixels")
        ax.set_axis_off()
    axes[0].set(xlabel="cycles per pixel", ylabel="noise power, share of the peak", ylim=(0, None))
    axes[0].legend()
    save(fig, DOCS / "realism_noise.png")
    return values


def tables(values: dict[str, Any]) -> dict[str, str]:
    """The page's tables in Markdown, by name, of what was measured."""
    pieces = {}
    if "translators" in values:
        rows = [
            [name, *(f"{row[who]:.1f}" + (f" ± {sd:.1f}" if (sd := row.get(f"{who}_sd")) else "") for who in WHO)]
            for name, row in values["translators"].items()
        ]
        pieces["translators"] = _markdown(["MAE / grey levels", "virtual", "real"], rows)
    if "dice" in values:
        columns = [who + way for way in ("", ", MR + synthetic CT") for who in WHO]
        rows = [
            [name.replace("_", " "), *(f"{row[column]:.2f}" for column in columns)]
            for name, row in values["dice"].items()
        ]
        head = [f"{way}: {who}" for way in ("MR alone", "MR + synthetic CT") for who in WHO]
        pieces["dice"] = _markdown(["structure", *head], rows)
    if "tissues" in values:
        rows = [
            [tissue, *(f"{row[who]:.0f} ± {row[f'{who}_sd']:.0f}" for who in ("real", "virtual"))]
            for tissue, row in values["tissues"]["hu"].items()
        ]
        pieces["hu"] = _markdown(["tissue", "real", "virtual"], rows)
        rows = [
            [tissue, f"{row['real']:.2f}", f"{row['virtual']:.2f}"] for tissue, row in values["tissues"]["mr"].items()
        ]
        pieces["mr"] = _markdown(["tissue", "real", "virtual"], rows)
    if "noise" in values:
        rows = [
            [who, f"{row['sd']:.1f}", f"{row['peak']:.2f}", f"{row['half_from']:.2f} to {row['half_to']:.2f}"]
            for who, row in values["noise"].items()
        ]
        pieces["noise"] = _markdown(["", "SD / HU", "peak / cycles per pixel", "above half the peak"], rows)
    return pieces


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def with_tables(text: str, values: dict[str, Any]) -> str:
    """The page with its tables (between `<!-- name -->` and `<!-- end -->`) as `values` has them."""
    for name, table in tables(values).items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise SystemExit(
                f"{PAGE.name}: has no place for the table {name}; write <!-- {name} --> and <!-- end --> around it"
            )
        text = f"{before}{mark}{table}\n{end}{after}"
    return text


def main() -> None:
    """Measure what is asked for, keep what was measured before, write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--profile", default="quick")
    arguments = parser.parse_args()
    real = real_folder()
    if real is None:
        print("no real scans here; set MR2CT_REAL_DATA to the folder that holds them")
        return
    path = RESULTS / "realism.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    parts = arguments.parts or PARTS
    if "dice" in parts:
        values["dice"], table = measure_dice(real, arguments.profile)
        with atomic(RESULTS / "realism.csv") as temporary:
            table.to_csv(temporary, index=False)
    if "translators" in parts:
        values["translators"] = measure_translators(real, arguments.profile)
    if "tissues" in parts:
        values["tissues"] = measure_tissues(real)
    if "noise" in parts:
        values["noise"] = measure_noise(real)
    values["made"] = values.get("made", {}) | dict.fromkeys(parts, provenance_of_machine(arguments.profile))
    write_json(values, path)
    page = with_tables(PAGE.read_text(encoding="utf-8"), values)
    with atomic(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
