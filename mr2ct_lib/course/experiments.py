"""The work behind the experiments of `catalogue`: cohorts, prepared slices, trained runs, U-Nets.

Each function makes what is missing, with a message, and uses again what is there. The notebooks hand work to one
another through these functions, so each notebook can run alone. Cohorts and slices are in runs/<scans>/ (see
`catalogue.SCANS`), runs in runs/<profile>/.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mr2ct_lib import cores
from mr2ct_lib.course.catalogue import ALONE, SCANS, TRAININGS, cohort_plan, known, training_settings
from mr2ct_lib.course.recorded import RESULTS, find_translator
from mr2ct_lib.course.supervised import SupervisedTrainer
from mr2ct_lib.files import InputError, atomic, read_json
from mr2ct_lib.images.prepare import prepare
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices
from mr2ct_lib.methods.captured import memory_of_run, runs_at_once, shared_gpu
from mr2ct_lib.methods.distributed import choose_device
from mr2ct_lib.methods.runs import AnotherRun, train
from mr2ct_lib.methods.segmentation import (
    Segmenter,
    cross_validate,
    load_segmenter,
    predict,
    save_segmenter,
    train_segmenter,
    training_channels,
)
from mr2ct_lib.methods.settings import PROFILES
from mr2ct_lib.methods.training import Trainer
from mr2ct_lib.methods.translator import Translator, load_translator
from mr2ct_lib.patients.cohort import make_cohort
from mr2ct_lib.patients.hip import STRUCTURES, structure_labels
from mr2ct_lib.patients.scanner import PROFILES as SCANNERS

RUNS = RESULTS.parent / "runs"


# --- scans and slices ---


def cohort(name: str, profile: str = "quick", root: Path | None = None) -> Path:
    """Return the folder of the cohort `name`, scanned or finished now if need be.

    It may hold more patients than the profile asks for, when profiles share their scans. Raises InputError for an
    unknown name.
    """
    plan = cohort_plan(name)
    folder = (root or RUNS) / SCANS[profile] / "cohorts" / name
    index = folder / "cohort.json"

    def is_there() -> bool:
        if not index.is_file() or not read_json(index).get("complete"):
            return False
        ids = read_json(index)["patients"]
        held = {role: sum(id_.startswith(role) for id_ in ids) for role in "pst"}
        enough = {"s": held["p"] or held["s"], "t": held["p"] or held["t"]}
        return all(enough[role] >= count for role, count in zip("st", _counts(name, profile), strict=True))

    def make() -> None:
        make_cohort(out=folder, patients=plan.patients[profile], profile=SCANS[profile], **plan.arguments)

    cores.make_once(folder, f"cohort {name}: scanning virtual patients", is_there, make)
    return folder


def prepared(name: str, profile: str = "quick", root: Path | None = None) -> PreparedSlices:
    """Return the prepared slices of the cohort `name`, made now if they are not there: the profile's first patients."""
    folder = (root or RUNS) / SCANS[profile] / "prepared" / name
    counts = _counts(name, profile)

    def is_there() -> bool:
        return (folder / "prepared.json").is_file() and _holds(folder, counts)

    if not is_there():
        scans, say = cohort(name, profile, root), partial(print, file=sys.stderr, flush=True)
        make = partial(prepare, scans, folder, profile=SCANS[profile], say=say)
        cores.make_once(folder, f"slices of {name}: preparing", is_there, make)
    return PreparedSlices(folder).first_patients(*counts)


def _counts(name: str, profile: str) -> tuple[int, int]:
    """Return how many (source, target) patients a profile takes of a cohort."""
    patients = cohort_plan(name).patients[profile]
    return patients if isinstance(patients, tuple) else (patients, patients)


def _holds(folder: Path, counts: tuple[int, int]) -> bool:
    """Return whether prepared slices hold so many patients, the ones that were left out included."""
    meta = read_json(folder / "prepared.json")
    out = len(meta.get("left_out", ()))
    return all(len(meta["patients"][domain]) + out >= n for domain, n in zip(DOMAINS, counts, strict=True))


# --- translators ---


def run(name: str, profile: str = "quick", seed: int = 7, root: Path | None = None, **changes: Any) -> Path:
    """Return the run folder of the training `name` with `seed`, trained or resumed now if it is not finished.

    changes: settings on top of the experiment's own; such a run gets a folder of its own name.

    Raises InputError when the folder holds a run of other settings or other data than those of today.
    """
    settings = training_settings(name, profile, seed, **changes)
    folder = run_folder(name, profile, seed, root, **changes)
    data = prepared(TRAININGS[name].data(seed), profile, root)
    trainer = SupervisedTrainer if TRAININGS[name].method == "supervised" else Trainer
    steps = settings.in_steps(max(data.count(domain, settings.patients) for domain in DOMAINS)).total_iterations

    def is_there() -> bool:
        return (folder / "translator" / "translator.json").is_file()

    def learn() -> None:
        try:
            train(settings, data.folder, folder, resume=True, trainer_class=trainer)
        except AnotherRun as error:
            difference = str(error).split(";")[0]
            raise InputError(
                f"{difference}, as is asked for now; remove the folder {folder} and run this again to train it anew"
            ) from error

    if is_there():
        learn()  # a finished run is only compared
    else:
        cores.make_once(folder, f"run {folder.name}: training {steps} steps", is_there, learn)
    return folder


def run_folder(name: str, profile: str, seed: int, root: Path | None = None, **changes: Any) -> Path:
    """Return where the run of a training is, or would be."""
    suffix = "".join(f"_{key}={value}" for key, value in sorted(changes.items()))
    return (root or RUNS) / profile / f"{name}_seed{seed}{suffix}"


def translator(
    name: str, profile: str = "quick", seed: int = 7, root: Path | None = None, **changes: Any
) -> Translator:
    """Return the trained translator of `run`."""
    return load_translator(run(name, profile, seed, root, **changes))


# --- recorded results ---


def recorded(kind: str = "images", profile: str = "quick", split: str = "test") -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return recorded values of results/<profile>/ and their provenance: settings, steps, minutes, versions, machine.

    kind: "images" (errors per run, seed, direction and patient, of all anatomies), "tissues" (per tissue, too) or
    "segmentation" (per structure). split: "test" or "validation" patients. Raises InputError when there are none.
    """
    names = ("abdomen", "head", "hip") if kind == "images" else (kind,)
    paths = [path for name in names if (path := RESULTS / profile / f"{name}.csv").is_file()]
    if not paths:
        raise InputError(
            f"{RESULTS / profile}: holds no {kind}; expected a table that `python -m tools.record --profile {profile}` "
            "writes. Run that first"
        )
    table = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    return table[table.split == split].reset_index(drop=True), read_json(RESULTS / profile / "provenance.json")


def recorded_translator(name: str) -> Translator:
    """Return a recorded translator by its experiment's name, such as "hip_many_gc"; InputError when there is none."""
    return load_translator(find_translator(name))


# --- U-Nets ---


def labelled_channels(data: PreparedSlices, translator: Translator) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return what a U-Net of Hiasa et al. learns from: labelled CT slices and the MR that the translator makes of them.

    Returns channels (N, 2, H, W) as (synthetic MR, CT), labels (N, H, W), names. For hips, the paper's 22 structures.
    Raises InputError for CT without labels, and for slices unlike those that the translator was trained on.
    """
    channels = training_channels(data, translator)
    return channels, *structures(np.asarray(data.labels_target), data)


def structures(labels: np.ndarray, data: PreparedSlices) -> tuple[np.ndarray, dict[int, str]]:
    """Return labels and their names: of hips the paper's 22 structures (1..22), of other anatomies as they are."""
    names = {int(value): name for value, name in data.meta["label_names"].items()}
    if data.meta["anatomy"] == "hip" and set(STRUCTURES) <= set(names.values()):
        return structure_labels(labels, names), dict(enumerate(STRUCTURES, start=1))
    return labels, {value: name for value, name in names.items() if value}


def segmenter(name: str = "hip_many_gc", profile: str = "quick", seed: int = 7, root: Path | None = None) -> Segmenter:
    """Return the U-Net that learned the 22 structures from CT and the MR that the run `name` makes of it.

    "recorded hip_many_gc": from the MR that this recorded translator makes. "ct_alone", "mr_alone": from labelled scans
    of one kind, one channel, as many patients. Trained now if it is not there; it lies in its run's folder.
    """
    if _needs_run(name) and not _is_done(run, name, base=(root or RUNS) / profile, seed=seed):
        run(name, profile, seed, root)
    folder = _segmenter_folder(name, (root or RUNS) / profile, seed)
    what = f"U-Net {name}: training {PROFILES[profile].unet.iterations} steps"
    is_there = partial(_is_done, segmenter, name, base=(root or RUNS) / profile, seed=seed)
    cores.make_once(
        folder, what, is_there, lambda: save_segmenter(_learn_structures(name, profile, seed, root), folder)
    )
    return load_segmenter(folder)


def _learn_structures(name: str, profile: str, seed: int, root: Path | None) -> Segmenter:
    """Train the U-Net of `segmenter`."""
    data = prepared("hip_labelled", profile, root)
    if name in ALONE:
        domain, channel = ALONE[name]
        labels, names = structures(np.asarray(getattr(data, f"labels_{domain}")), data)
        channels, channel_names = np.asarray(getattr(data, domain))[:, None], (channel,)
    else:
        channels, labels, names = labelled_channels(data, _translator_behind(name, profile, seed, root))
        channel_names = ("MR", "CT")
    unet = PROFILES[profile].unet
    return train_segmenter(
        channels, labels, names, channel_names=channel_names, size=profile, iterations=unet.iterations, seed=seed,
        learning_rate=unet.learning_rate, progress=sys.stderr.isatty(),
    )  # fmt: skip


def segment_test(
    name: str = "hip_many_gc", profile: str = "quick", seed: int = 7, root: Path | None = None
) -> np.ndarray:
    """Return labels (N, H, W) of the test MRs by two channels, MR and the run's synthetic CT, and the run's own U-Net.

    "mr_alone": by the U-Net that learned from as many labelled MRs of other patients.
    """
    mr = np.array(prepared("hip_test", profile, root).source)
    unet = segmenter(name, profile, seed, root)
    if name == "mr_alone":
        return predict(unet, mr[:, None])
    synthetic = _translator_behind(name, profile, seed, root).translate(mr)
    return predict(unet, np.stack([mr, synthetic], axis=1))


def _translator_behind(name: str, profile: str, seed: int, root: Path | None) -> Translator:
    """Return the translator that makes the second channel of the U-Net `name`."""
    if name.startswith("recorded "):
        return recorded_translator(name.removeprefix("recorded "))
    return load_translator(run_folder(name, profile, seed, root))


def _needs_run(name: str) -> bool:
    """Return whether the U-Net `name` learns from what a run of this machine makes."""
    return name not in ALONE and not name.startswith("recorded ")


def mr_only_prediction(profile: str = "quick", seed: int = 7, root: Path | None = None) -> np.ndarray:
    """Return labels (N, H, W) of the test MRs by U-Nets on MR alone, each patient by a network that has not seen them.

    The comparison of Hiasa et al.: labels on MR itself, in 5 folds over the test patients, with as many steps in each
    fold as every other U-Net. Predicted now if it is not there.
    """
    path = (root or RUNS) / profile / f"mr_only_seed{seed}.npy"
    unet = PROFILES[profile].unet

    def make() -> None:
        test = prepared("hip_test", profile, root)
        labels, names = structures(np.asarray(test.labels_source), test)
        owner = [patient for patient, where in test.patients("source") for _ in range(where.stop - where.start)]
        prediction = cross_validate(
            np.asarray(test.source)[:, None], labels, names, owner, seed=seed, channel_names=("MR",), size=profile,
            iterations=unet.iterations, learning_rate=unet.learning_rate, progress=sys.stderr.isatty(),
        )  # fmt: skip
        with atomic(path) as temporary:
            np.save(temporary, prediction)

    cores.make_once(path, f"U-Net on MR alone: training 5 folds of {unet.iterations} steps", path.is_file, make)
    return np.load(path)


# --- several at once ---


def side_by_side(*jobs: tuple, profile: str = "quick", seed: int = 7, root: Path | None = None) -> list[Any]:
    """Do several jobs of this module at once, as many as there are cores, and return their results in order.

    jobs: `run` or `segmenter` and a name, such as (run, "hip_few"), (segmenter, "ct_alone"). They are begun in this
    order, so name the longest first. Small networks gain little from a second thread, so two trainings with one thread
    each take hardly longer than one with two. On a GPU as many run at once as its memory holds. Runs resume where an
    interrupted cell left them.
    """
    root = root or RUNS
    missing = [job for job in jobs if not _is_done(*job, base=root / profile, seed=seed)]
    at_once = jobs_at_once(missing, profile)
    if at_once > 1:
        for function, *names in missing:  # data that two jobs need are made once
            for data in [known(TRAININGS, names[0]).data(seed)] if function is run else ["hip_labelled"]:
                prepared(data, profile, root)
            if function is segmenter and _needs_run(names[0]):
                run(names[0], profile, seed, root)
        threads = cores.available() // at_once
        print(f"{len(missing)} trainings, {at_once} at once", file=sys.stderr, flush=True)
        with shared_gpu(), cores.pool(at_once, threads) as pool:
            for done in [pool.submit(_in_own_process, *job, profile, seed, root) for job in missing]:
                done.result()
    return [function(*names, profile, seed, root) for function, *names in jobs]


def jobs_at_once(jobs: list[tuple], profile: str) -> int:
    """Return how many jobs, as of `side_by_side`, this machine does best at a time: its cores, its GPU's memory."""
    return runs_at_once(len(jobs), cores.available(), *_gpu_memory(jobs, profile))


def _gpu_memory(jobs: list[tuple], profile: str) -> tuple[int | None, int]:
    """Return the free bytes of the GPU (None without one) and those that the largest job takes there."""
    if choose_device("auto") == "cpu":
        return None, 1
    settings = [training_settings(names[0], profile, 7) for function, *names in jobs if function is run]
    settings = settings or [training_settings("hip_many_gc", profile, 7)]  # a U-Net takes no more than a run
    shape = max((SCANNERS[SCANS[profile]].grids[name]["source"].shape for name in ("hip", "head", "abdomen")), key=max)
    return torch.cuda.mem_get_info()[0], max(memory_of_run(s, (max(shape), max(shape))) for s in settings)


def _is_done(function: Callable, *names: str, base: Path, seed: int) -> bool:
    """Return whether the result of a job of `side_by_side` is on the disk."""
    if function is run:
        return (base / f"{names[0]}_seed{seed}" / "translator" / "translator.json").is_file()
    return (_segmenter_folder(names[0], base, seed) / "segmenter.json").is_file()


def _segmenter_folder(name: str, base: Path, seed: int) -> Path:
    if _needs_run(name):
        return base / f"{name}_seed{seed}" / "segmenter"
    return base / f"segmenter_{name.replace(' ', '_')}_seed{seed}"


def _in_own_process(function: Callable, *arguments: Any) -> None:
    """Do a job and return nothing: its result is read from the disk."""
    function(*arguments)
