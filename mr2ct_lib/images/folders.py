"""Folders of scans: cohorts of virtual patients, and a user's own scans in the same form.

On disk: source/<id>.nii.gz, target/<id>.nii.gz, labels/<id>.nii.gz and cohort.json. A user's own folder needs source/ and target/ only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.images.volumes import Volume, read_volume

FORMAT = 1
SCANS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
NOT_SCANS = ("_labels", "_label", "_seg", "_segmentation", "_mask")  # ends of the names of label maps among a user's scans


@dataclass(frozen=True)
class Cohort:
    """Patients on disk: `source`, `target`, `labels` map a patient's id to its file; `meta` is the content of cohort.json."""

    folder: Path
    meta: dict[str, Any]
    source: dict[str, Path]
    target: dict[str, Path]
    labels: dict[str, Path] = field(default_factory=dict)

    @property
    def paired(self) -> bool:
        return bool(self.meta["paired"])


def _stem(path: Path) -> str:
    return next((path.name[: -len(end)] for end in SCANS if path.name.lower().endswith(end)), path.name)


def scans_in(folder: Path) -> dict[str, Path]:
    """id -> scan file or DICOM folder, in the order of their names; hidden files are left alone."""
    if not folder.is_dir():
        return {}
    found = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and (p.is_dir() or p.name.lower().endswith(SCANS))]
    scans = {_stem(path): path for path in found}
    if len(scans) < len(found):
        raise InputError(f"{folder}: two scans have the same name; expected a name for each patient. Rename or remove one")
    return {id_: path for id_, path in scans.items() if not id_.lower().endswith(NOT_SCANS)}


def guess_modality(volume: Volume) -> str:
    """Return "CT" when the values look like Hounsfield units (known unit, or air far below 0), else "MR".

    >>> guess_modality(Volume(np.array([[[-1000.0, 40.0]]]), np.eye(4)))
    'CT'
    """
    return "CT" if volume.unit == "HU" or float(volume.array.min()) <= -200 else "MR"


def read_cohort(folder: str | Path) -> Cohort:
    """Read a cohort that make_cohort wrote, or a user's own folder with source/ and target/ (NIfTI, MetaImage or DICOM folders).

    A user's folder counts as unpaired unless its cohort.json says {"paired": true}; then equal names are the same patient.
    Label maps among a user's scans (names that end in _labels, _label, _seg, _segmentation or _mask) are passed over.
    labels/ and names.json are optional. Modality and unit are guessed from the values.

    Raises InputError for a missing, empty or unfinished cohort, for CT offered as source, and for domains of mixed kinds.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: does not exist; expected a cohort's folder. Check the path")
    index = folder / "cohort.json"
    meta = read_json(index) if index.exists() else {}
    if not isinstance(meta, dict):
        raise InputError(f"{index}: holds no JSON object; expected what `mr2ct cohort` writes. Make the cohort again")
    if meta.get("complete") is False:
        raise InputError(f"{folder}: is unfinished; expected a whole cohort. Start the same `mr2ct cohort` command again to finish it")
    source, target, labels = (scans_in(folder / kind) for kind in ("source", "target", "labels"))
    own = "settings" not in meta
    if not own:
        people = meta["patients"]
        source, target, labels = ({id_: paths[id_] for id_ in people if id_ in paths} for paths in (source, target, labels))
        for domain, paths in (("source", source), ("target", target)):
            absent = [id_ for id_, entry in people.items() if domain in entry["domains"] and id_ not in paths]
            if absent:
                raise InputError(f"{folder / domain}: {absent[0]} is missing; expected what cohort.json lists. Make the cohort again")
    for domain, paths in (("source", source), ("target", target)):
        if not paths:
            raise InputError(f"{folder / domain}: holds no scans; expected at least one NIfTI file. Put the {domain} scans there")
    kinds = {}
    for domain, paths in (("source", source), ("target", target)):
        for path in list(paths.values())[: None if own else 1]:
            kind = guess_modality(read_volume(path))
            if kinds.setdefault(domain, kind) != kind:
                raise InputError(f"{path}: looks like {kind}, the other {domain} scans {kinds[domain]}; expected one modality a domain")
    if kinds["source"] == "CT":
        swapped = kinds["target"] == "MR"
        raise InputError(
            f"{folder / 'source'}: holds CT" + (" and target/ holds MR" if swapped else "") + "; expected MR as source. "
            + ("Exchange the two folders" if swapped else "Put the MR scans there")
        )  # fmt: skip
    if not own and kinds["target"] != meta["domains"]["target"]["modality"]:
        raise InputError(
            f"{folder / 'target'}: looks like {kinds['target']}; expected {meta['domains']['target']['modality']}. Make the cohort again"
        )
    if own:
        meta = _own_meta(folder, meta, source, target, kinds)
    return Cohort(folder, meta, source, target, labels)


def _own_meta(folder: Path, meta: dict[str, Any], source, target, kinds) -> dict[str, Any]:
    """cohort.json of a user's own folder, as far as it can be known."""
    if meta.get("paired") and set(source) != set(target):
        lone = sorted(set(source) ^ set(target))[0]
        raise InputError(f"{folder}: {lone} lies in one domain only; expected the same names in source/ and target/ of a paired cohort")
    people: dict[str, Any] = {}
    for domain, paths in (("source", source), ("target", target)):
        for id_ in paths:
            people.setdefault(id_, {"seed": None, "domains": [], "landmarks": {}})["domains"].append(domain)
    names = read_json(folder / "names.json") if (folder / "names.json").exists() else {}
    domains = {domain: {"modality": kind, "name": kind, "unit": "HU" if kind == "CT" else "a.u."} for domain, kind in kinds.items()}
    default = {
        "format": FORMAT, "anatomy": "own", "profile": None, "seed": None, "paired": False, "distort_target": False,
        "domains": domains, "physics": {}, "label_names": names, "patients": people, "versions": {},
    }  # fmt: skip
    return default | meta
