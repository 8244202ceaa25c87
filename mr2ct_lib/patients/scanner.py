"""Many seeded virtual patients, scanned and written to disk as a cohort.

On disk: source/<id>.nii.gz, target/<id>.nii.gz, labels/<id>.nii.gz, patients/<id>.json (written last: the patient is finished) and
cohort.json. What a scan looks like depends on the seed and the patient's number alone, never on how many processes made it.
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tqdm.auto import tqdm

from mr2ct_lib import __version__, cores
from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.images.folders import FORMAT, Cohort, read_cohort
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.patients.label_map import LabelMapPatient, read_names
from mr2ct_lib.patients.physics import SEQUENCES, acquire_ct, acquire_mr, thin_plate_distortion


@dataclass(frozen=True)
class Grid:
    """The voxels of an acquisition: shape (x, y, z), spacing in mm, and how finely each voxel is cut for partial volume."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    supersample: tuple[int, int, int]

    def affine(self, centre: tuple[float, float, float]) -> np.ndarray:
        """Return the RAS+ affine of this grid around `centre` (mm)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = np.asarray(centre) - (np.asarray(self.shape) - 1) / 2 * self.spacing
        return affine

    def block_around(self, other: "Grid", margin: float) -> tuple[slice, slice, slice]:
        """Return the voxels of this grid that cover `other`, both around one centre, and `margin` mm beyond."""
        reach = (np.asarray(other.shape) * other.spacing / 2 + margin) / self.spacing  # voxels of this grid
        middle = (np.asarray(self.shape) - 1) / 2
        first, last = np.floor(middle - reach).clip(0).astype(int), np.ceil(middle + reach).astype(int) + 1
        return tuple(slice(int(a), int(min(b, n))) for a, b, n in zip(first, last, self.shape, strict=True))


# Paper: hip MR coronal, 320 mm, 256 x 256, slab of 76 mm in slices of 2 mm; CT axial, 360 mm, 512 x 512, 2 mm (Hiasa et al. 2018).
# Abdomen 1.56 x 1.56 x 5 mm, of which 192 x 192 are cropped; head 1.8 mm, 128 x 128 (Wang et al. 2018).
# Quick and full take coarser voxels of the same fields of view.
ACQUISITIONS: dict[str, dict[str, dict[str, Grid]]] = {
    "hip": {
        "quick": {
            "source": Grid((64, 12, 64), (5.0, 76 / 12, 5.0), (2, 2, 2)),
            "target": Grid((72, 72, 72), (5.0, 5.0, 5.0), (2, 2, 2)),
        },
        "full": {
            "source": Grid((128, 19, 128), (2.5, 4.0, 2.5), (2, 2, 2)),
            "target": Grid((144, 144, 144), (2.5, 2.5, 2.5), (2, 2, 1)),
        },
        "paper": {
            "source": Grid((256, 38, 256), (1.25, 2.0, 1.25), (2, 2, 2)),
            "target": Grid((512, 512, 180), (0.703125, 0.703125, 2.0), (1, 1, 2)),
        },
    },
    "head": {
        "quick": dict.fromkeys(("source", "target"), Grid((64, 64, 12), (3.6, 3.6, 6.0), (2, 2, 2))),
        "full": dict.fromkeys(("source", "target"), Grid((128, 128, 40), (1.8, 1.8, 3.6), (2, 2, 1))),
        "paper": dict.fromkeys(("source", "target"), Grid((128, 128, 80), (1.8, 1.8, 1.8), (2, 2, 2))),
    },
    "abdomen": {
        "quick": dict.fromkeys(("source", "target"), Grid((64, 64, 10), (6.25, 6.25, 5.0), (2, 2, 2))),
        "full": dict.fromkeys(("source", "target"), Grid((192, 192, 20), (2.08, 2.08, 5.0), (1, 1, 3))),
        "paper": dict.fromkeys(("source", "target"), Grid((256, 256, 40), (1.56, 1.56, 5.0), (1, 1, 3))),
    },
}
# Coarser voxels average noise: the share of the paper grid's noise that is left (square root of the voxels' volumes, bounded by texture).
NOISE_SHARE = {"quick": 1 / 3, "full": 2 / 3, "paper": 1.0}
# How far from the landmark a radiographer centres the field of view: SD in mm along x, y, z. Heads lie in one template's space, as in IXI.
POSITIONING_SD = {"hip": (10.0, 5.0, 12.0), "head": (0.0, 0.0, 0.0), "abdomen": (0.0, 0.0, 0.0)}
MARGIN_MM = 12.0  # of a CT beyond the field of view of the MR: room for reslicing
_CT = {"modality": "CT", "name": "CT", "unit": "HU", "noise": 12.0}
DOMAINS: dict[str, dict[str, dict[str, Any]]] = {
    "hip": {
        "source": {"modality": "MR", "name": "T1 SPGR", "unit": "a.u.", "sequence": "hip_spgr", "noise": 0.04},
        "target": _CT | {"table": "curved"},
    },
    "head": {
        "source": {"modality": "MR", "name": "PD", "unit": "a.u.", "sequence": "head_pd", "strip": True, "noise": 0.02},
        "target": {"modality": "MR", "name": "T2", "unit": "a.u.", "sequence": "head_t2", "strip": True, "noise": 0.02},
    },
    "abdomen": {
        "source": {"modality": "MR", "name": "T2*", "unit": "a.u.", "sequence": "abdomen_t2star", "noise": 0.04},
        "target": _CT | {"table": None},  # the virtual abdomen brings the table that presses it
    },
}


def patient_seed(seed: int, role: str, number: int) -> int:
    """Return the seed of a cohort's patient: role "s" (source), "t" (target) or "p" (paired), number from 1."""
    return int(np.random.SeedSequence([seed, ord(role), number]).generate_state(1)[0])


def _ids(patients: int | tuple[int, int], paired: bool) -> list[str]:
    counts = (patients, patients) if isinstance(patients, int) else patients
    return [f"{role}{number:04d}" for role, count in zip("p" if paired else "st", counts, strict=False) for number in range(1, count + 1)]


Atlas = Sequence[LabelMapPatient]  # the people of an atlas cohort, completed and undeformed; each is many patients


def build_patient(settings: dict[str, Any], seed: int, domain: str, posture: str | None = None, atlas=None, as_is: bool = False):
    """Return the virtual patient of `seed` in the scanner of `domain` ("source" or "target").

    posture: the domain whose table presses the back (abdomen), by default the same.
    atlas: a LabelMapPatient whose deformation by `seed` takes the anatomy's place (as_is: the person itself, undeformed).
    """
    anatomy = settings["anatomy"]
    if atlas is not None:
        return atlas.with_seed(seed, deform=not as_is)
    module = import_module(f"mr2ct_lib.patients.{anatomy}")
    if settings["posture"]:
        scanner, table = ({"source": "mr", "target": "ct"}[where] for where in (domain, posture or domain))
        return module.abdomen_patient(seed, scanner, posture=table)
    return getattr(module, f"{anatomy}_patient")(seed)


def read_atlas(labels: Sequence[str | Path], names: str | Path, bodies: Sequence[str | Path] = ()) -> list[LabelMapPatient]:
    """Return the people of label maps (NIfTI), the JSON of their structures and their body masks (none, or one each), undeformed.

    Raises InputError for a bad map or mask, and for maps that, completed, don't name the same structures.
    """
    known = read_names(names)
    people = []
    for number, path in enumerate(labels):
        outline = read_volume(bodies[number], unit="label") if bodies else None
        try:
            person = LabelMapPatient(read_volume(path, unit="label"), known, body=outline, seed=0, deform=False)
        except InputError as error:
            raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
        if people and person.names != people[0].names:
            raise InputError(f"{path}: names skin or fat, which {labels[0]} does not, or the other way round; expected maps of one kind")
        people.append(person)
    return people


def scan(settings: dict[str, Any], patient, domain: str, seed: int, distort: bool = False, centre=None) -> tuple[Volume, Volume]:
    """Return (scan, labels) of `patient` in the scanner of `domain`, centred on `centre` (default its landmark); seed: the scan's own."""
    how = settings["domains"][domain]
    grid = Grid(**{key: tuple(value) for key, value in settings["grids"][domain].items()})
    affine = grid.affine(patient.landmarks["centre"] if centre is None else centre)
    options = {key: how[key] for key in ("noise", "bias", "texture", "table", "strip") if key in how}
    if how["modality"] == "CT":
        source = Grid(**{key: tuple(value) for key, value in settings["grids"]["source"].items()})
        block = None if settings["whole_ct"] else grid.block_around(source, MARGIN_MM)
        image, labels = acquire_ct(patient, grid.shape, affine, seed, supersample=grid.supersample, block=block, **options)
        tables = [value for value, name in patient.names.items() if name == "table"]  # no part of the anatomy
        return image, labels.replace(array=np.where(np.isin(labels.array, tables), 0, labels.array).astype(labels.array.dtype))
    displacement = None
    if distort:
        fixed, isocentre = thin_plate_distortion(), affine @ [*(np.asarray(grid.shape) - 1) / 2, 1]
        displacement = lambda x, y: fixed(x - isocentre[0], y - isocentre[1])  # noqa: E731
    options |= {"supersample": grid.supersample, "displacement": displacement}
    return acquire_mr(patient, grid.shape, affine, SEQUENCES[how["sequence"]], seed, **options)


def make_patient(settings: dict[str, Any], folder: Path, atlas: Atlas, id_: str) -> dict[str, Any]:
    """Make one patient's files in `folder` and return its entry for cohort.json. The people of `atlas` take turns."""
    role, number = id_[0], int(id_[1:])
    seed = patient_seed(settings["seed"], role, number)
    domains = {"s": ["source"], "t": ["target"], "p": ["source", "target"]}[role]
    as_is = number <= max(1, len(atlas)) and role in "sp"
    atlas = atlas[(number - 1) % len(atlas)] if atlas else None
    distort = settings["distort_target"]
    landmarks: dict[str, Any] = {}
    people = {domain: build_patient(settings, seed, domain, None, atlas, as_is) for domain in domains}
    moves = np.zeros(3) if as_is else np.random.default_rng([seed, 16]).normal(0, settings["positioning_sd"])
    aims = {domain: tuple(np.asarray(person.landmarks["centre"]) + moves) for domain, person in people.items()}
    for domain in domains:
        image, labels = scan(settings, people[domain], domain, seed, distort and domain == "target", centre=aims[domain])
        write_volume(image, folder / domain / f"{id_}.nii.gz")
        moved = distort or settings["posture"]
        if domain == domains[0]:
            write_volume(labels, folder / "labels" / f"{id_}.nii.gz")
        elif moved:
            write_volume(labels, folder / "labels_target" / f"{id_}.nii.gz")
        places = people[domain].landmarks | {"centre": aims[domain]}  # where this scan was centred
        landmarks[domain] = {name: [float(v) for v in place] for name, place in places.items()}
    if role == "p" and (distort or settings["posture"]):
        # source -> target keeps the source's shape, target -> source the target's: the truth is the other scanner's view of that very shape
        other = build_patient(settings, seed, "target", "source", atlas, as_is)
        truth, _ = scan(settings, other, "target", seed, centre=aims["source"])
        write_volume(truth, folder / "truth_source_to_target" / f"{id_}.nii.gz")
        other = build_patient(settings, seed, "source", "target", atlas, as_is)
        truth, _ = scan(settings, other, "source", seed, distort, centre=aims["target"])
        write_volume(truth, folder / "truth_target_to_source" / f"{id_}.nii.gz")
    names = {str(value): name for value, name in people[domains[0]].names.items()}
    entry = {"seed": seed, "domains": domains, "landmarks": landmarks[domains[0]], "label_names": names}
    if len(domains) == 2:
        entry["landmarks_target"] = landmarks["target"]
    write_json(entry, folder / "patients" / f"{id_}.json")
    return entry


def _settings(anatomy, seed, paired, profile, labels, names, body, distort_target, whole_ct) -> dict[str, Any]:
    """Check the arguments of make_cohort and return everything that decides what the scans look like, ready for JSON."""
    if anatomy not in ACQUISITIONS:
        raise InputError(f"anatomy: {anatomy!r}; expected one of {', '.join(ACQUISITIONS)}")
    if profile not in ACQUISITIONS[anatomy]:
        raise InputError(f"profile: {profile!r}; expected one of {', '.join(ACQUISITIONS[anatomy])}")
    if distort_target and anatomy != "head":
        raise InputError(f"distort_target: {anatomy}; expected head, the anatomy that has this distortion. Leave it out")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: {seed!r}; expected a whole number >= 0")
    if bool(labels) != bool(names) or (body and not labels):
        raise InputError("labels, names, body: only part of them given; expected labels and names together (body is optional)")
    given = {"labels": _paths(labels), "names": _paths(names), "body": _paths(body)}
    if given["body"] and len(given["body"]) != len(given["labels"]):
        raise InputError(f"body: {len(given['body'])} masks for {len(given['labels'])} label maps; expected one for each map, or none")
    for key, paths in given.items():
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path}: does not exist; expected the file of {key}. Check the path")
    files = {key: [str(path.resolve()) for path in paths] for key, paths in given.items()}
    sums = {key: [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] for key, paths in given.items() if paths}
    domains = {domain: how | {"noise": how["noise"] * NOISE_SHARE[profile]} for domain, how in DOMAINS[anatomy].items()}
    if anatomy == "abdomen" and labels:
        domains["target"]["table"] = "curved"
    return {
        "anatomy": anatomy, "profile": profile, "seed": seed, "paired": bool(paired), "distort_target": bool(distort_target),
        "whole_ct": bool(whole_ct), "posture": anatomy == "abdomen" and not labels, **files, "sha256": sums,
        "domains": domains, "positioning_sd": list(POSITIONING_SD[anatomy]),
        "grids": {domain: asdict(grid) for domain, grid in ACQUISITIONS[anatomy][profile].items()},
        "sequences": {how["sequence"]: SEQUENCES[how["sequence"]].as_dict() for how in DOMAINS[anatomy].values() if "sequence" in how},
    }  # fmt: skip


def _paths(given: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if given is None:
        return []
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _fingerprint(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that must agree when a cohort is taken up again; a label map may have been moved but not changed."""
    plain = {key: value for key, value in settings.items() if key not in ("labels", "names", "body")}
    return _plain(plain)


def _plain(value: Any) -> Any:
    """`value` as it comes back from JSON (tuples become lists)."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _expected(folder: Path, settings: dict[str, Any], id_: str) -> list[Path]:
    kinds = {"s": ["source"], "t": ["target"], "p": ["source", "target"]}[id_[0]] + ["labels"]
    if id_[0] == "p" and (settings["distort_target"] or settings["posture"]):
        kinds += ["labels_target", "truth_source_to_target", "truth_target_to_source"]
    return [folder / kind / f"{id_}.nii.gz" for kind in kinds] + [folder / "patients" / f"{id_}.json"]


def _make_all(settings: dict[str, Any], folder: Path, ids: list[str], atlas: Atlas, workers: int | None, progress: bool) -> None:
    failures = {}
    outcomes = cores.run_jobs(make_patient, [(id_,) for id_ in ids], workers=workers, common=(settings, folder, atlas))
    show = {"total": len(ids), "desc": f"{settings['anatomy']} patients", "unit": "patient", "disable": None if progress and ids else True}
    for outcome in tqdm(outcomes, **show):
        if outcome.error:
            failures[ids[outcome.number]] = outcome.error
    cores.raise_failures(failures, len(ids))


def make_cohort(
    anatomy: str,
    out: str | Path,
    patients: int | tuple[int, int],
    seed: int,
    paired: bool = False,
    profile: str = "quick",
    labels: str | Path | Sequence[str | Path] | None = None,
    names: str | Path | None = None,
    body: str | Path | Sequence[str | Path] | None = None,
    distort_target: bool = False,
    whole_ct: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Cohort:
    """Scan virtual patients and write them to the folder `out`; patients that it already holds are kept.

    anatomy: "hip" (T1 SPGR and CT), "head" (PD and T2) or "abdomen" (T2* and CT).
    patients: how many a domain, or (source, target); unpaired, those of source and target are different people in other poses.
    paired: the same people in both scanners. profile: "quick", "full" or "paper" sets the grids (ACQUISITIONS).
    labels, names, body: a NIfTI label map, the JSON of its structures and an optional body mask take the anatomy's place; the first
    patient (of source, when unpaired) is the map itself, the others are random smooth invertible deformations of it. Several maps (with
    as many masks, or none) take turns.
    distort_target (head): one fixed distortion on every target scan.
    whole_ct: keep the CT's whole field of view; else the part around the MR's, which is all that training sees of it.
    workers: processes (None: one a core). progress: shown at a terminal only.

    Where the two scanners see another shape (distort_target; the abdomen's posture), paired cohorts also hold
    truth_source_to_target/ (the target modality on the source's shape and grid), truth_target_to_source/ and labels_target/.

    Raises InputError for arguments that make no sense and for a folder that holds a cohort made with other settings.
    """
    counts = patients if isinstance(patients, tuple) and not paired else (patients,)
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
        raise InputError(f"patients: {patients!r}; expected a whole number of at least 1")
    settings, folder = _settings(anatomy, seed, paired, profile, labels, names, body, distort_target, whole_ct), Path(out)
    ids, index = _ids(patients, paired), folder / "cohort.json"
    if index.exists():
        held = read_json(index)
        before, now = held.get("settings", {}), _fingerprint(settings)
        before = {key: value for key, value in before.items() if key in now}
        other = sorted(key for key in now if before.get(key) != now[key])
        if other:
            raise InputError(
                f"{folder}: holds a cohort with another {', '.join(other)}; "
                "expected the same settings to continue it. Choose another folder"
            )
        if len(held.get("patients", {})) > len(ids):
            raise InputError(f"{folder}: holds {len(held['patients'])} patients, more than the {len(ids)} asked for. Choose another folder")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files and no cohort.json; expected a new or empty folder. Choose another folder")
    meta = {"format": FORMAT, "complete": False, "settings": _plain(settings), "patients": {}}
    todo = [id_ for id_ in ids if not all(path.exists() for path in _expected(folder, settings, id_))]
    atlas = read_atlas(_paths(labels), names, _paths(body)) if todo and labels else []  # refuses a bad map before anything is written
    if todo:
        write_json(meta, index)
    _make_all(settings, folder, todo, atlas, workers, progress)

    entries = {id_: read_json(folder / "patients" / f"{id_}.json") for id_ in ids}
    label_names = [entry.pop("label_names") for entry in entries.values()][0]
    if todo or not read_json(index).get("complete"):
        meta |= {
            "complete": True, "anatomy": anatomy, "profile": profile, "seed": seed, "paired": bool(paired),
            "distort_target": bool(distort_target),
            "domains": {domain: {key: how[key] for key in ("modality", "name", "unit")} for domain, how in settings["domains"].items()},
            "physics": {"domains": settings["domains"], "sequences": settings["sequences"], "grids": _plain(settings["grids"])},
            "label_names": label_names, "patients": entries,
            "versions": {"mr2ct": __version__, "numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()},
        }  # fmt: skip
        write_json(meta, index)
    return read_cohort(folder)
