"""The experiments of both papers by name: cohorts, prepared slices and trained runs, made when missing and used again when there.

The notebooks hand work to one another in runs/<profile>/ through these names, and each can run alone. All numbers of patients and the
differences between two compared runs stand here.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import mr2ct_lib
from mr2ct_lib import cores
from mr2ct_lib.files import InputError, atomic, read_json
from mr2ct_lib.images.preparation import prepare
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices
from mr2ct_lib.measures import metrics
from mr2ct_lib.methods.segmentation import Segmenter, cross_validate, load_segmenter, predict, save_segmenter, train_segmenter
from mr2ct_lib.methods.settings import METHOD_IN_PROFILE, make_settings
from mr2ct_lib.methods.training import AnotherRun, train
from mr2ct_lib.methods.translator import Translator, load_translator
from mr2ct_lib.patients.hip import STRUCTURES, structure_labels
from mr2ct_lib.patients.scanner import make_cohort

RUNS = Path(mr2ct_lib.__file__).parents[1] / "runs"
RESULTS = RUNS.parent / "results"

# name: (arguments of make_cohort, patients in the quick, full and paper profile: of a domain, or of (source, target)); tests have own seeds
COHORTS: dict[str, tuple[dict[str, Any], dict[str, int | tuple[int, int]]]] = {
    "hip": ({"anatomy": "hip", "seed": 1}, {"quick": 60, "full": (302, 613), "paper": (302, 613)}),
    "hip_test": ({"anatomy": "hip", "seed": 2, "paired": True}, {"quick": 10, "full": 10, "paper": 10}),
    "hip_validation": ({"anatomy": "hip", "seed": 4, "paired": True}, {"quick": 5, "full": 5, "paper": 5}),
    "hip_labelled": ({"anatomy": "hip", "seed": 3}, {"quick": 20, "full": 20, "paper": 20}),
    "head": ({"anatomy": "head", "seed": 1}, {"quick": 38, "full": 38, "paper": 38}),
    "head_test": ({"anatomy": "head", "seed": 2, "paired": True}, {"quick": 8, "full": 28, "paper": 28}),
    "head_distorted": ({"anatomy": "head", "seed": 1, "distort_target": True}, {"quick": 38, "full": 38, "paper": 38}),
    "head_distorted_test": ({"anatomy": "head", "seed": 2, "paired": True, "distort_target": True}, {"quick": 8, "full": 28, "paper": 28}),
    "head_validation": ({"anatomy": "head", "seed": 4, "paired": True}, {"quick": 5, "full": 5, "paper": 5}),
    "head_distorted_validation": (
        {"anatomy": "head", "seed": 4, "paired": True, "distort_target": True},
        {"quick": 5, "full": 5, "paper": 5},
    ),
    "abdomen": ({"anatomy": "abdomen", "seed": 1}, {"quick": 40, "full": 40, "paper": 40}),
    "abdomen_validation": ({"anatomy": "abdomen", "seed": 4, "paired": True}, {"quick": 5, "full": 5, "paper": 5}),
    "abdomen_test": ({"anatomy": "abdomen", "seed": 2, "paired": True}, {"quick": 8, "full": 20, "paper": 20}),
}
FEW = {"quick": 3, "full": 20, "paper": 20}  # patients a domain of the paper's smaller training set

_HEAD_CYCLEGAN = {"lambda_gc": 0.0, "lambda_cycle": 10.0}  # the second paper's CycleGAN: its own cycle weight, no GC
# name: (cohort, method, settings that differ from the method's own); "few" patients are filled in by the profile
TRAININGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hip_many": ("hip", "cyclegan", {"lambda_gc": 0.0}),
    "hip_many_gc": ("hip", "cyclegan", {}),
    "hip_many_signed_gc": ("hip", "cyclegan", {"gc_absolute": False}),
    "hip_few": ("hip", "cyclegan", {"lambda_gc": 0.0, "patients": "few"}),
    "hip_few_gc": ("hip", "cyclegan", {"patients": "few"}),
    "hip_narrow": ("hip", "cyclegan", {"lambda_gc": 0.0, "discriminator_layers": 1}),
    "head_cyclegan": ("head", "cyclegan", _HEAD_CYCLEGAN),
    "head_dicyclegan": ("head", "dicyclegan", {}),
    "head_distorted_cyclegan": ("head_distorted", "cyclegan", _HEAD_CYCLEGAN),
    "head_distorted_dicyclegan": ("head_distorted", "dicyclegan", {}),
    "head_distorted_dicyclegan_gc": ("head_distorted", "dicyclegan", {"lambda_gc": 0.3}),
    "abdomen_cyclegan": ("abdomen", "cyclegan", _HEAD_CYCLEGAN),
    "abdomen_dicyclegan": ("abdomen", "dicyclegan", {}),
}

# the U-Nets of notebook 06: steps of one network, of the network of each fold, learning rate; the paper's own in "paper"
UNETS: dict[str, dict[str, Any]] = {
    "quick": {"iterations": 450, "fold_iterations": 180, "learning_rate": 3e-3},
    "full": {"iterations": 4000, "fold_iterations": 2000, "learning_rate": 1e-3},
    "paper": {"iterations": 100_000, "fold_iterations": 100_000, "learning_rate": 1e-4},
}
ALONE = {"ct_alone": ("target", "CT"), "mr_alone": ("source", "MR")}  # U-Nets of one channel, on labelled scans of that domain

# Steps at the full and at the falling learning rate where a profile's own are too many, too few, or not the paper's. Two methods that are
# compared get the same number of steps, as in the second paper, though one of DicycleGAN takes twice as long. hip_narrow is there to
# fail, which it does early.
SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "hip_narrow": {"iterations": 150, "decay_iterations": 100},
        "head_cyclegan": {"iterations": 300, "decay_iterations": 150},
        "head_dicyclegan": {"iterations": 300, "decay_iterations": 150},
        "head_distorted_cyclegan": {"iterations": 300, "decay_iterations": 150},
        "head_distorted_dicyclegan": {"iterations": 300, "decay_iterations": 150},
        "head_distorted_dicyclegan_gc": {"iterations": 300, "decay_iterations": 150},
        "abdomen_cyclegan": {"iterations": 100, "decay_iterations": 50},
        "abdomen_dicyclegan": {"iterations": 100, "decay_iterations": 50},
    },
    "full": {},
    "paper": dict.fromkeys(("head_cyclegan", "head_distorted_cyclegan", "abdomen_cyclegan"), METHOD_IN_PROFILE["dicyclegan", "paper"]),
}


def cohort(name: str, profile: str = "quick", root: Path | None = None) -> Path:
    """The folder of the cohort `name` in runs/<profile>/cohorts/, scanned (or finished) now if need be. InputError for an unknown name."""
    arguments, patients = _known(COHORTS, name)
    folder = (root or RUNS) / profile / "cohorts" / name
    index = folder / "cohort.json"
    if not (index.is_file() and read_json(index).get("complete")):  # one that was interrupted goes on where it stopped
        with _Announced(f"cohort {name}: scanning virtual patients"):
            make_cohort(out=folder, patients=patients[profile], profile=profile, **arguments)
    return folder


def prepared(name: str, profile: str = "quick", root: Path | None = None) -> PreparedSlices:
    """The prepared slices of the cohort `name`, in runs/<profile>/prepared/, made now if they are not there."""
    folder = (root or RUNS) / profile / "prepared" / name
    if not (folder / "prepared.json").is_file():
        scans = cohort(name, profile, root)
        with _Announced(f"slices of {name}: preparing"):
            prepare(scans, folder, profile=profile)
    return PreparedSlices(folder)


def run(name: str, profile: str = "quick", seed: int = 7, root: Path | None = None, **changes: Any) -> Path:
    """The run folder of the training `name` with `seed`, trained (or resumed) now if it is not finished.

    Raises InputError when the folder holds a run of other settings or other data than the experiment's of today: remove it then.

    changes: settings on top of the experiment's own; such a run gets a folder of its own name.
    """
    data_name, method, own = _known(TRAININGS, name)
    own = {key: FEW[profile] if value == "few" else value for key, value in own.items()} | SCHEDULES.get(profile, {}).get(name, {})
    settings = make_settings(method, profile, seed=seed, **(own | changes))
    suffix = "".join(f"_{key}={value}" for key, value in sorted(changes.items()))
    folder = (root or RUNS) / profile / f"{name}_seed{seed}{suffix}"
    data = prepared(data_name, profile, root)
    finished = (folder / "translator" / "translator.json").is_file()
    steps = settings.in_steps(max(data.count(domain, settings.patients) for domain in DOMAINS)).total_iterations
    with nullcontext() if finished else _Announced(f"run {folder.name}: training {steps} steps"):
        try:
            train(settings, data.folder, folder, resume=True)  # a finished run is only compared
        except AnotherRun as error:
            found = str(error).split(";")[0]
            raise InputError(f"{found}, as is asked for now; remove the folder {folder} and run this again to train it anew") from error
    return folder


def side_by_side(*jobs: tuple, profile: str = "quick", seed: int = 7, root: Path | None = None) -> list[Any]:
    """What several of this module's functions return, those whose work is not done yet side by side, as many at once as there are cores.

    jobs: (run, "hip_few"), (segmenter, "ct_alone"), (mr_only_prediction,): a function and its name. They are
    begun in this order: name the longest first. Small networks hardly gain by a second thread, so two trainings of one thread each take
    little longer than one of two. On a GPU, or a single core, they follow one another. Runs resume where an interrupted cell left them.
    """
    root = root or RUNS
    missing = [job for job in jobs if not _is_made(*job, base=root / profile, seed=seed)]
    at_once = min(len(missing), cores.available())
    if at_once > 1 and not torch.cuda.is_available():
        for function, *names in missing:  # what two of them need is made once
            for data in [_known(TRAININGS, names[0])[0]] if function is run else ["hip_labelled", "hip_test"]:
                prepared(data, profile, root)
            if function is segmenter and names[0] not in ALONE:
                run(names[0], profile, seed, root)
        with _Announced(f"{len(missing)} trainings, {at_once} at once"), cores.pool(at_once, cores.available() // at_once) as pool:
            for done in [pool.submit(_by_itself, *job, profile, seed, root) for job in missing]:
                done.result()
    return [function(*names, profile, seed, root) for function, *names in jobs]


def _is_made(function: Callable, *names: str, base: Path, seed: int) -> bool:
    """Whether the work of a job of `side_by_side` is done."""
    if function is run:
        return (base / f"{names[0]}_seed{seed}" / "translator" / "translator.json").is_file()
    if function is segmenter:
        return (_segmenter_folder(names[0], base, seed) / "segmenter.json").is_file()
    return (base / f"mr_only_seed{seed}.npy").is_file()


def _segmenter_folder(name: str, base: Path, seed: int) -> Path:
    return base / f"segmenter_{name}_seed{seed}" if name in ALONE else base / f"{name}_seed{seed}" / "segmenter"


def _by_itself(function: Callable, *arguments: Any) -> None:
    """In a process of its own; what it made is read from the disk."""
    function(*arguments)


def translator(name: str, profile: str = "quick", seed: int = 7, root: Path | None = None, **changes: Any) -> Translator:
    """The trained translator of `run`."""
    return load_translator(run(name, profile, seed, root, **changes))


def recorded(name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A recorded result of results/: the table <name>.csv and its provenance <name>.json (seeds, settings, versions, machine, minutes).

    Raises InputError when it is not there.
    """
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        raise InputError(f"{path}: is not there; expected a table that `python -m tools.record {name}` writes. Run that first")
    return pd.read_csv(path), read_json(path.with_suffix(".json"))


def measure(
    synthetic: np.ndarray, test: PreparedSlices, direction: str = "source_to_target", inside: np.ndarray | None = None
) -> pd.DataFrame:
    """Errors of a test set's synthetic slices (n, h, w) in [-1, 1] against the truth, a row for each patient.

    Columns: patient; MAE and PSNR on the [0, 255] scale of the first paper; MSE, PSNR and SSIM in the window's unit as in the second
    ("MSE unit", "PSNR unit", SSIM), data range = the window's width. Pixels that the truth's scan does not cover are left out, and with
    `inside`, a mask (n, h, w) such as the aorta's, all that lie outside it.
    """
    domain = direction.split("_to_")[1]
    truth = getattr(test, f"truth_{direction}")
    truth = np.asarray(getattr(test, domain) if truth is None else truth)
    if truth.shape != synthetic.shape:
        raise InputError(f"synthetic: shape {synthetic.shape} against {truth.shape} of {test.folder}; translate the whole test set")
    window = test.windows[domain]
    masks = [np.asarray(m, bool) for m in (test.valid, inside) if m is not None]
    counted = np.logical_and.reduce(masks) if masks else None
    rows = []
    for patient, where in test.patients("source"):
        mask = None if counted is None else counted[where]
        made, real = synthetic[where], truth[where]
        grey = [(x + 1) * 127.5 for x in (made, real)]
        unit = [window.from_network(x) for x in (made, real)]
        span = window.high - window.low
        rows.append(
            {
                "patient": patient,
                "MAE": metrics.mae(*grey, mask),
                "PSNR": metrics.psnr(*grey, mask, data_range=255),
                "MSE unit": metrics.mse(*unit, mask),
                "PSNR unit": metrics.psnr(*unit, mask, data_range=span),
                "SSIM": float(np.nanmean(metrics.slicewise(metrics.ssim, *unit, mask, data_range=span))),
            }
        )
    return pd.DataFrame(rows)


def baselines(train_set: PreparedSlices, test: PreparedSlices, direction: str = "source_to_target") -> dict[str, np.ndarray]:
    """What a translator must beat, as slices like the test set's: histogram matching, and the mean training slice of each position."""
    source, target = direction.split("_to_")
    training, real = getattr(train_set, target), np.asarray(getattr(test, source))
    counts = {where.stop - where.start for _, where in (*train_set.patients(target), *test.patients(source))}
    stack = (counts.pop(),) if len(counts) == 1 else (1,)  # slabs of one size: a mean for each slice, else one for all
    mean = metrics.mean_target(np.asarray(training).reshape(-1, *stack, *real.shape[1:]), (len(real) // stack[0], *stack, *real.shape[1:]))
    return {
        "histogram matching": metrics.histogram_matching(real, np.asarray(training[:: max(1, len(training) // 200)])),
        "mean training slice": mean.reshape(real.shape),
    }


def labelled_channels(data: PreparedSlices, translator: Translator) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """What a U-Net of Hiasa et al. learns from: labelled CT slices with the MR that the translator makes of them.

    Returns channels (n, 2, h, w) as (synthetic MR, CT), labels (n, h, w), names. For hips the labels are the paper's 22 structures.
    Raises InputError when the CT patients have no labels, and when the slices are not like those that the translator was trained on.
    """
    if data.labels_target is None:
        raise InputError(f"{data.folder}: its CT patients have no labels; expected labels_target.npy, prepare a cohort with labels/")
    for key in ("plane", "windows", "normalisation"):
        if translator.preparation[key] != data.meta[key]:
            raise InputError(
                f"{data.folder}: its {key} is {data.meta[key]}, the translator's {translator.preparation[key]}; expected slices like those "
                "that the translator was trained on. Prepare them in the same way"
            )
    ct = np.array(data.target)
    labels, names = structures(np.asarray(data.labels_target), data)
    return np.stack([translator.translate(ct, "target_to_source"), ct], axis=1), labels, names


def structures(labels: np.ndarray, data: PreparedSlices) -> tuple[np.ndarray, dict[int, str]]:
    """Labels of prepared hips as the paper's 22 structures (1..22) with their names; those of other anatomies as they are."""
    names = {int(value): name for value, name in data.meta["label_names"].items()}
    if data.meta["anatomy"] == "hip" and set(STRUCTURES) <= set(names.values()):
        return structure_labels(labels, names), dict(enumerate(STRUCTURES, start=1))
    return labels, {value: name for value, name in names.items() if value}


def segmenter(name: str = "hip_many_gc", profile: str = "quick", seed: int = 7, root: Path | None = None) -> Segmenter:
    """The U-Net that learned the 22 structures from labelled CT and the MR that the translator of the run `name` makes of it.

    "ct_alone", "mr_alone": from labelled scans of one kind, one channel, of as many patients. Trained now if it is not there; a run's
    U-Net lies in its folder, whose fate it shares. Its `training` holds "curve", the mean loss of each tenth of the steps.
    """
    if name not in ALONE:
        run(name, profile, seed, root)
    folder = _segmenter_folder(name, (root or RUNS) / profile, seed)
    if not (folder / "segmenter.json").is_file():
        data = prepared("hip_labelled", profile, root)
        if name in ALONE:
            domain, kind = ALONE[name]
            labels, names = structures(np.asarray(getattr(data, f"labels_{domain}")), data)
            channels, shown = np.asarray(getattr(data, domain))[:, None], (kind,)
        else:
            channels, labels, names = labelled_channels(data, load_translator(folder.parent))
            shown = ("MR", "CT")
        steps, losses = UNETS[profile]["iterations"], []
        with _Announced(f"U-Net on {' + '.join(shown)}, {folder.parent.name}: training {steps} steps"):
            trained = train_segmenter(
                channels, labels, names, channel_names=shown, size=profile, iterations=steps, seed=seed, progress=sys.stderr.isatty(),
                learning_rate=UNETS[profile]["learning_rate"], report=lambda _, loss: losses.append(loss),
            )  # fmt: skip
        trained.training["curve"] = [round(float(part.mean()), 4) for part in np.array_split(losses, 10) if len(part)]
        save_segmenter(trained, folder)
    return load_segmenter(folder)


def segment_test(name: str = "hip_many_gc", profile: str = "quick", seed: int = 7, root: Path | None = None) -> np.ndarray:
    """Labels (n, h, w) of the test MRs by their two channels, MR and the synthetic CT of the run `name`, and that run's own U-Net.

    "mr_alone": by the U-Net that learned from as many labelled MRs of other patients, the bound for equal numbers of labels.
    """
    mr = np.array(prepared("hip_test", profile, root).source)
    if name == "mr_alone":
        return predict(segmenter(name, profile, seed, root), mr[:, None])
    channels = np.stack([mr, translator(name, profile, seed, root).translate(mr)], axis=1)
    return predict(segmenter(name, profile, seed, root), channels)


def mr_only_prediction(profile: str = "quick", seed: int = 7, root: Path | None = None) -> np.ndarray:
    """Labels (n, h, w) of the test MRs by U-Nets on MR alone, each patient by a network that has not seen it (5 folds).

    This is the bound of Hiasa et al.: what labels on MR itself would bring, learned from 8 patients. Predicted now if it is not there.
    """
    path = (root or RUNS) / profile / f"mr_only_seed{seed}.npy"
    if not path.is_file():
        test = prepared("hip_test", profile, root)
        labels, names = structures(np.asarray(test.labels_source), test)
        owner = [patient for patient, where in test.patients("source") for _ in range(where.stop - where.start)]
        steps = UNETS[profile]["fold_iterations"]
        with _Announced(f"U-Net on MR alone: training 5 folds of {steps} steps"):
            found = cross_validate(
                np.asarray(test.source)[:, None], labels, names, owner, seed=seed, progress=sys.stderr.isatty(), channel_names=("MR",),
                size=profile, iterations=steps, learning_rate=UNETS[profile]["learning_rate"],
            )  # fmt: skip
        with atomic(path) as temporary:
            np.save(temporary, found)
    return np.load(path)


def measure_labels(prediction: np.ndarray, test: PreparedSlices) -> pd.DataFrame:
    """Dice and HD95 (mm) of every structure in a test set's MRs, a row for each patient and structure, over the patient's whole volume.

    prediction: labels (n, h, w) as `structures` numbers them. Columns: patient, structure, Dice, HD95 (NaN where a structure is absent).
    """
    labels, names = structures(np.asarray(test.labels_source), test)
    if prediction.shape != labels.shape:
        raise InputError(f"prediction: shape {prediction.shape} against {labels.shape} of {test.folder}; segment the whole test set")
    spacing = (test.meta["slice_spacing"], *test.meta["spacing"])
    rows = []
    for patient, where in test.patients("source"):
        overlap = metrics.dice(prediction[where], labels[where], names)
        distance = metrics.hausdorff_95(prediction[where], labels[where], names, spacing)
        rows += [{"patient": patient, "structure": name, "Dice": overlap[name], "HD95": distance[name]} for name in overlap]
    return pd.DataFrame(rows)


def _known(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise InputError(f"experiment {name!r} is unknown; expected one of {', '.join(table)}")
    return table[name]


class _Announced:
    """Says what is being made, and how long it took."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        print(f"{self.what} ...", file=sys.stderr, flush=True)
        self.started = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            print(f"{self.what} took {time.perf_counter() - self.started:.0f} s", file=sys.stderr, flush=True)
