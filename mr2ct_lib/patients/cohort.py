"""Many seeded virtual patients, scanned and written to disk as a cohort.

On disk: source/<id>.nii.gz, target/<id>.nii.gz, labels/<id>.nii.gz, patients/<id>.json (written last: the patient is
finished) and cohort.json. The scans depend on the seed and the patient's number alone, never on how many processes or
machines make them.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tqdm.auto import tqdm

from mr2ct_lib import __version__, cores
from mr2ct_lib.files import InputError, counted, read_json, write_json
from mr2ct_lib.images.folders import FORMAT, Cohort, read_cohort, read_index
from mr2ct_lib.images.volumes import Volume, write_volume
from mr2ct_lib.patients.acquisition import Patient
from mr2ct_lib.patients.atlas import read_atlas
from mr2ct_lib.patients.label_map import LabelMapPatient
from mr2ct_lib.patients.physics import SEQUENCES
from mr2ct_lib.patients.scanner import ANATOMIES, PROFILES, Anatomy, Grid, Scanner, scan

Files = str | Path | Sequence[str | Path] | None
Atlas = Sequence[LabelMapPatient]  # the people of an atlas cohort, completed and undeformed; each becomes many patients
DOMAINS_OF_ROLE = {"s": ("source",), "t": ("target",), "p": ("source", "target")}  # first letter of a patient's id


@dataclass(frozen=True)
class CohortSettings:
    """Everything that decides what the scans of a cohort look like; the arguments are those of `make_cohort`.

    sha256: checksums of the label maps, names and masks.

    Raises InputError for an unknown anatomy or profile, a seed that is no whole number, and files that are missing or
    do not go together.
    """

    anatomy: str
    seed: int
    paired: bool = False
    profile: str = "full"
    labels: tuple[Path, ...] = ()
    names: tuple[Path, ...] = ()
    body: tuple[Path, ...] = ()
    distort_target: bool | int = False
    whole_ct: bool = False
    sha256: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        if self.anatomy not in ANATOMIES:
            raise InputError(f"anatomy: {self.anatomy!r}; expected one of {', '.join(ANATOMIES)}. Choose one")
        if self.profile not in PROFILES:
            raise InputError(f"profile: {self.profile!r}; expected one of {', '.join(PROFILES)}. Choose one")
        bent = self.distort_target
        if not isinstance(bent, bool) and (not isinstance(bent, int) or bent < 2):  # 0 and 1 equal False and True
            raise InputError(f"distort_target: {bent!r}; expected True, False or a seed of 2 or more. Choose one")
        if bent and not self.anatomy.startswith("head"):
            raise InputError(f"distort_target: {self.anatomy}; expected head, which has this distortion. Leave it out")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed: {self.seed!r}; expected a whole number >= 0. Choose one")
        if bool(self.labels) != bool(self.names) or (self.body and not self.labels):
            raise InputError(
                "labels, names, body: not all are given; expected labels and names together (body is optional)"
            )
        if self.body and len(self.body) != len(self.labels):
            raise InputError(
                f"body: {len(self.body)} masks for {len(self.labels)} label maps; expected one for each map, or none"
            )
        files = {"labels": self.labels, "names": self.names, "body": self.body}
        for argument, paths in files.items():
            for path in paths:
                if not path.is_file():
                    raise InputError(f"{path}: does not exist; expected the file of {argument}. Check the path")
        checksums = {
            argument: [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
            for argument, paths in files.items()
            if paths
        }
        object.__setattr__(self, "sha256", checksums)

    @property
    def postures_differ(self) -> bool:
        """Whether the two scanners' tables press the patients into different shapes; a label map lies as it is."""
        return ANATOMIES[self.anatomy].postures_differ and not self.labels

    @property
    def shapes_differ(self) -> bool:
        """Whether a paired patient has another shape in each scan, so that the truth is a scan of its own."""
        return bool(self.distort_target) or self.postures_differ

    @property
    def scanners(self) -> dict[str, Scanner]:
        """The scanner of each domain, with the noise of the profile."""
        share, anatomy = PROFILES[self.profile].noise_share, ANATOMIES[self.anatomy]
        scanners = {domain: replace(one, noise=one.noise * share) for domain, one in anatomy.scanners.items()}
        if self.labels and scanners["target"].modality == "CT":  # the virtual abdomen's own table is not in a label map
            scanners["target"] = replace(scanners["target"], table="curved")
        return scanners

    @property
    def grids(self) -> dict[str, Grid]:
        """The voxels of each domain."""
        return PROFILES[self.profile].grids[self.anatomy]

    def as_dict(self) -> dict[str, Any]:
        """Return what cohort.json says of the settings, in types of JSON."""
        sequences = [one.sequence for one in self.scanners.values() if one.sequence]
        return json.loads(json.dumps({
            "anatomy": self.anatomy, "profile": self.profile, "seed": self.seed, "paired": self.paired,
            "distort_target": self.distort_target, "whole_ct": self.whole_ct, "posture": self.postures_differ,
            "labels": [str(path.resolve()) for path in self.labels],
            "names": [str(path.resolve()) for path in self.names],
            "body": [str(path.resolve()) for path in self.body],
            "sha256": self.sha256,
            "domains": {domain: one.as_dict() for domain, one in self.scanners.items()},
            "positioning_sd": ANATOMIES[self.anatomy].positioning_sd,
            "grids": {domain: asdict(grid) for domain, grid in self.grids.items()},
            "sequences": {name: asdict(SEQUENCES[name]) for name in sequences},
        }))  # fmt: skip


def patient_seed(seed: int, role: str, number: int) -> int:
    """Return the seed of a cohort's patient: role "s" (source), "t" (target) or "p" (paired), number from 1."""
    return int(np.random.SeedSequence([seed, ord(role), number]).generate_state(1)[0])


def build_patient(
    anatomy: Anatomy, seed: int, domain: str, posture: str, template: LabelMapPatient | None = None, as_is: bool = False
) -> Patient:
    """Return the virtual patient of `seed` in the scanner of `domain`, the back pressed by the table of `posture`.

    template: a person of a label map, whose deformation by `seed` takes the anatomy's place (as_is: undeformed).
    """
    if template is not None:
        return template.with_seed(seed, deform=not as_is)
    return anatomy.patient(seed, domain, posture)


def make_patient(settings: CohortSettings, folder: Path, atlas: Atlas, id_: str) -> None:
    """Scan one patient and write the scans, the labels and, last, patients/<id>.json to `folder`.

    id_: role and number, such as "s0001". The people of `atlas` take turns; each is scanned as they are once, and is
    then deformed.
    """
    role, number = id_[0], int(id_[1:])
    seed, domains = patient_seed(settings.seed, role, number), DOMAINS_OF_ROLE[role]
    anatomy = ANATOMIES[settings.anatomy]
    template = atlas[(number - 1) % len(atlas)] if atlas else None
    as_is = number <= max(1, len(atlas)) and role in "sp"
    moved = np.zeros(3) if as_is else np.random.default_rng([seed, 16]).normal(0, anatomy.positioning_sd)
    people = {domain: build_patient(anatomy, seed, domain, domain, template, as_is) for domain in domains}
    centres = {domain: tuple(np.asarray(person.landmarks["centre"]) + moved) for domain, person in people.items()}

    def scan_in(domain: str, person: Patient, centre: tuple, distort: bool | int) -> tuple[Volume, Volume]:
        around = None if settings.whole_ct else settings.grids["source"]
        return scan(person, settings.scanners[domain], settings.grids[domain], seed, centre, distort, around)

    entry: dict[str, Any] = {"seed": seed, "domains": list(domains)}
    for domain, person in people.items():
        image, labels = scan_in(domain, person, centres[domain], domain == "target" and settings.distort_target)
        write_volume(image, folder / domain / f"{id_}.nii.gz")
        first = domain == domains[0]
        if first or settings.shapes_differ:
            write_volume(labels, folder / ("labels" if first else "labels_target") / f"{id_}.nii.gz")
        places = person.landmarks | {"centre": centres[domain]}  # where this scan was centred
        entry["landmarks" if first else "landmarks_target"] = {
            name: [float(v) for v in place] for name, place in places.items()
        }
    if role == "p" and settings.shapes_differ:
        # a synthetic scan keeps its input's shape: the truth is the other scanner's view of that very shape
        for shape, domain, distort in (("source", "target", False), ("target", "source", settings.distort_target)):
            person = build_patient(anatomy, seed, domain, shape, template, as_is)
            truth, _ = scan_in(domain, person, centres[shape], distort)
            write_volume(truth, folder / f"truth_{shape}_to_{domain}" / f"{id_}.nii.gz")
    entry["label_names"] = {str(value): name for value, name in people[domains[0]].names.items()}
    write_json(entry, folder / "patients" / f"{id_}.json")


def _files_of(settings: CohortSettings, folder: Path, id_: str) -> list[Path]:
    """Return the files that a finished patient has."""
    kinds = [*DOMAINS_OF_ROLE[id_[0]], "labels"]
    if id_[0] == "p" and settings.shapes_differ:
        kinds += ["labels_target", "truth_source_to_target", "truth_target_to_source"]
    return [folder / kind / f"{id_}.nii.gz" for kind in kinds] + [folder / "patients" / f"{id_}.json"]


def _ids(patients: int | tuple[int, int], paired: bool) -> list[str]:
    roles = "p" if paired else "st"
    counts = patients if isinstance(patients, tuple) else (patients,) * len(roles)
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts)
    if len(counts) != len(roles) or not whole:
        raise InputError(f"patients: {patients!r}; expected a whole number of at least 1. Choose how many")
    return [
        f"{role}{number:04d}"
        for role, count in zip(roles, counts, strict=True)
        for number in range(1, count + 1)
    ]


def _paths(given: Files) -> tuple[Path, ...]:
    if given is None:
        return ()
    return (Path(given),) if isinstance(given, str | Path) else tuple(Path(path) for path in given)


def _check_folder(folder: Path, settings: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Return its cohort.json, {} for a new folder.

    Raises InputError unless the folder holds nothing, or a cohort of these settings that is unfinished or whose
    patients are all among `ids`.
    """
    index = folder / "cohort.json"
    if not index.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder}: holds other files and no cohort.json; expected a new or empty folder. Choose another folder"
            )
        return {}
    held = read_index(folder)
    before = held.get("settings", {})
    paths = ("labels", "names", "body")  # a label map may have been moved; its checksum tells whether it was changed
    changed = sorted(key for key, value in settings.items() if key not in paths and before.get(key) != value)
    if changed:
        raise InputError(
            f"{folder}: holds a cohort with another {', '.join(changed)}; "
            "expected the same settings to continue it. Choose another folder"
        )
    more = [id_ for id_ in held.get("patients", {}) if id_ not in ids]
    if more:
        raise InputError(
            f"{folder}: holds {counted(len(more), 'patient')} more than the {len(ids)} asked for, such as {more[0]}; "
            "expected none, as a cohort only grows. Ask for these as well, or choose another folder"
        )
    return held


def make_cohort(
    anatomy: str,
    out: str | Path,
    patients: int | tuple[int, int],
    seed: int,
    paired: bool = False,
    profile: str = "full",
    labels: Files = None,
    names: str | Path | None = None,
    body: Files = None,
    distort_target: bool | int = False,
    whole_ct: bool = False,
    workers: int | None = None,
    progress: bool = True,
    scheduler: str | None = None,
) -> Cohort:
    """Scan virtual patients and write them to the folder `out`; finished patients that it already holds are kept.

    Where the two scanners see another shape (distort_target; the abdomen's posture), paired cohorts also hold
    truth_source_to_target/ (the target modality on the source's shape and grid), its reverse, and labels_target/.

    Args:
        anatomy: "hip" (T1 SPGR and CT), "head" (PD and T2), "head_t1" (T1 and T2) or "abdomen" (T2* and CT).
        out: the cohort's folder, new or of the same settings.
        patients: how many per domain, or (source, target). Unpaired, source and target are different people.
        seed: the same seed gives the same patients.
        paired: the same people in both scanners.
        profile: "coarse", "full" or "paper" sets the grids (`scanner.PROFILES`).
        labels, names, body: a NIfTI label map, the JSON of its structures and an optional body mask take the anatomy's
            place. The first patient (of source, when unpaired) is the map itself, the others are random smooth
            invertible deformations of it. Several maps (with as many masks, or none) take turns.
        distort_target: one fixed distortion on every target scan (head): True for the course's, or a seed from 2 on.
        whole_ct: keep the CT's whole field of view, of which training sees only the part around the MR's.
        workers: local processes (None: one per core).
        progress: show a progress bar, at a terminal only.
        scheduler: address of a Dask scheduler whose workers scan the patients (see `cores.run_jobs`).

    Raises InputError for arguments that make no sense, for a folder that holds a cohort made with other settings or
    patients that are not asked for, and when patients failed; it lists them with their reasons.
    """
    ids, folder = _ids(patients, paired), Path(out)
    settings = CohortSettings(
        anatomy, seed, bool(paired), profile, _paths(labels), _paths(names), _paths(body),
        distort_target, bool(whole_ct),
    )  # fmt: skip
    described, index = settings.as_dict(), folder / "cohort.json"
    held = _check_folder(folder, described, ids)
    todo = [id_ for id_ in ids if not all(path.exists() for path in _files_of(settings, folder, id_))]
    meta = {"format": FORMAT, "complete": False, "settings": described, "patients": {}}
    if todo:
        atlas = read_atlas(settings.labels, settings.names[0], settings.body) if settings.labels else ()
        write_json(meta, index)  # after the atlas: a bad map is refused before anything is written
        jobs = [(id_,) for id_ in todo]
        outcomes = cores.run_jobs(make_patient, jobs, workers, scheduler, common=(settings, folder.resolve(), atlas))
        bar = {"desc": f"{anatomy} patients", "unit": "patient", "disable": None if progress else True}
        ended = list(tqdm(outcomes, total=len(todo), **bar))
        cores.raise_failures({todo[one.number]: one.error for one in ended if one.error}, len(todo))
    if todo or not held.get("complete") or list(held.get("patients", {})) != ids:
        write_json(meta | _whole_meta(settings, described, folder, ids), index)
    return read_cohort(folder)


def _whole_meta(settings: CohortSettings, described: dict[str, Any], folder: Path, ids: list[str]) -> dict[str, Any]:
    """Return what cohort.json says of a finished cohort, besides its settings."""
    entries = {id_: read_json(folder / "patients" / f"{id_}.json") for id_ in ids}
    label_names = [entry.pop("label_names") for entry in entries.values()][0]
    domains = described["domains"]
    return {
        "complete": True, "anatomy": settings.anatomy, "profile": settings.profile, "seed": settings.seed,
        "paired": settings.paired, "distort_target": settings.distort_target,
        "domains": {domain: {key: one[key] for key in ("modality", "name", "unit")} for domain, one in domains.items()},
        "label_names": label_names, "patients": entries,
        "versions": {
            "mr2ct": __version__, "numpy": np.__version__, "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
