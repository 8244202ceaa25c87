"""The command `mr2ct`: cohort | prepare | train | synthesize | evaluate | segment. Bad input ends it with one sentence and exit code 2."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mr2ct_lib.files import InputError, write_json
from mr2ct_lib.measures import metrics

app = typer.Typer(
    help="Unpaired MR-to-CT synthesis: virtual patients, training, synthesis, evaluation, segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
segmenting = typer.Typer(help="Train a two-channel U-Net on CT + synthetic MR, or segment an MR with it.", no_args_is_help=True)
app.add_typer(segmenting, name="segment")

Out = Annotated[Path, typer.Option(help="where the result goes")]


@app.command(epilog="Example: mr2ct cohort hip --patients 20 --seed 1 --out cohorts/hip20")
def cohort(
    anatomy: Annotated[str, typer.Argument(help="hip (T1 MR, CT), head (PD, T2) or abdomen (T2*, CT)")],
    out: Out,
    patients: Annotated[int, typer.Option(help="patients of each domain")] = 20,
    seed: Annotated[int, typer.Option(help="same seed, same patients")] = 1,
    paired: Annotated[bool, typer.Option("--paired", help="the same people in both scanners, for testing")] = False,
    profile: Annotated[str, typer.Option(help="quick, full or paper: how fine the scans are")] = "quick",
    labels: Annotated[list[Path] | None, typer.Option(help="a label map in the place of the built-in anatomy; again for more")] = None,
    names: Annotated[Path | None, typer.Option(help="JSON from the label map's values to structure names")] = None,
    body: Annotated[list[Path] | None, typer.Option(help="mask of the body, where a label map lacks fat and skin; one a map")] = None,
    distort_target: Annotated[bool, typer.Option("--distort-target", help="one fixed distortion of the target domain (head)")] = False,
) -> None:
    """Scan virtual patients: unpaired MR and CT with their labels, written as NIfTI."""
    from mr2ct_lib.patients.scanner import make_cohort

    made = make_cohort(anatomy, out, patients, seed, paired, profile, labels, names, body, distort_target)
    print(f"{len(made.source)} source and {len(made.target)} target scans in {out}. Next: mr2ct prepare {out} --out prepared/{out.name}")


@app.command(epilog="Example: mr2ct prepare cohorts/hip20 --out prepared/hip20")
def prepare(
    folder: Annotated[Path, typer.Argument(help="a cohort: source/*.nii.gz, target/*.nii.gz, virtual or your own")],
    out: Out,
    plane: Annotated[str | None, typer.Option(help="coronal, axial or sagittal; by default the source's own slices")] = None,
    size: Annotated[int | None, typer.Option(help="pixels a side; by default the source's own")] = None,
    window: Annotated[
        tuple[float, float] | None, typer.Option(help="lowest and highest HU of CT that the network sees; the papers': -150 350")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, full or paper: how thorough N4 is")] = "quick",
) -> None:
    """Bring scans to slices that a network can learn from: N4, field of view, intensity windows."""
    from mr2ct_lib.images.intensity import Window
    from mr2ct_lib.images.preparation import prepare as prepare_cohort
    from mr2ct_lib.images.slices import PreparedSlices

    ct = None if window is None else Window(*window, "HU")
    slices = PreparedSlices(prepare_cohort(folder, out, plane=plane, size=size, profile=profile, target_window=ct))
    print(
        f"{len(slices.source)} source and {len(slices.target)} target slices of {slices.meta['shape'][0]} x {slices.meta['shape'][1]} "
        f"pixels in {out}. Next: mr2ct train cyclegan --data {out} --out runs/{out.name}"
    )


@app.command(epilog="Example: mr2ct train cyclegan --data prepared/hip20 --out runs/a --set lambda_gc=0.3 --set iterations=40")
def train(
    method: Annotated[str, typer.Argument(help="cyclegan or dicyclegan")],
    data: Annotated[Path, typer.Option(help="prepared slices")],
    out: Out,
    profile: Annotated[str, typer.Option(help="quick, full or paper")] = "quick",
    seed: Annotated[int, typer.Option(help="same seed, same machine, same bits")] = 7,
    change: Annotated[list[str] | None, typer.Option("--set", help="name=value, any setting, as often as needed")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda")] = "auto",
    torchrun: Annotated[str | None, typer.Option(help='options of torchrun, for several processes: "--nproc-per-node 2"')] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="also write tensorboard/ in the run's folder")] = False,
) -> None:
    """Train both generators, in one process or, by --torchrun, in many."""
    from mr2ct_lib.methods.distributed import is_first, is_launched, launch
    from mr2ct_lib.methods.settings import make_settings
    from mr2ct_lib.methods.training import read_log
    from mr2ct_lib.methods.training import train as train_run

    changes = {}
    for text in change or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r}: has no value; expected name=value, for instance --set lambda_gc=0.3")
        changes[name.strip()] = value.strip()
    if "seed" in changes or "method" in changes or "profile" in changes:
        raise InputError("--set seed, method or profile: each has a place of its own; give --seed, the method, --profile")
    settings = make_settings(method, profile, seed=seed, **changes)
    if torchrun is not None and not is_launched():
        return launch(torchrun, sys.argv[1:])
    run = train_run(settings, data, out, resume=resume, device=device, tensorboard=tensorboard)
    if not is_first():
        return None
    last = ", ".join(f"{name} {value:.3g}" for name, value in read_log(run)[-1].items())
    print(f"{last}\nTranslator in {run / 'translator'}. Next: mr2ct synthesize {run / 'translator'} scan.nii.gz --out sct.nii.gz")


@app.command(epilog="Example: mr2ct synthesize runs/a/translator scan.nii.gz --out sct.nii.gz")
def synthesize(
    translator: Annotated[Path, typer.Argument(help="translator/ of a finished run")],
    scan: Annotated[Path, typer.Argument(help="a NIfTI file or a DICOM folder")],
    out: Out,
    reverse: Annotated[bool, typer.Option("--reverse", help="from the target domain to the source domain")] = False,
) -> None:
    """Translate a whole scan; the result lies on the scan's own grid, CT in HU."""
    from mr2ct_lib.images.volumes import read_volume, write_volume
    from mr2ct_lib.methods.synthesis import synthesize as synthesize_volume
    from mr2ct_lib.methods.translator import load_translator

    _check_output(out)
    result = synthesize_volume(read_volume(scan), load_translator(translator), reverse, progress=True)
    write_volume(result, out)
    print(f"{out}: {' x '.join(map(str, result.array.shape))} voxels, {result.array.min():.0f} to {result.array.max():.0f} {result.unit}")


@app.command(epilog="Example: mr2ct evaluate sct.nii.gz truth.nii.gz --mask body.nii.gz --json")
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="a synthetic scan")],
    truth: Annotated[Path, typer.Argument(help="the true scan on the same grid")],
    mask: Annotated[Path | None, typer.Option(help="where to measure: a NIfTI mask")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compare two scans on one grid: MAE, MSE, PSNR, SSIM, mutual information.

    CT is compared in HU inside the paper's window, [-150, 350] HU. An MR has no unit: a truth as the scanner wrote it is first brought
    to the unit of the synthetic MR (standard deviations, or percent of its bright tissue).
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
            f"{path}: lies on another grid ({made.array.shape}, spacing {np.round(made.spacing, 3).tolist()} mm) than {truth} "
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
        raise InputError(f"{truth}: looks like {kinds[1]}, {prediction} like {kinds[0]}; expected two scans of one kind. Exchange one")
    if kinds[0] == "CT":
        return real.replace(unit="HU")
    method = {"%": "percentile", "SD": "zscore"}.get(made.unit)
    return normalise_mr(real, method) if method and real.unit == "a.u." else real


def _check_output(path: Path) -> None:
    """InputError, before any long work, for an output that could not be written as NIfTI."""
    from mr2ct_lib.images.volumes import NIFTI

    if not path.name.lower().endswith(NIFTI):
        raise InputError(f"{path}: the name ends with {path.suffix or 'nothing'!r}; expected .nii or .nii.gz. Rename the output")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a NIfTI file. Choose another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: {folder} takes no files; expected a folder that you may write to. Choose another one")


def _measure(made: np.ndarray, real: np.ndarray, inside: np.ndarray | None, ct: bool, unit: str) -> dict[str, float]:
    """The measures of both papers; for CT in HU inside the paper's window and on its [0, 255] scale."""
    from mr2ct_lib.images.intensity import CT_WINDOW

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


@segmenting.command("train", epilog="Example: mr2ct segment train runs/a/translator prepared/labelled --out runs/seg --iterations 600")
def segment_train(
    translator: Annotated[Path, typer.Argument(help="translator/ of a finished run")],
    data: Annotated[Path, typer.Argument(help="prepared slices whose CT patients have labels")],
    out: Out,
    iterations: Annotated[int, typer.Option(help="steps of Adam")] = 600,
    learning_rate: Annotated[float, typer.Option(help="the paper's is 1e-4, over 1e5 iterations")] = 3e-3,
    size: Annotated[str, typer.Option(help="quick, full or paper: width of the U-Net")] = "quick",
    seed: Annotated[int, typer.Option(help="same seed, same network")] = 7,
) -> None:
    """Train the U-Net on labelled CT and the MR that the translator makes of it."""
    from mr2ct_lib.course.experiments import labelled_channels
    from mr2ct_lib.images.slices import PreparedSlices
    from mr2ct_lib.methods.segmentation import save_segmenter, train_segmenter
    from mr2ct_lib.methods.translator import load_translator

    if out.exists() and not (out / "segmenter.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds other things; expected a new folder or one of a trained U-Net. Choose another name")
    channels, labels, names = labelled_channels(PreparedSlices(data), load_translator(translator))
    segmenter = train_segmenter(
        channels, labels, names, size=size, iterations=iterations, learning_rate=learning_rate, seed=seed, progress=sys.stderr.isatty()
    )
    save_segmenter(segmenter, out)
    print(
        f"{len(names)} structures learned from {len(channels)} slices, in {out}. "
        f"Next: mr2ct segment apply {out} scan.nii.gz --translator {translator} --out labels.nii.gz"
    )


@segmenting.command("apply", epilog="Example: mr2ct segment apply runs/seg scan.nii.gz --translator runs/a/translator --out labels.nii.gz")
def segment_apply(
    segmenter: Annotated[Path, typer.Argument(help="folder of a trained U-Net")],
    scan: Annotated[Path, typer.Argument(help="an MR: a NIfTI file or a DICOM folder")],
    translator: Annotated[Path, typer.Option(help="translator/ of the run that the U-Net was trained with")],
    out: Out,
) -> None:
    """Segment an MR through its synthetic CT; labels on the MR's own grid, their names in a JSON beside."""
    from mr2ct_lib.images.volumes import read_volume, write_volume
    from mr2ct_lib.methods.segmentation import load_segmenter
    from mr2ct_lib.methods.synthesis import segment
    from mr2ct_lib.methods.translator import load_translator

    _check_output(out)
    network = load_segmenter(segmenter)
    labels = segment(read_volume(scan), load_translator(translator), network)
    write_volume(labels, out)
    names = out.with_name(out.name.removesuffix(".gz").removesuffix(".nii") + "_names.json")
    write_json({"0": "background"} | {str(value): name for value, name in network.names.items()}, names)
    volumes = np.bincount(labels.array.ravel(), minlength=max(network.names) + 1) * np.prod(labels.spacing) / 1000
    print("\n".join(f"  {name:<34}{volumes[value]:8.1f} mL" for value, name in network.names.items()))
    print(f"{out}, names in {names}")


def main() -> None:
    """Run the command line; InputError, and what the disk refuses, become one sentence on stderr and exit code 2."""
    try:
        app()
    except (InputError, OSError) as error:
        refused = isinstance(error, OSError) and error.strerror
        said = f"mr2ct: {error.filename or 'writing'}: {error.strerror}" if refused else f"mr2ct: {error}"
        if os.environ.get("LOCAL_RANK", "0") == "0" or type(error).__name__ == "LostProcess":  # what all processes found, one says
            print(said, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
