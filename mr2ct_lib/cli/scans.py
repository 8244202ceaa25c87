"""Commands that work on scans: inspect | register | synthesize | evaluate | segment apply."""

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mr2ct_lib.cli.entry import Out, Overwrite, app, segmenting
from mr2ct_lib.cli.outputs import check_file, check_folder, is_nifti_name, with_ending
from mr2ct_lib.files import InputError, write_json

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Translators = Annotated[
    list[Path] | None, typer.Option("--translator", help="translator/ of a finished run; again for more")
]


@app.command(epilog="Example: mr2ct inspect scan.nii.gz --translator runs/a/translator")
def inspect(
    scan: Annotated[Path, typer.Argument(help="a NIfTI, MetaImage or NRRD file, or a DICOM folder")],
    translator: Translators = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file is: grid, orientation, unit, MR or CT by header and by values, what usual windows cut, which
    translator fits."""
    from mr2ct_lib.cli.inspection import describe, fitness

    facts = describe(scan)
    for folder in translator or []:
        facts[f"fits {folder}"] = fitness(scan, folder)
    if as_json:
        print(json.dumps({"scan": str(scan), **facts}, indent=1))
    else:
        print("\n".join([f"{scan}:", *(f"  {name:<34}{value}" for name, value in facts.items())]))


@app.command(epilog="Example: mr2ct register ct.nii.gz mr.nii.gz --out ct_on_mr.nii.gz")
def register(
    moving: Annotated[Path, typer.Argument(help="the scan to move, usually a CT")],
    fixed: Annotated[
        Path, typer.Argument(help="the scan whose grid the result lies on, usually an MR of the same person")
    ],
    out: Out,
    mask: Annotated[Path | None, typer.Option(help="a NIfTI mask on the fixed scan's grid: where to compare")] = None,
    spacing: Annotated[
        float, typer.Option(help="mm between the control points of the B-spline; closer ones bend more")
    ] = 80.0,
    overwrite: Overwrite = False,
) -> None:
    """Register two scans of one person as the first paper did: rigid, then B-spline, by mutual information."""
    from mr2ct_lib.cli.registering import register_files

    check_file(out, [moving, fixed, *([mask] if mask else [])], overwrite)
    if not spacing > 0:
        raise InputError(f"--spacing: {spacing:g}; expected a distance above 0 mm. Give one, for instance 80")
    before, after = register_files(moving, fixed, out, mask, spacing)
    print(
        f"{out}: normalised mutual information {before:.3f} before, {after:.3f} after. Look at it over {fixed} "
        "before you use it."
    )


@app.command(epilog="Example: mr2ct synthesize runs/a/translator scan.nii.gz --out sct.nii.gz")
def synthesize(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[TRANSLATOR] SCAN", help="a NIfTI file, a DICOM folder or a folder of scans"),
    ],
    out: Annotated[
        str, typer.Option(help="name.nii.gz; name/ for a DICOM series, or for the results of a folder of scans")
    ],
    translator: Translators = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="from the target domain to the source domain")] = False,
    qa: Annotated[
        bool, typer.Option("--qa", help="also draw scan, synthetic scan, overlay and cycle error (.png)")
    ] = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="for a folder of scans: write a DICOM series per scan")
    ] = False,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="DICOM: keep the patient's data and study")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Translate whole scans; each result lies on its scan's own grid, CT in HU.

    With several translators (other seeds of one training) the result is their mean, and a second file holds their
    spread. In a folder of scans, finished ones are skipped, and failures are listed at the end (exit code 1).
    """
    from mr2ct_lib.cli import synthesizing

    folders = [*paths[:-1], *(translator or [])]
    if len(paths) > 2 or not folders:
        raise InputError(
            f"{' '.join(map(str, paths))}: expected TRANSLATOR SCAN, or SCAN with --translator. Give one scan "
            "or one folder"
        )
    scan = paths[-1]
    if not scan.exists():
        raise InputError(
            f"{scan}: does not exist; expected a NIfTI file, a DICOM folder or a folder of scans. Check the path"
        )
    scans = synthesizing.scans_of(scan)
    place = Path(out)
    if scans is None:
        if out.endswith("/") or place.is_dir():
            check_folder(place, [scan], "*.dcm", overwrite)
        else:
            check_file(place, [scan], overwrite, also=", or a folder's name with / at its end for a DICOM series")
    dicom = dicom if scans is not None else not is_nifti_name(place)
    synthesis = synthesizing.load_synthesis(folders, reverse, qa=qa, dicom=dicom, keep_patient=keep_patient)
    if scans is None:
        result, spread = synthesizing.synthesize_one(synthesis, scan, place)
        low, high = result.array.min(), result.array.max()
        print(f"{out}: {' x '.join(map(str, result.array.shape))} voxels, {low:.0f} to {high:.0f} {result.unit}")
        if spread is not None:
            print(f"spread of {len(folders)} translators: {spread.array.mean():.1f} {spread.unit} on average")
        return
    skipped, failures = synthesizing.synthesize_folder(synthesis, scans, place, overwrite)
    print(f"{out}: {len(scans) - skipped - len(failures)} synthesized, {skipped} there already, {len(failures)} failed")
    for name, reason in failures.items():
        print(f"mr2ct: {name}: {reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


@app.command(epilog="Example: mr2ct evaluate sct.nii.gz truth.nii.gz --mask body.nii.gz --json")
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="a synthetic scan")],
    truth: Annotated[Path, typer.Argument(help="the true scan on the same grid")],
    mask: Annotated[Path | None, typer.Option(help="where to measure: a NIfTI mask")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two scans on one grid: MAE, MSE, PSNR, SSIM, mutual information.

    CT is compared in HU inside the paper's window, [-150, 350] HU. An MR has no unit: a truth as the scanner wrote it
    is first brought to the unit of the synthetic MR (standard deviations, or percent of its bright tissue).
    """
    made, real = _same_grid(prediction, truth)
    inside = None
    if mask is not None:
        inside = _same_grid(mask, truth, "label")[0].array > 0
        if not inside.any():
            raise InputError(f"{mask}: marks no voxel; expected values above 0 where to measure. Choose another mask")
    real = _alike(made, real, prediction, truth)
    values = _measure(made.array, real.array, inside, _is_ct(real), real.unit)
    if as_json:
        named = {"prediction": str(prediction), "truth": str(truth), "mask": str(mask) if mask else None}
        print(json.dumps({**named, "unit": real.unit, **values}, indent=1))
    else:
        where = f"inside {mask}" if mask else "over the whole scan"
        print(f"{prediction} against {truth}, {where}:")
        print("\n".join(f"  {name:<28}{value:10.4g}" for name, value in values.items()))


def _same_grid(path: Path, truth: Path, unit: str | None = None):
    """Both volumes; InputError when their grids differ."""
    from mr2ct_lib.images.volumes import read_volume

    made, real = read_volume(path, unit), read_volume(truth)
    if made.array.shape != real.array.shape or np.abs(made.affine - real.affine).max() > 0.01:
        raise InputError(
            f"{path}: lies on another grid ({made.array.shape}, spacing {np.round(made.spacing, 3).tolist()} "
            f"mm) than {truth} "
            f"({real.array.shape}, {np.round(real.spacing, 3).tolist()} mm); expected the same shape and affine. "
            "Register one to the other (docs/own_data.md)"
        )
    return made, real


def _is_ct(volume) -> bool:
    return volume.unit == "HU" or volume.array.min() <= -100  # a synthetic CT that lost its unit still reaches -150


def _alike(made, real, prediction: Path, truth: Path):
    """The truth in the unit of the prediction; InputError when one is CT and the other is not."""
    from mr2ct_lib.images.intensity import normalise_mr

    kinds = ["CT" if _is_ct(volume) else "MR" for volume in (made, real)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{truth}: looks like {kinds[1]}, {prediction} like {kinds[0]}; expected two scans of one kind. "
            "Exchange one"
        )
    if kinds[0] == "CT":
        return real.replace(unit="HU")
    method = {"%": "percentile", "SD": "zscore"}.get(made.unit)
    return normalise_mr(real, method) if method and real.unit == "a.u." else real


def _measure(made: np.ndarray, real: np.ndarray, inside: np.ndarray | None, ct: bool, unit: str) -> dict[str, float]:
    """The measures of both papers; for CT in HU inside the paper's window and on its [0, 255] scale."""
    from mr2ct_lib.images.intensity import CT_WINDOW
    from mr2ct_lib.measures import metrics

    if ct:
        made, real = (np.clip(x, CT_WINDOW.low, CT_WINDOW.high) for x in (made, real))
        span = CT_WINDOW.high - CT_WINDOW.low
    else:
        span = float(real.max() - real.min())
    values = {
        f"MAE ({unit})": metrics.mae(made, real, inside),
        f"MSE ({unit} squared)": metrics.mse(made, real, inside),
        f"PSNR (dB, range {span:.4g})": metrics.psnr(made, real, inside, data_range=span),
        "SSIM": metrics.ssim(made, real, inside, data_range=span),
        "mutual information (nats)": metrics.mutual_information(made, real, inside),
        "NMI [0, 1]": metrics.normalised_mutual_information(made, real, inside),
    }
    if ct:
        values["MAE (grey levels of 255)"] = values["MAE (HU)"] * 255 / span
    return values


@segmenting.command(
    "apply",
    epilog="Example: mr2ct segment apply runs/seg scan.nii.gz --translator runs/a/translator --out labels.nii.gz",
)
def segment_apply(
    segmenter: Annotated[Path, typer.Argument(help="folder of a trained U-Net")],
    scan: Annotated[Path, typer.Argument(help="an MR: a NIfTI file or a DICOM folder")],
    translator: Annotated[Path, typer.Option(help="translator/ of the run that the U-Net was trained with")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Segment an MR through its synthetic CT; labels on the MR's own grid, their names in a JSON beside them."""
    from mr2ct_lib.images.volumes import read_volume, write_volume
    from mr2ct_lib.methods.segmentation import load_segmenter, segment
    from mr2ct_lib.methods.translator import load_translator

    check_file(out, [scan], overwrite)
    network = load_segmenter(segmenter)
    labels = segment(read_volume(scan), load_translator(translator), network)
    write_volume(labels, out)
    names = with_ending(out, "_names.json")
    write_json({"0": "background"} | {str(value): name for value, name in network.names.items()}, names)
    volumes = np.bincount(labels.array.ravel(), minlength=max(network.names) + 1) * np.prod(labels.spacing) / 1000
    print("\n".join(f"  {name:<34}{volumes[value]:8.1f} mL" for value, name in network.names.items()))
    print(f"{out}, names in {names}")
