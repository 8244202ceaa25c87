"""From a cohort to training slices: unit, field of view, plane and window of every scan, and the arrays on disk.

The steps themselves live in `intensity` (bias field, MR without a unit, windows) and `registration` (pairs); their
names can be imported from here too.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from tqdm.auto import tqdm

from mr2ct_lib import cores
from mr2ct_lib.files import InputError, atomic, write_json
from mr2ct_lib.images.folders import read_cohort
from mr2ct_lib.images.intensity import (
    CT_WINDOW,
    MR_WINDOW,
    MR_WINDOWS,
    WHOLE_BODY_WINDOW,
    ZSCORE_WINDOW,
    Window,
    body_mask,
    mr_scale,
    n4,
    normalise_mr,
)
from mr2ct_lib.images.registration import register
from mr2ct_lib.images.volumes import Volume, plane_axes, read_grid, read_volume, reslice, slices_of

__all__ = [
    "CT_WINDOW",
    "MR_WINDOW",
    "WHOLE_BODY_WINDOW",
    "ZSCORE_WINDOW",
    "Window",
    "body_mask",
    "mr_scale",
    "n4",
    "normalise_mr",
    "prepare",
    "register",
]

PROFILES = ("quick", "full", "paper")
_PLANE_OF = {"hip": "coronal", "head": "axial", "abdomen": "axial"}
_ARRAYS = ("source", "target", "labels_source", "labels_target", "valid", "truth_source_to_target", "truth_target_to_source")


@dataclass(frozen=True)
class _Plan:
    """How every scan of a cohort becomes slices: the same in-plane grid, and each domain's window and normalisation."""

    plane: str
    shape: tuple[int, int]  # H, W
    pixel: float  # mm, both ways
    slice_spacing: float  # mm
    slab: int | None  # slices of an unpaired target: as many as the source has; None: all it has
    windows: dict[str, Window]
    normalisation: dict[str, str | None]
    n4: dict[str, bool]
    profile: str


@dataclass(frozen=True)
class _Job:
    """One patient's part: in one domain, or in both when the cohort is paired. Paths by the name of the array that
    they become."""

    id: str
    scans: dict[str, Path]
    labels: dict[str, Path]
    truths: dict[str, Path]
    centre: tuple[float, float, float] | None


def prepare(
    cohort_folder: str | Path,
    out: str | Path,
    plane: str | None = None,
    size: int | tuple[int, int] | None = None,
    profile: str = "quick",
    n4: bool | None = None,
    source_window: Window | None = None,
    target_window: Window | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Turn a cohort, or a user's own folders of scans, into training slices; returns the folder `out`, whole or not
    at all.

    Writes prepared.json and, as .npy, source and target float32 (N, H, W) in [-1, 1], labels_source and
    labels_target when there are labels; for paired cohorts source[i] and target[i] correspond, valid (bool) says
    where the target scan covers the source, and truth_source_to_target / truth_target_to_source follow when the
    cohort holds them.

    Source scans keep their field of view, centre and slices. Target scans are cropped and resliced to the source's
    plane, pixels and field of view around the landmark "centre" (else the middle of the body, and then all their
    slices are kept); in a paired cohort, to the source's own grid.

    - `plane`: by default coronal for hips, axial for heads and abdomens, else across the source's largest voxel side.
    - `size`: pixels (H, W), or of the longer side; the field of view stays. Default: the source's median, up to a
    multiple of 4. - `profile`: how much work N4 does. `n4`: for MR; default on, except for heads.
    - windows: CT [-150, 350] HU for hips and abdomens (air, gas and the table's shell all become black: the soft
    tissue and the
      aneurysm need the grey levels), [-1024, 1500] HU for a user's own scans; MR [0, 100] % of its bright tissue;
      heads [-1, 6] SD.

    Raises InputError for an unknown plane or profile, a size below 16, a window of another unit, a scan that cannot
    be read, a cohort that is blank throughout, and an `out` that holds other things. A patient that is blank in the
    field of view is left out and named.
    """
    if profile not in PROFILES:
        raise InputError(f"profile: {profile!r}; expected one of {', '.join(PROFILES)}. Choose one of them")
    out = Path(out)
    if out.exists() and not (out / "prepared.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds other things; expected a new folder or one of prepared slices. Choose another name")
    cohort = read_cohort(cohort_folder)
    meta = cohort.meta
    domains = {"source": cohort.source, "target": cohort.target}
    plan, recorded = _plan(cohort, domains, plane, size, profile, n4, source_window, target_window)
    paired = bool(meta.get("paired"))
    jobs = _jobs(cohort, domains, paired)
    with atomic(out) as temporary:
        temporary.mkdir()
        parts = temporary / "parts"
        parts.mkdir()
        rows = _run(jobs, plan, parts, workers, progress)
        patients: dict[str, list[dict]] = {"source": [], "target": []}
        left_out = [job.id for job, row in zip(jobs, rows, strict=True) if row is None]
        kept = [(number, job, row) for number, (job, row) in enumerate(zip(jobs, rows, strict=True)) if row is not None]
        if left_out:
            print(f"left out, blank in the field of view: {', '.join(left_out)}")
        for name in _ARRAYS:
            _join([parts / f"{number}_{name}.npy" for number, _, _ in kept], temporary / f"{name}.npy")
        parts.rmdir()
        for domain, list_ in patients.items():
            first = 0
            for _, job, row in kept:
                if domain in row:
                    list_.append({"id": job.id, "first": first, **row[domain]})
                    first += row[domain]["count"]
            if not list_:
                raise InputError(
                    f"{cohort_folder}: every {domain} scan is blank in the field of view; expected at least one. Check the "
                    "landmarks and the scans"
                )
        provenance = {key: meta.get(key) for key in ("profile", "seed", "distort_target", "domains", "versions")}
        content = {
            "format": 1,
            **recorded,
            "patients": patients,
            "left_out": left_out,
            "paired": paired,
            "label_names": meta.get("label_names", {}),
            "cohort": {"folder": Path(cohort_folder).name, **provenance},
        }
        write_json(content, temporary / "prepared.json")
    return out


def _plan(cohort, domains, plane, size, profile, use_n4, source_window, target_window) -> tuple[_Plan, dict]:
    """Decide plane, grid, windows and normalisation of a cohort; also as JSON."""
    meta, anatomy = cohort.meta, cohort.meta.get("anatomy")
    grids = [read_grid(path) for path in domains["source"].values()]
    spacings = [np.linalg.norm(affine[:3, :3], axis=0) for _, affine in grids]
    if plane is None:
        thick = np.median(spacings, axis=0)
        plane = _PLANE_OF.get(anatomy) or ("axial" if thick[2] >= thick.max() * 0.99 else ("sagittal", "coronal")[thick[:2].argmax()])
    number, row, column, _ = plane_axes(plane)
    pixel = float(median(s[axis] for s in spacings for axis in (row, column)))
    view = [float(median(shape[axis] * s[axis] for (shape, _), s in zip(grids, spacings, strict=True))) for axis in (row, column)]
    if isinstance(size, int):
        pixel = max(view) / size
    elif size is not None:
        pixel = max(view[0] / size[0], view[1] / size[1])
    shape = tuple(size) if isinstance(size, tuple | list) else tuple(4 * math.ceil(round(v / pixel, 3) / 4) for v in view)
    if min(shape) < 16:
        raise InputError(f"size: slices of {shape[0]} x {shape[1]} pixels; expected at least 16 x 16. Choose another plane or size")
    windows, normalisation, bias = {}, {}, {}
    for domain, given in (("source", source_window), ("target", target_window)):
        ct = meta["domains"][domain]["modality"] == "CT"
        normalisation[domain] = None if ct else "zscore" if anatomy == "head" else "percentile"
        default = CT_WINDOW if anatomy in _PLANE_OF else WHOLE_BODY_WINDOW
        windows[domain] = given or (default if ct else MR_WINDOWS[normalisation[domain]])
        unit = "HU" if ct else MR_WINDOWS[normalisation[domain]].unit
        if windows[domain].unit != unit:
            raise InputError(f"{domain}_window: is in {windows[domain].unit}; the {domain} scans are in {unit}. Give a window in {unit}")
        bias[domain] = not ct and (anatomy != "head" if use_n4 is None else use_n4)
    slices = float(median(s[number] for s in spacings))
    # a cohort that says where a radiographer centres gets the source's slab; a user's own scans keep all their slices
    slab = int(median(shape_[number] for shape_, _ in grids)) if anatomy in _PLANE_OF else None
    plan = _Plan(plane, shape, pixel, slices, slab, windows, normalisation, bias, profile)
    recorded = {
        "anatomy": anatomy, "plane": plane, "shape": list(shape), "spacing": [pixel, pixel], "slice_spacing": slices,
        "windows": {domain: window.as_dict() for domain, window in windows.items()}, "normalisation": normalisation, "n4": bias,
        "profile": profile,
    }  # fmt: skip
    return plan, recorded


def _jobs(cohort, domains: dict[str, dict[str, Path]], paired: bool) -> list[_Job]:
    def beside(kind: str, id_: str) -> dict[str, Path]:
        path = cohort.folder / kind / f"{id_}.nii.gz"
        return {kind: path} if path.exists() else {}

    jobs, people = [], cohort.meta.get("patients", {})
    for domain in ("source",) if paired else ("source", "target"):
        for id_, path in domains[domain].items():
            centre = people.get(id_, {}).get("landmarks", {}).get("centre")
            scans, labels, truths = {domain: path}, {}, {}
            if id_ in cohort.labels:
                labels[f"labels_{domain}"] = cohort.labels[id_]
            if paired:
                if id_ not in domains["target"]:
                    raise InputError(f"{cohort.folder}: {id_} has no target scan; expected both of each pair. Add or remove it")
                scans["target"] = domains["target"][id_]
                if labels:
                    labels = labels | {"labels_target": cohort.labels[id_]} | beside("labels_target", id_)
                truths = beside("truth_source_to_target", id_) | beside("truth_target_to_source", id_)
            jobs.append(_Job(id_, scans, labels, truths, None if centre is None else tuple(centre)))
    have = [set(job.labels) | set(job.truths) for job in jobs if set(job.scans) == set(jobs[-1].scans)]
    if any(names != have[0] for names in have):  # some patients have labels, some not: the arrays would not correspond
        common = set.intersection(*have)
        print("some patients have no labels or truth; prepared without them")
        for job in jobs:
            for name in [name for name in job.labels if name not in common]:
                del job.labels[name]
            for name in [name for name in job.truths if name not in common]:
                del job.truths[name]
    return jobs


def _run(jobs: list[_Job], plan: _Plan, parts: Path, workers: int | None, progress: bool) -> list[dict | None]:
    """Prepare all patients, in processes where that pays; their order is that of the jobs."""
    workers = min(workers or cores.available(), len(jobs) // 8)  # a process takes a second to start
    # disable=None: tqdm shows nothing where nobody looks
    show = {"total": len(jobs), "desc": "prepare", "unit": "patient", "disable": None if progress else True}
    arguments = (range(len(jobs)), jobs, [plan] * len(jobs), [parts] * len(jobs))
    if workers < 2:
        return list(tqdm(map(_prepare_patient, *arguments), **show))
    with cores.pool(workers) as pool:
        return list(tqdm(pool.map(_prepare_patient, *arguments, chunksize=2), **show))


def _prepare_patient(number: int, job: _Job, plan: _Plan, parts: Path) -> dict[str, dict] | None:
    """Write one patient's arrays as parts/<number>_<name>.npy; return what prepared.json says of it, None when it is blank."""
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, dict] = {}
    grid = None
    for domain, path in job.scans.items():
        scan, scale = _unit_scan(path, domain, plan)
        if grid is None:
            grid = _grid(scan, domain, job.centre, plan)
        arrays[domain] = _slices(scan, scale, grid, plan.windows[domain], plan.plane)
        if np.ptp(arrays[domain]) == 0:
            return None
        rows[domain] = {
            "count": len(arrays[domain]),
            "shape": list(grid[0]),
            "affine": grid[1].tolist(),
            "offset": scale[0],
            "scale": scale[1],
        }
        if len(job.scans) == 2:
            inside = Volume(np.ones(scan.array.shape, np.uint8), scan.affine, "label")
            covered = slices_of(reslice(inside, *grid), plan.plane).astype(bool)
            arrays["valid"] = arrays.get("valid", True) & covered
    for name, path in job.truths.items():
        domain = "target" if name.endswith("target") else "source"
        arrays[name] = _slices(*_unit_scan(path, domain, plan), grid, plan.windows[domain], plan.plane)
    for name, path in job.labels.items():
        labels = slices_of(reslice(read_volume(path, "label"), *grid), plan.plane)
        arrays[name] = labels.astype(np.uint8 if labels.max() < 256 else np.int16)
    for name, array in arrays.items():
        np.save(parts / f"{number}_{name}.npy", array)
    return rows


def _unit_scan(path: Path, domain: str, plan: _Plan) -> tuple[Volume, tuple[float, float]]:
    """Read a scan, take its bias field away, and find the (offset, scale) that give it its unit."""
    method = plan.normalisation[domain]
    if method is None:
        return read_volume(path, "HU"), (0.0, 1.0)
    scan = read_volume(path, "a.u.")
    if plan.n4[domain]:
        scan = n4(scan, profile=plan.profile)
    return scan, mr_scale(scan, method)


def _grid(scan: Volume, domain: str, centre: tuple[float, float, float] | None, plan: _Plan) -> tuple[tuple[int, ...], np.ndarray]:
    """Return (shape, affine) of a scan's slices: along its own axes, the plan's pixels, around its middle.

    Where old and new voxels have the same size, whole voxels are cut off or added and nothing is interpolated.
    """
    number, row, column, _ = plane_axes(plan.plane)
    old, spacing = np.array(scan.array.shape), scan.spacing
    middle = (old - 1) / 2
    new_spacing = spacing.copy()
    new_spacing[[row, column]] = plan.pixel
    count = int(old[number])
    if domain == "target":
        new_spacing[number] = plan.slice_spacing
        count = max(1, round(old[number] * spacing[number] / plan.slice_spacing))
        if centre is not None:
            middle = (np.linalg.inv(scan.affine) @ [*centre, 1.0])[:3]
            count = plan.slab or count
        else:
            body = body_mask(scan)
            if body.any():
                found = [float(np.mean(places)) for places in np.nonzero(body)]
                middle[[row, column]] = np.array(found)[[row, column]]
    shape = np.empty(3, int)
    shape[[number, row, column]] = count, *plan.shape
    step = new_spacing / spacing
    same = np.abs(step - 1) < 1e-3
    step[same] = 1.0
    start = middle - (shape - 1) / 2 * step
    start[same] = np.floor(start[same] + 0.5)
    move = np.diag([*step, 1.0])
    move[:3, 3] = start
    return tuple(int(n) for n in shape), scan.affine @ move


def _slices(scan: Volume, scale: tuple[float, float], grid: tuple, window: Window, plane: str) -> np.ndarray:
    values = (reslice(scan, *grid).array - scale[0]) / scale[1]
    return np.ascontiguousarray(slices_of(window.to_network(values), plane), dtype=np.float32)


def _join(parts: list[Path], path: Path) -> None:
    """Write the arrays of `parts` one after another to `path`, holding one at a time in memory, and delete them."""
    parts = [part for part in parts if part.exists()]
    if not parts:
        return
    heads = [np.load(part, mmap_mode="r") for part in parts]
    dtype = max((head.dtype for head in heads), key=lambda d: d.itemsize)
    shape = (sum(len(head) for head in heads), *heads[0].shape[1:])
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.load(part).astype(dtype, copy=False).tobytes())
            part.unlink()
