"""One patient's arrays of prepared slices: what one worker of `prepare` writes, and how a next run knows it again."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mr2ct_lib.files import InputError, counted, read_json, write_json
from mr2ct_lib.images.folders import modality_and_reason
from mr2ct_lib.images.preparation import Preparation, blank
from mr2ct_lib.images.same_grid import check_same_grid
from mr2ct_lib.images.volumes import Volume, plane_axes, read_volume, reslice, slices_of

FORMAT = 2  # of prepared.json


@dataclass(frozen=True)
class Job:
    """One patient: the scans of one domain, or of both where the cohort is paired. Paths by the name of their array."""

    id: str
    scans: dict[str, Path] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)  # by domain, what scans must look like, unless MR was given
    labels: dict[str, Path] = field(default_factory=dict)
    truths: dict[str, Path] = field(default_factory=dict)
    named: tuple[int, ...] = ()  # the label values that names.json names; empty: any may occur


def version_of(job: Job, preparation: Preparation) -> str:
    """A fingerprint of what decides a patient's arrays: the files, when they were changed, and the preparation."""
    files = [*job.scans.values(), *job.labels.values(), *job.truths.values()]
    inside = [file for path in files for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    changed = [(str(file), file.stat().st_mtime_ns) for file in inside if file.is_file()]  # no link to nowhere
    return hashlib.sha256(repr((FORMAT, job, preparation, changed)).encode("utf-8", "replace")).hexdigest()


def finished(parts: Path, number: int, version: str) -> dict[str, dict] | None:
    """The rows of a patient whose arrays lie in `parts`; None, and nothing left there, unless they are this version's.
    """
    record = parts / f"{number}.json"
    if record.exists():
        content = read_json(record)
        if content["version"] == version and all((parts / name).exists() for name in content["arrays"]):
            return content["rows"]
    for left in parts.glob(f"{number}[._]*"):
        left.unlink()
    return None


def prepare_patient(
    preparation: Preparation, parts: Path, number: int, job: Job, version: str
) -> dict[str, dict]:
    """Write one patient's arrays as parts/<number>_<name>.npy; return the rows of prepared.json by domain.

    parts/<number>.json is written last: the patient is finished.
    """
    parts.mkdir(parents=True, exist_ok=True)
    scans = {domain: _read(path, domain, preparation, job.modality) for domain, path in job.scans.items()}
    first, *others = scans
    slices, place = preparation.to_slices(scans[first], first)
    arrays, places, grid, numbers = {first: slices[place.training]}, {first: place}, place.field, place.numbers
    for domain in others:
        stack, places[domain] = preparation.on_grid(scans[domain], domain, grid)
        arrays[domain] = stack[numbers]
        everywhere = Volume(np.ones(scans[domain].array.shape, np.uint8), scans[domain].affine, "label")
        arrays["valid"] = slices_of(reslice(everywhere, *grid), preparation.plane)[numbers].astype(bool)
    shown = np.logical_and.reduce([~blank(arrays[domain]) for domain in scans])
    for name, path in job.truths.items():
        domain = name.split("_")[-1]
        arrays[name] = preparation.on_grid(_read(path, domain, preparation, job.modality), domain, grid)[0][numbers]
    for name, path in job.labels.items():
        labels = _labels(path, name, scans, job.named)
        stack = slices_of(reslice(labels, *grid), preparation.plane)[numbers]
        arrays[name] = stack.astype(np.uint8 if labels.array.max() < 256 else np.int16)
    written = {f"{number}_{name}.npy": array[shown] for name, array in arrays.items()} if shown.any() else {}
    for name, array in written.items():
        np.save(parts / name, array)
    count = int(shown.sum())
    where = {"slices": numbers[shown].tolist(), "shape": list(grid[0]), "affine": grid[1].tolist()}
    how = {"count": count, "dropped": grid[0][plane_axes(preparation.plane)[0]] - count, **where}
    rows = {domain: how | {"cut": one.cut, "shifted": one.shifted} for domain, one in places.items()}
    write_json({"version": version, "arrays": list(written), "rows": rows}, parts / f"{number}.json")
    return rows


def _labels(path: Path, name: str, scans: dict[str, Volume], named: tuple[int, ...]) -> Volume:
    """The label map at `path`.

    Raises InputError unless it lies on the grid of its scan, or of the source of a pair, and has only named values.
    """
    labels, domain = read_volume(path, "label"), name.removeprefix("labels_")
    own_file = path.parent.name == "labels_target" or len(scans) == 1
    scan = domain if own_file else "source"
    check_same_grid(labels, path, scans[scan], f"its {scan} scan")
    if named and (nameless := sorted(set(np.unique(labels.array).tolist()) - {0, *named})):
        raise InputError(
            f"{path}: holds {counted(len(nameless), 'value')} without a name ({', '.join(map(str, nameless[:9]))}); "
            "expected those of names.json. Name them there, or give their voxels another value"
        )
    return labels


def _read(path: Path, domain: str, preparation: Preparation, modality: dict[str, str]) -> Volume:
    """A scan in the unit of its domain. Raises InputError when it does not look like the domain's modality."""
    volume = read_volume(path)
    if domain in modality:
        try:
            kind, why = modality_and_reason(volume)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if kind != modality[domain]:
            raise InputError(
                f"{path}: looks like {kind} ({why}); expected {modality[domain]} as {domain}. "
                + ("Bring it to HU" if kind == "MR" else "Name the modality") + ", or remove it"
            )
    return volume.replace(unit="HU" if preparation.windows[domain].unit == "HU" else "a.u.")
