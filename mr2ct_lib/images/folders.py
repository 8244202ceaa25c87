"""Folders of scans: cohorts of virtual patients, and a user's own scans in the same form.

On disk: source/<id>.nii.gz, target/<id>.nii.gz, labels/<id>.nii.gz and cohort.json. A user's own folder needs only
source/ and target/.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.images.dicom_reading import SUFFIXES
from mr2ct_lib.images.hounsfield import looks_shifted, wrong_scale
from mr2ct_lib.images.scan_files import META, NIFTI
from mr2ct_lib.images.volumes import Volume, read_volume

FORMAT = 1
SCANS = NIFTI + META
NOT_SCANS = ("_labels", "_label", "_seg", "_segmentation", "_mask")  # how names of label maps among the scans end
MODALITIES = ("CT", "MR")
_OBJECTS = ("settings", "domains", "patients", "label_names")
ENTRIES = {"anatomy": str, "paired": bool} | dict.fromkeys(_OBJECTS, dict)  # of cohort.json


@dataclass(frozen=True)
class Cohort:
    """Patients on disk: `source`, `target`, `labels` map a patient's id to its file; `meta` is what cohort.json holds.
    """

    folder: Path
    meta: dict[str, Any]
    source: dict[str, Path]
    target: dict[str, Path]
    labels: dict[str, Path] = field(default_factory=dict)

    @property
    def paired(self) -> bool:
        """Whether equal names in source/ and target/ are the same patient."""
        return bool(self.meta["paired"])


def _stem(path: Path) -> str:
    return next((path.name[: -len(end)] for end in SCANS if path.name.lower().endswith(end)), path.name)


def scans_in(folder: Path, slices: bool = False) -> dict[str, Path]:
    """id -> scan file or DICOM folder, in the order of their names; hidden files are left alone.

    slices: whether DICOM slices may lie among them. Raises InputError where they may not, and for two scans of one id.
    """
    if not folder.is_dir():
        return {}
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    loose = [path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file()]
    if loose and not slices:
        raise InputError(
            f"{loose[0]}: is a DICOM slice among the scans; expected each series in a folder of its own. Move it there"
        )
    paths = [path for path in visible if path.is_dir() or path.name.lower().endswith(SCANS)]
    scans = {_stem(path): path for path in paths}
    if len(scans) < len(paths):
        raise InputError(f"{folder}: two scans have the same name; expected a name per patient. Rename or remove one")
    return {id_: path for id_, path in scans.items() if not id_.lower().endswith(NOT_SCANS)}


def guess_modality(volume: Volume) -> str:
    """Return "CT" or "MR" by unit and values (see `modality_and_reason`). Raises InputError for CT that is not in HU.

    >>> guess_modality(Volume(np.array([[[-1000.0, 40.0]]]), np.eye(4)))
    'CT'
    """
    return modality_and_reason(volume)[0]


def modality_and_reason(volume: Volume) -> tuple[str, str]:
    """Return "CT" or "MR", and why. CT: in HU, or one voxel in 200 is at most -100, as air and fat are.

    Raises InputError when the values look like CT that was stored with an offset of 1024, inverted, or on another
    scale than HU.
    """
    if is_offset_ct(volume):
        raise InputError(
            f"looks like CT stored with an offset of 1024 (values {volume.array.min():g} to {volume.array.max():g}, "
            "air near 0, soft tissue near 1060); expected Hounsfield units. Subtract 1024, or name the modality if it "
            "is MR"
        )
    values = volume.sample()
    low, high = np.percentile(values, (0.5, 99.5))
    if volume.unit == "HU" or low <= -100:
        if looks_shifted(values) and (values < -500).mean() < 0.001:
            raise InputError(
                f"looks like an inverted CT (values {low:.4g} to {high:.4g}, many near 1000, none near -1000); "
                "expected Hounsfield units, air near -1000. Convert it again"
            )
        reason = "none is below -20" if volume.array.min() > -20 else wrong_scale(values)
        if reason:
            raise InputError(
                f"looks like a CT that is not in Hounsfield units (values {low:.4g} to {high:.4g}, {reason}); expected "
                "fat near -100 and muscle near 50. Convert it again, or name the modality if it is MR"
            )
        why = "it is in HU" if volume.unit == "HU" else (
            f"its values, {low:.4g} to {high:.4g}, reach down to air or fat in HU"
        )
        return "CT", why
    if np.isin(volume.array, (low, high)).all():
        return "MR", f"its values are {low:.4g} and {high:.4g} alone, as those of a mask"
    return "MR", f"its values, {low:.4g} to {high:.4g}, do not reach down to air or fat in HU"


def is_offset_ct(volume: Volume) -> bool:
    """Return whether the values look like HU + 1024: from about 0, much air, most of the rest soft tissue.

    What lies below -200 is left out: where a scanner did not measure, it writes -2000 or less. Broken numbers come from
    resampling; with a background of exact zeros, they are those of a stripped MR.
    """
    values = volume.sample()
    low, values = values.min(), values[values > -200]
    if not len(values) or values.max() < 1200 or np.percentile(values, 99) > 8191:  # metal may lie higher
        return False
    tissue = values[values > 300]
    if len(tissue) < (0.02 if low >= -200 else 0.1) * len(values):  # the bones of a CT in HU are fewer
        return False
    air = values[values < 150]
    if (values != np.round(values)).any() and (air == 0).sum() > 0.9 * len(air):
        return False
    return len(air) > 0.05 * len(values) and ((tissue > 874) & (tissue < 1174)).mean() > 0.5


def read_names(path: str | Path) -> dict[int, str]:
    """Return the label values and names that a JSON object holds, such as {"1": "pelvis", "2": "femur"}.

    Raises InputError for anything else, and for a value that is named twice.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: holds no names; expected a JSON object such as {{"1": "femur"}}. Write one')
    for key, name in content.items():
        if not key.isdecimal() or not isinstance(name, str):
            raise InputError(f'{path}: entry {key!r}: {name!r}; expected a label value and a name, as "1": "femur"')
    names = {int(key): name for key, name in content.items()}
    if len(names) < len(content):
        raise InputError(f"{path}: has two names for one value; expected one for each. Correct it")
    return names


def read_index(folder: Path) -> dict[str, Any]:
    """Return what cohort.json of `folder` holds, {} where there is none. Raises InputError for entries of other types.
    """
    index = folder / "cohort.json"
    meta = read_json(index) if index.exists() else {}
    if not isinstance(meta, dict):
        raise InputError(f"{index}: holds no JSON object; expected what `mr2ct cohort` writes. Make the cohort again")
    for key, kind in ENTRIES.items():
        if key in meta and not isinstance(meta[key], kind):
            raise InputError(
                f"{index}: {key} is {meta[key]!r}; expected {kind.__name__}. Correct it, or make the cohort again"
            )
    return meta


def read_cohort(folder: str | Path, source_modality: str | None = None, target_modality: str | None = None) -> Cohort:
    """Read a cohort that make_cohort wrote, or a user's own folder with source/ and target/.

    A user's folder counts as unpaired unless its cohort.json says {"paired": true}; then equal names are the same
    patient. Label maps among a user's scans (names that end in _labels, _label, _seg, _segmentation or _mask) are
    passed over. labels/ and names.json are optional.

    Args:
        folder: scans are NIfTI, MetaImage or NRRD files, or DICOM folders.
        source_modality, target_modality: "CT" or "MR" of a user's scans; default: what the first scan looks like.
            `meta` says under "domains" which it is and why.

    Raises InputError for a missing, empty or unfinished cohort, for CT offered as source, and for another modality than
    that of virtual scans.
    """
    given = {"source": source_modality, "target": target_modality}
    for domain, kind in given.items():
        if kind not in (None, *MODALITIES):
            raise InputError(
                f"{domain}_modality: {kind!r}; expected one of {', '.join(MODALITIES)}. Choose one of them"
            )
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: does not exist; expected a cohort's folder. Check the path")
    meta = read_index(folder)
    if meta.get("complete") is False:
        raise InputError(
            f"{folder}: is unfinished; expected a whole cohort. Start the same `mr2ct cohort` command again to finish "
            "it"
        )
    source, target, labels = (scans_in(folder / kind) for kind in ("source", "target", "labels"))
    scans = {"source": source, "target": target}
    own = "settings" not in meta
    if not own:
        scans = {domain: _listed(folder / domain, domain, meta["patients"], paths) for domain, paths in scans.items()}
        labels = {id_: labels[id_] for id_ in meta["patients"] if id_ in labels}
    for domain, paths in scans.items():
        if not paths:
            raise InputError(
                f"{folder / domain}: holds no scans; expected at least one NIfTI file. Put the {domain} scans there"
            )
    if not own:  # virtual scans are what their cohort.json says, whatever they look like
        for domain, kind in given.items():
            if kind and kind != (known := meta["domains"][domain]["modality"]):
                raise InputError(
                    f"{domain}_modality: {kind}; expected {known}, as {folder / 'cohort.json'} says. Leave it out"
                )
        return Cohort(folder, meta, scans["source"], scans["target"], labels)
    kinds = {domain: (given[domain], "as given") if given[domain] else _look(paths) for domain, paths in scans.items()}
    if kinds["source"][0] == "CT":
        swapped = kinds["target"][0] == "MR"
        raise InputError(
            f"{folder / 'source'}: holds CT ({kinds['source'][1]})" + (" and target/ holds MR" if swapped else "")
            + "; expected MR as source. " + ("Exchange the two folders" if swapped else "Put the MR scans there")
            + ", or name the modality if it is MR"
        )  # fmt: skip
    return Cohort(folder, _own_meta(folder, meta, scans, kinds), scans["source"], scans["target"], labels)


def _listed(folder: Path, domain: str, people: dict[str, Any], paths: dict[str, Path]) -> dict[str, Path]:
    """The scans of a domain in the order of cohort.json. Raises InputError when one is missing."""
    absent = [id_ for id_, entry in people.items() if domain in entry["domains"] and id_ not in paths]
    if absent:
        raise InputError(f"{folder}: {absent[0]} is missing; expected what cohort.json lists. Make the cohort again")
    return {id_: paths[id_] for id_ in people if id_ in paths}


def _look(paths: dict[str, Path]) -> tuple[str, str]:
    """The modality that the first scan looks like, and why."""
    path = next(iter(paths.values()))
    try:
        kind, why = modality_and_reason(read_volume(path))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    return kind, f"{path.name}: {why}"


def _own_meta(
    folder: Path, meta: dict[str, Any], scans: dict[str, dict[str, Path]], kinds: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """cohort.json of a user's own folder, as far as it can be known."""
    lone = sorted(set(scans["source"]) ^ set(scans["target"]))
    if meta.get("paired") and lone:
        raise InputError(
            f"{folder}: {lone[0]} lies in one domain only; expected the same names in source/ and target/ of a paired "
            "cohort. Add or remove it"
        )
    people: dict[str, Any] = {}
    for domain, paths in scans.items():
        for id_ in paths:
            people.setdefault(id_, {"seed": None, "domains": [], "landmarks": {}})["domains"].append(domain)
    given = folder / "names.json"
    names = {str(value): name for value, name in read_names(given).items()} if given.exists() else {}
    domains = {
        domain: {"modality": kind, "name": kind, "unit": "HU" if kind == "CT" else "a.u.", "why": why}
        for domain, (kind, why) in kinds.items()
    }
    default = {
        "format": FORMAT, "anatomy": "own", "profile": None, "seed": None, "paired": False, "distort_target": False,
        "domains": domains, "label_names": names, "patients": people, "versions": {},
    }  # fmt: skip
    return default | meta | {"domains": domains}
