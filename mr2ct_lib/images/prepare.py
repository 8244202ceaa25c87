"""From a cohort to prepared slices on disk: one `Preparation` for all scans, then each patient's arrays."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mr2ct_lib import cores
from mr2ct_lib.files import InputError, atomic, counted, write_json
from mr2ct_lib.images.folders import Cohort, read_cohort, scans_in
from mr2ct_lib.images.intensity import (
    ABDOMEN_CT_WINDOW,
    CT_WINDOW,
    HEAD_WINDOWS,
    MR_WINDOW,
    N4_PROFILES,
    WHOLE_BODY_WINDOW,
    Window,
)
from mr2ct_lib.images.preparation import LARGEST, Preparation, check_window
from mr2ct_lib.images.prepare_patient import FORMAT, Job, finished, prepare_patient, version_of
from mr2ct_lib.images.volumes import plane_axes, read_grid

ARRAYS = (
    *("source", "target", "labels_source", "labels_target"),
    *("valid", "truth_source_to_target", "truth_target_to_source"),
)
_PLANE_OF = {"hip": "coronal", "head": "axial", "head_t1": "axial", "abdomen": "axial"}
_HEADS = ("head", "head_t1")  # of the second paper: z-scored, no N4
_CT_WINDOW_OF = {"hip": CT_WINDOW, "abdomen": ABDOMEN_CT_WINDOW}


def prepare(
    cohort_folder: str | Path,
    out: str | Path,
    plane: str | None = None,
    size: int | tuple[int, int] | None = None,
    profile: str = "full",
    n4: bool | None = None,
    source_window: Window | None = None,
    target_window: Window | None = None,
    source_modality: str | None = None,
    target_modality: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
    scheduler: str | None = None,
) -> Path:
    """Turn a cohort, or a user's own folders of scans, into training slices; return `out`, whole or not at all.

    Writes prepared.json and, as .npy, source and target float32 (N, H, W) in [-1, 1], labels_source and labels_target
    where there are labels. For paired cohorts source[i] and target[i] correspond, valid (bool) says where the target
    scan covers the source, and truth_source_to_target and truth_target_to_source follow where the cohort holds them.

    Every scan goes through `Preparation.to_slices`, as it does in `synthesize`. The target of a pair is resliced to the
    grid of its source. Slices that show nothing are dropped.

    Args:
        cohort_folder: as `read_cohort` takes it.
        out: a new folder, or one of prepared slices, which is replaced.
        plane: default: coronal for hips, axial for heads and abdomens, else across the largest voxel side.
        size: pixels (H, W), or of the longer side, rounded up to a multiple of 4; the field of view stays. Default: the
            median of the source, rounded in the same way.
        profile: how thorough N4 is: "coarse", "full" or "paper".
        n4: whether the bias field of MR is removed. Default: yes, except for heads.
        source_window, target_window: what the networks see. Default: CT [-150, 350] HU for hips, [-800, 350] HU for
            abdomens, [-1024, 1500] HU for a user's own scans; MR [0, 100] % of its bright tissue, of heads
            [-0.6, 3.6] SD in the source domain (PD, T1) and [-1, 6] SD in the target domain (T2).
        source_modality, target_modality: "CT" or "MR" of a user's scans; default: what they look like.
        workers: processes; default: one per core.
        progress: a bar, shown at a terminal only.
        say: takes sentences about what was found in the scans, cut, dropped or left out.
        scheduler: address of a Dask scheduler whose workers prepare the patients (see `cores.run_jobs`). Finished
            patients are then kept in the folder `<out>.unfinished` until all are done, and not prepared again.

    Raises InputError for an unknown plane or profile, a size below 16 or above 16384, a window of another unit, a scan
    that cannot be read, a domain that is blank throughout, and an `out` that holds other things. A patient without a
    slice that shows anything is left out and named.
    """
    if profile not in N4_PROFILES:
        raise InputError(f"profile: {profile!r}; expected one of {', '.join(N4_PROFILES)}. Choose one of them")
    out = Path(out)
    if out.exists() and not (out / "prepared.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds other things; expected a new folder or prepared slices. Choose another name")
    if scheduler is not None:  # the workers have working folders of their own
        cohort_folder, out = Path(cohort_folder).absolute(), out.absolute()
    cohort = read_cohort(cohort_folder, source_modality, target_modality)
    said = [
        f"{domain}: {entry['modality']}, {entry.get('why', 'as cohort.json says')}"
        for domain, entry in cohort.meta["domains"].items()
    ]
    own = "settings" not in cohort.meta
    if own and not target_modality and {entry["modality"] for entry in cohort.meta["domains"].values()} == {"MR"}:
        said.append("both domains are taken as MR; a CT must be in HU, with air near -1000, to be taken as CT")
    preparation = _plan(cohort, plane, size, profile, n4, {"source": source_window, "target": target_window})
    jobs = _jobs(cohort, {"source": source_modality, "target": target_modality}, said)
    with atomic(out) as temporary:
        temporary.mkdir()
        parts = temporary / "parts" if scheduler is None else out.with_name(f"{out.name}.unfinished")
        rows = _run(jobs, preparation, parts, workers, progress, scheduler)
        _report(rows, preparation, said)
        _collect(temporary, parts, cohort, preparation, jobs, rows, said)
        shutil.rmtree(parts)
    for sentence in said:
        say(sentence)
    return out


def _collect(
    folder: Path,
    parts: Path,
    cohort: Cohort,
    preparation: Preparation,
    jobs: list[Job],
    rows: list[dict[str, dict]],
    said: list[str],
) -> None:
    """Join the patients' arrays in `parts` and write prepared.json."""
    kept = [number for number, row in enumerate(rows) if all(part["count"] for part in row.values())]
    for name in ARRAYS:
        _join([parts / f"{number}_{name}.npy" for number in kept], folder / f"{name}.npy")
    left_out = [job.id for number, job in enumerate(jobs) if number not in kept]
    if left_out:
        said.append(f"left out, blank in the field of view: {', '.join(left_out)}")
    provenance = {key: cohort.meta.get(key) for key in ("profile", "seed", "distort_target", "domains", "versions")}
    write_record(
        folder,
        preparation,
        _patients(cohort, [(jobs[number].id, rows[number]) for number in kept]),
        anatomy=cohort.meta.get("anatomy"),
        left_out=left_out,
        paired=cohort.paired,
        label_names=cohort.meta.get("label_names", {}),
        cohort={"folder": cohort.folder.name, **provenance},
    )


def write_record(folder: Path, preparation: Preparation, patients: dict[str, list[dict]], **more: Any) -> None:
    """Write prepared.json. patients: by domain, rows with "id", "first" (number of the first slice) and "count"."""
    content = {"format": FORMAT, "preparation": preparation.as_dict(), "patients": patients}
    write_json(content | more, folder / "prepared.json")


def _plan(
    cohort: Cohort,
    plane: str | None,
    size: int | tuple[int, int] | None,
    profile: str,
    n4: bool | None,
    windows: dict[str, Window | None],
) -> Preparation:
    """Decide how the scans of a cohort become slices, by the grids of its source scans and its anatomy."""
    anatomy = cohort.meta.get("anatomy")
    grids = [read_grid(path) for path in cohort.source.values()]
    shapes = np.array([shape for shape, _ in grids])
    spacings = np.array([np.linalg.norm(affine[:3, :3], axis=0) for _, affine in grids])
    if plane is None:
        thick = np.median(spacings, axis=0)
        across = "axial" if thick[2] >= thick.max() * 0.99 else ("sagittal", "coronal")[thick[:2].argmax()]
        plane = _PLANE_OF.get(anatomy, across)
    number, *in_plane, _ = plane_axes(plane)
    view = [float(median((shapes * spacings)[:, axis])) for axis in in_plane]  # mm of rows and columns
    pixel = float(median(spacings[:, in_plane].ravel()))
    asked = () if size is None else (size,) if isinstance(size, int) else tuple(size)
    if any(not 16 <= pixels <= LARGEST for pixels in asked):
        raise InputError(f"size: {size}; expected 16 to {LARGEST} pixels. Choose another one")
    if len(asked) == 1:
        pixel = max(view) / (4 * math.ceil(asked[0] / 4))
    elif asked:
        pixel = max(mm / pixels for mm, pixels in zip(view, asked, strict=True))
    shape = asked if len(asked) == 2 else tuple(4 * math.ceil(round(mm / pixel, 3) / 4) for mm in view)
    if min(shape) < 16:
        raise InputError(
            f"size: slices of {shape[0]} x {shape[1]} pixels; expected at least 16 x 16. Choose a larger one"
        )
    entries = cohort.meta["domains"]
    modality = {domain: entries[domain]["modality"] for domain in windows}
    reason = {domain: entries[domain].get("why", "as cohort.json says") for domain in windows}
    return Preparation(
        plane=plane,
        pixel=pixel,
        shape=shape,
        slice_spacing=float(median(spacings[:, number])),
        windows={
            domain: _window(given, modality[domain], reason[domain], anatomy, domain)
            for domain, given in windows.items()
        },
        n4={
            domain: kind == "MR" and (anatomy not in _HEADS if n4 is None else n4) for domain, kind in modality.items()
        },
        n4_profile=profile,
        slab=int(median(shapes[:, number])) if anatomy in _PLANE_OF else None,  # own scans keep all their slices
    )


def _window(given: Window | None, modality: str, why: str, anatomy: str | None, domain: str) -> Window:
    """The window of a domain: the given one, or the default of its modality, taken for a reason, and of its anatomy."""
    if modality == "CT":
        default = _CT_WINDOW_OF.get(anatomy, WHOLE_BODY_WINDOW)
    else:
        default = HEAD_WINDOWS[domain] if anatomy in _HEADS else MR_WINDOW
    if given and given.unit != default.unit:
        raise InputError(
            f"{domain}_window: is in {given.unit}, but the {domain} scans are taken as {modality} ({why}); expected a "
            f"window in {default.unit}. Leave it out, or bring the scans to {given.unit} if they are no {modality}"
        )
    return given or default


def _report(rows: list[dict[str, dict]], preparation: Preparation, said: list[str]) -> None:
    """Say what the windows cut and what was dropped or shifted. Raises InputError when a window cuts nearly all."""
    for domain, window in preparation.windows.items():
        found = [row[domain] for row in rows if domain in row]
        cut = float(np.mean([row["cut"] for row in found]))
        said.append(f"{domain}: {cut:.1%} of the body lies beyond the window of {window}")
        check_window(cut, window, f"{domain}_window")
        dropped, shifted = sum(row["dropped"] for row in found), sum(row["shifted"] for row in found)
        if dropped:
            said.append(f"{domain}: {counted(dropped, 'slice')} dropped: nothing shows there")
        if shifted:
            said.append(
                f"{domain}: values of {counted(shifted, 'scan')} reach below zero; they are shifted so that air is 0"
            )


def _jobs(cohort: Cohort, believed: dict[str, str | None], said: list[str]) -> list[Job]:
    """One job for each patient of a paired cohort, and for each scan of an unpaired one."""
    ours = "settings" in cohort.meta  # virtual scans are what their cohort.json says, whatever they look like
    # an MR that was given as such may look like anything; a CT must be in HU all the same
    modality = {d: how["modality"] for d, how in cohort.meta["domains"].items() if believed[d] != "MR" and not ours}
    scans = {"source": cohort.source, "target": cohort.target}
    used = {path for id_, path in cohort.labels.items() if id_ in cohort.source or id_ in cohort.target}
    spare = [] if ours else sorted(path.name for path in {*(cohort.folder / "labels").glob("[!.]*")} - used)
    if spare:
        said.append(f"labels/: no scan is called like {', '.join(spare[:3])}; expected the scan's own name. Left out")
    if cohort.paired:
        groups = [[_pair(cohort, id_, modality) for id_ in cohort.source]]
    else:
        groups = [
            [
                Job(
                    id_,
                    {domain: path},
                    modality,
                    {f"labels_{domain}": cohort.labels[id_]} if id_ in cohort.labels else {},
                )
                for id_, path in paths.items()
            ]
            for domain, paths in scans.items()
        ]
    for jobs in groups:  # arrays of which some patients have no part would not correspond to the slices
        named = [set(job.labels) | set(job.truths) for job in jobs]
        common = set.intersection(*named)
        if any(names != common for names in named):
            said.append("some patients have no labels or truth; prepared without them")
        for job, names in zip(jobs, named, strict=True):
            for name in names - common:
                job.labels.pop(name, None)
                job.truths.pop(name, None)
    names = () if ours else cohort.meta.get("label_names", ())
    named = tuple(sorted(int(value) for value in names if str(value).isdecimal()))
    return [replace(job, named=named) for job in sum(groups, [])]


def _pair(cohort: Cohort, id_: str, modality: dict[str, str]) -> Job:
    """The job of a patient of a paired cohort: both scans, and the labels and truths that there are."""

    def beside(kind: str) -> dict[str, Path]:
        path = scans_in(cohort.folder / kind).get(id_)
        return {kind: path} if path else {}

    labels = dict.fromkeys(("labels_source", "labels_target"), cohort.labels[id_]) if id_ in cohort.labels else {}
    labels |= beside("labels_target") if labels else {}
    truths = beside("truth_source_to_target") | beside("truth_target_to_source")
    return Job(id_, {"source": cohort.source[id_], "target": cohort.target[id_]}, modality, labels, truths)


def _run(
    jobs: list[Job],
    preparation: Preparation,
    parts: Path,
    workers: int | None,
    progress: bool,
    scheduler: str | None,
) -> list[dict[str, dict]]:
    """Prepare the patients that `parts` does not hold yet, in processes where that pays; rows in the order of jobs.

    In this machine's processes the first error ends the work. On a cluster the others go on, and all errors are listed.
    """
    versions = [version_of(job, preparation) for job in jobs]
    rows = {number: row for number, version in enumerate(versions) if (row := finished(parts, number, version))}
    todo = [(number, job, versions[number]) for number, job in enumerate(jobs) if number not in rows]
    workers = max(1, min(workers or cores.available(), len(todo) // 8))  # a process takes a second to start
    # disable=None: shown at a terminal only
    bar = {"total": len(todo), "desc": "prepare", "unit": "patient", "disable": None if progress else True}
    failures = {}
    for outcome in tqdm(cores.run_jobs(prepare_patient, todo, workers, scheduler, (preparation, parts)), **bar):
        number, job, _ = todo[outcome.number]
        if outcome.error is None:
            rows[number] = outcome.value
        elif scheduler is None:
            raise outcome.error
        else:
            failures[" and ".join(str(path) for path in job.scans.values())] = outcome.error
    cores.raise_failures(failures, len(todo))
    return [rows[number] for number in range(len(jobs))]


def _patients(cohort: Cohort, rows: list[tuple[str, dict[str, dict]]]) -> dict[str, list[dict]]:
    """By domain, the patients' rows of prepared.json with the number of their first slice."""
    patients: dict[str, list[dict]] = {"source": [], "target": []}
    for domain, listed in patients.items():
        first = 0
        for id_, row in rows:
            if domain in row:
                listed.append({"id": id_, "first": first, **row[domain]})
                first += row[domain]["count"]
        if not listed:
            raise InputError(
                f"{cohort.folder}: every {domain} scan is blank in the field of view; expected at least one that is "
                "not. Check the scans"
            )
    return patients


def _join(parts: list[Path], path: Path) -> None:
    """Write the arrays of `parts` one after another to `path`, holding one at a time in memory, and delete them."""
    parts = [part for part in parts if part.exists()]
    if not parts:
        return
    heads = [np.load(part, mmap_mode="r") for part in parts]
    dtype = max((head.dtype for head in heads), key=lambda d: d.itemsize)
    shape = (sum(len(head) for head in heads), *heads[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.load(part).astype(dtype, copy=False).tobytes())
            part.unlink()
