"""Commands that make patients, slices and networks: cohort | prepare | train | segment train."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mr2ct_lib.cli.entry import Out, Overwrite, Scheduler, app, check_encoding, segmenting
from mr2ct_lib.cli.outputs import check_folder, quoted
from mr2ct_lib.files import InputError, counted
from mr2ct_lib.images.folders import read_names


@app.command(epilog="Example: mr2ct cohort hip --patients 20 --seed 1 --out cohorts/hip20")
def cohort(
    anatomy: Annotated[str, typer.Argument(help="hip (T1, CT), head (PD, T2), head_t1 (T1, T2) or abdomen (T2*, CT)")],
    out: Out,
    patients: Annotated[int, typer.Option(help="patients of each domain")] = 20,
    seed: Annotated[int, typer.Option(help="same seed, same patients")] = 1,
    paired: Annotated[bool, typer.Option("--paired", help="the same people in both scanners, for testing")] = False,
    profile: Annotated[str, typer.Option(help="coarse, full or paper: how fine the scans are")] = "full",
    labels: Annotated[
        list[Path] | None, typer.Option(help="a label map instead of the built-in anatomy; again for more")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="JSON from the label map's values to structure names")] = None,
    body: Annotated[
        list[Path] | None, typer.Option(help="mask of the body, if a label map lacks fat and skin; one per map")
    ] = None,
    distort_target: Annotated[
        bool, typer.Option("--distort-target", help="one fixed distortion of the target domain (head)")
    ] = False,
    scheduler: Scheduler = None,
) -> None:
    """Scan virtual patients: unpaired MR and CT with their labels, written as NIfTI."""
    from mr2ct_lib.patients.cohort import make_cohort

    scans = make_cohort(
        anatomy, out, patients, seed, paired, profile, labels, names, body, distort_target, scheduler=scheduler
    )
    print(
        f"{len(scans.source)} source and {counted(len(scans.target), 'target scan')} in {out}. "
        f"Next: mr2ct prepare {quoted(out)} --out {quoted(f'prepared/{out.name}')}"
    )


@app.command(epilog="Example: mr2ct prepare cohorts/hip20 --out prepared/hip20")
def prepare(
    folder: Annotated[Path, typer.Argument(help="a cohort: source/*.nii.gz, target/*.nii.gz, virtual or your own")],
    out: Out,
    plane: Annotated[
        str | None, typer.Option(help="coronal, axial or sagittal; by default the source's own slices")
    ] = None,
    size: Annotated[int | None, typer.Option(help="pixels per side; by default the source's own")] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="lowest and highest HU of CT that the network sees; the papers': -150 350"),
    ] = None,
    n4: Annotated[
        bool | None, typer.Option("--n4/--no-n4", help="correct the bias field of MR; by default all but heads")
    ] = None,
    profile: Annotated[str, typer.Option(help="coarse, full or paper: how thorough N4 is")] = "full",
    source_modality: Annotated[
        str | None, typer.Option(help="CT or MR; by default what the source scans look like")
    ] = None,
    target_modality: Annotated[
        str | None, typer.Option(help="CT or MR; by default what the target scans look like")
    ] = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring scans to slices that a network can learn from: N4, field of view, intensity windows."""
    from mr2ct_lib.images.intensity import Window
    from mr2ct_lib.images.prepare import prepare as prepare_cohort
    from mr2ct_lib.images.slices import PreparedSlices

    check_folder(out, [folder], "prepared.json", overwrite)
    for path in folder.glob("*/*"):
        check_encoding(path)
    if (folder / "names.json").exists():
        read_names(folder / "names.json")  # before the work, not after it
    ct = None if window is None else Window(*window, "HU")
    more = {"source_modality": source_modality, "target_modality": target_modality, "scheduler": scheduler}
    prepare_cohort(folder, out, plane=plane, size=size, profile=profile, n4=n4, target_window=ct, **more)
    slices = PreparedSlices(out)
    height, width = slices.preparation.shape
    print(
        f"{len(slices.source)} source and {counted(len(slices.target), 'target slice')} of {height} x {width} pixels "
        f"in {out}. "
        f"Next: mr2ct train cyclegan --data {quoted(out)} --out {quoted(f'runs/{out.name}')}"
    )


@app.command(
    epilog="Example: mr2ct train cyclegan --data prepared/hip20 --out runs/a --set lambda_gc=0.3 --set iterations=40"
)
def train(
    method: Annotated[str, typer.Argument(help="cyclegan or dicyclegan")],
    data: Annotated[Path, typer.Option(help="prepared slices")],
    out: Out,
    profile: Annotated[str, typer.Option(help="quick, full or paper")] = "quick",
    seed: Annotated[int, typer.Option(help="same seed, same machine, same bits")] = 7,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, any setting, as often as needed")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint")] = False,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda")] = "auto",
    torchrun: Annotated[
        str | None, typer.Option(help='options of torchrun, for several processes: "--nproc-per-node 2"')
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="also write tensorboard/ in the run's folder")
    ] = False,
) -> None:
    """Train both generators, in one process or, with --torchrun, in several."""
    from mr2ct_lib.methods.distributed import is_first, is_launched, launch
    from mr2ct_lib.methods.runs import read_log
    from mr2ct_lib.methods.runs import train as train_run
    from mr2ct_lib.methods.settings import make_settings

    changes = {}
    for text in change or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r}: gives no value; expected name=value, for instance --set lambda_gc=0.3")
        changes[name.strip()] = value.strip()
    if "seed" in changes or "method" in changes or "profile" in changes:
        raise InputError("--set seed, method or profile: each has its own place; give --seed, the method or --profile")
    settings = make_settings(method, profile, seed=seed, **changes)
    if torchrun is not None and not is_launched():
        return launch(torchrun, sys.argv[1:])
    run = train_run(settings, data, out, resume=resume, device=device, tensorboard=tensorboard)
    if not is_first():
        return None
    last = ", ".join(f"{name} {value:.3g}" for name, value in read_log(run)[-1].items())
    translator = run / "translator"
    print(
        f"{last}\nTranslator in {translator}. Next: mr2ct synthesize {quoted(translator)} scan.nii.gz --out sct.nii.gz"
    )


@segmenting.command(
    "train", epilog="Example: mr2ct segment train runs/a/translator prepared/labelled --out runs/seg --iterations 600"
)
def segment_train(
    translator: Annotated[Path, typer.Argument(help="translator/ of a finished run")],
    data: Annotated[Path, typer.Argument(help="prepared slices whose CT patients have labels")],
    out: Out,
    iterations: Annotated[int, typer.Option(help="steps of Adam")] = 600,
    learning_rate: Annotated[float, typer.Option(help="the paper's is 1e-4, over 1e5 iterations")] = 3e-3,
    size: Annotated[str, typer.Option(help="quick, full or paper: width of the U-Net")] = "quick",
    seed: Annotated[int, typer.Option(help="same seed, same network")] = 7,
    overwrite: Overwrite = False,
) -> None:
    """Train the U-Net on labelled CT and the synthetic MR that the translator makes from it."""
    from mr2ct_lib.course.experiments import labelled_channels
    from mr2ct_lib.course.recorded import find_translator
    from mr2ct_lib.images.slices import PreparedSlices
    from mr2ct_lib.methods.segmentation import save_segmenter, train_segmenter
    from mr2ct_lib.methods.translator import load_translator

    check_folder(out, [translator, data], "segmenter.json", overwrite)
    slices = PreparedSlices(data)
    channels, labels, names = labelled_channels(slices, load_translator(find_translator(translator)))
    segmenter = train_segmenter(
        channels,
        labels,
        names,
        size=size,
        iterations=iterations,
        learning_rate=learning_rate,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    segmenter.training["preparation"] = slices.preparation.as_dict()
    save_segmenter(segmenter, out)
    seen = sum(value in labels for value in names)
    print(
        f"{seen} of {len(names)} named structures learned from {counted(len(channels), 'slice')}, in {out}. "
        f"Next: mr2ct segment apply {quoted(out)} scan.nii.gz --translator {quoted(translator)} --out labels.nii.gz"
    )
