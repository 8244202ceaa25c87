"""Commands that work on scans: inspect | register | synthesize | evaluate | segment apply."""

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mr2ct_lib.cli.entry import Out, Overwrite, Scheduler, app, segmenting, spoken_warnings
from mr2ct_lib.cli.outputs import check_file, check_place, check_series, is_nifti_name, with_ending
from mr2ct_lib.files import InputError, write_json

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Strict = Annotated[
    bool, typer.Option("--strict", help="refuse a scan that is unlike the training scans, instead of a warning")
]
Translators = Annotated[
    list[Path] | None, typer.Option("--translator", help="translator/ of a finished run; again for more")
]
Spin = Annotated[
    bool, typer.Option("--spin", help="mean over four places on the pixel grid: less grain, four times the time")
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
        print("\n".join([f"{scan}:", *(f"  {name:<37} {value}" for name, value in facts.items())]))


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
    strict: Strict = False,
    spin: Spin = False,
    qa: Annotated[
        bool, typer.Option("--qa", help="also draw scan, synthetic scan, overlay and cycle error (.png)")
    ] = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="for a folder of scans: write a DICOM series per scan")
    ] = False,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="DICOM: keep the patient's data and study")
    ] = False,
    scheduler: Scheduler = None,
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
        raise InputError(f"{scan}: does not exist; expected a NIfTI file or a folder of DICOM or scans. Check the path")
    scans, place = synthesizing.scans_of(scan), Path(out)
    if scans is None:
        if scheduler is not None:
            raise InputError(f"--scheduler: {scan} is one scan; expected a folder of scans. Leave --scheduler out")
        _check_one(scan, out, synthesizing.side_files(place, len(folders), qa), overwrite)
    elif is_nifti_name(place):
        raise InputError(f"{out}: is the name of one NIfTI file; expected a folder, as {scan} holds scans. Rename it")
    dicom = _writes_series(out, scans is None, dicom, keep_patient)
    synthesis = synthesizing.load_synthesis(
        folders, reverse, strict=strict, qa=qa, dicom=dicom, keep_patient=keep_patient, spin=spin
    )
    if scans is None:
        with spoken_warnings(scan):
            result, spread = synthesizing.synthesize_one(synthesis, scan, place)
        low, high = result.array.min(), result.array.max()
        print(f"{out}: {' x '.join(map(str, result.array.shape))} voxels, {low:.0f} to {high:.0f} {result.unit}")
        if spread is not None:
            print(f"spread of {len(folders)} translators: {spread.array.mean():.1f} {spread.unit} on average")
        return
    _report(*synthesizing.synthesize_folder(synthesis, scans, place, overwrite, scheduler), len(scans), out)


def _check_one(scan: Path, out: str, sides: list[Path], overwrite: bool) -> None:
    """Raise InputError unless the result of one scan, and the `sides` beside it, can be written without losing
    anything."""
    place = Path(out)
    if out.endswith("/") or (place.is_dir() and not is_nifti_name(place)):
        check_series(place, [scan], overwrite)
    else:
        check_file(place, [scan], overwrite, also=", or a folder's name with / at its end for a DICOM series")
    _check_sides(sides, scan, overwrite)


def _check_sides(sides: list[Path], scan: Path, overwrite: bool) -> None:
    """Raise InputError unless the files beside a result, whose own place is checked, can be written."""
    for path in sides:
        check_place(path, [scan])
        if path.is_dir() or (path.exists() and not overwrite):
            advice = "" if path.is_dir() else ", or add --overwrite to replace it"
            raise InputError(
                f"{path}: exists already; expected a new name, as a file beside the result is called so. Choose "
                f"another --out{advice}"
            )


def _writes_series(out: str, single: bool, dicom: bool, keep_patient: bool) -> bool:
    """Say whether results are DICOM series. Raises InputError for an option of DICOM where they are not."""
    series = out.endswith("/") or not is_nifti_name(Path(out)) if single else dicom
    if dicom and not series:
        raise InputError(
            f"--dicom: {out} is the name of a NIfTI file; expected a folder's name with / at its end. Rename it, or "
            "leave --dicom out"
        )
    if keep_patient and not series:
        how = "Give --out a folder's name with / at its end" if single else "Add --dicom"
        raise InputError(
            f"--keep-patient: {out} takes NIfTI, which holds no patient's data; expected a DICOM series. {how}, or "
            "leave --keep-patient out"
        )
    return series


def _report(skipped: int, failures: dict[str, str], count: int, out: str) -> None:
    """Say what became of a folder of `count` scans; typer.Exit with code 1 when some failed."""
    print(f"{out}: {count - skipped - len(failures)} synthesized, {skipped} there already, {len(failures)} failed")
    for name, reason in failures.items():
        print(f"mr2ct: {name}: {reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


@app.command(epilog="Example: mr2ct evaluate sct.nii.gz truth.nii.gz --mask body.nii.gz --json")
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="a synthetic scan")],
    truth: Annotated[Path, typer.Argument(help="the true scan")],
    mask: Annotated[Path | None, typer.Option(help="where to measure: a NIfTI mask")] = None,
    labels: Annotated[Path | None, typer.Option(help="a label map: also measure each structure")] = None,
    names: Annotated[Path | None, typer.Option(help="JSON from the label map's values to structure names")] = None,
    reslice: Annotated[bool, typer.Option("--reslice", help="bring everything to the synthetic scan's grid")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two scans on one grid: MAE, MSE, PSNR, SSIM, mutual information, and the measures of SynthRAD.

    CT is compared in HU as it is, and clipped to the paper's window, [-150, 350] HU. An MR has no unit: a truth as the
    scanner wrote it is first brought to the unit of the synthetic MR (standard deviations, or percent of its bright
    tissue).
    """
    from mr2ct_lib.cli.evaluating import evaluate_files, lines, without_nan

    if names is not None and labels is None:
        raise InputError(f"--names {names}: has no label map to name; expected --labels with it. Give both or none")
    result = evaluate_files(prediction, truth, mask, labels, names, reslice)
    if as_json:
        paths = {"prediction": prediction, "truth": truth, "mask": mask, "labels": labels}
        named = {name: str(path) for name, path in paths.items() if path is not None}
        print(json.dumps(without_nan({**named, **result.pop("measures"), **result}), indent=1))
    else:
        where = f"inside {mask}" if mask else "over the whole scan"
        print("\n".join([f"{prediction} against {truth}, {where}:", *lines(result)]))


@segmenting.command(
    "apply",
    epilog="Example: mr2ct segment apply runs/seg scan.nii.gz --translator runs/a/translator --out labels.nii.gz",
)
def segment_apply(
    segmenter: Annotated[Path, typer.Argument(help="folder of a trained U-Net")],
    scan: Annotated[Path, typer.Argument(help="an MR: a NIfTI, MetaImage or NRRD file or a DICOM folder")],
    translator: Annotated[Path, typer.Option(help="translator/ of the run that the U-Net was trained with")],
    out: Out,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment an MR through its synthetic CT; labels on the MR's own grid, their names in a JSON beside them."""
    from mr2ct_lib.course.recorded import find_translator
    from mr2ct_lib.images.volumes import read_volume, write_volume
    from mr2ct_lib.methods.segmentation import load_segmenter, segment
    from mr2ct_lib.methods.translator import load_translator

    names = with_ending(out, "_names.json")
    check_file(out, [scan], overwrite)
    _check_sides([names], scan, overwrite)
    network = load_segmenter(segmenter)
    with spoken_warnings(scan):
        labels = segment(read_volume(scan), load_translator(find_translator(translator)), network, strict)
    write_volume(labels, out)
    write_json({"0": "background"} | {str(value): name for value, name in network.names.items()}, names)
    voxel = abs(np.linalg.det(labels.affine[:3, :3])) / 1000  # mL, of a sheared scan, too
    volumes = np.bincount(labels.array.ravel(), minlength=max(network.names) + 1) * voxel
    print("\n".join(f"  {name:<34}{volumes[value]:8.1f} mL" for value, name in network.names.items()))
    print(f"{out}, names in {names}")
