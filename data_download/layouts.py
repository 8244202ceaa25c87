"""A set's own folders turned into cohorts, as `mr2ct prepare` reads them: source/, target/, labels/ and names.json."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tqdm.auto import tqdm

from data_download import names
from data_download.label_maps import copied, find, link, merged_masks, painted
from mr2ct_lib.files import InputError, atomic, counted, write_json
from mr2ct_lib.images.dicom_reading import images_of
from mr2ct_lib.images.volumes import read_volume, write_volume

ENDINGS = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class Scan:
    """One scan of a set: a file or a DICOM folder. `labels` writes its label map to the path that it is given.

    series: the scan's own files, where the folder holds those of other scans, too.
    """

    id: str
    path: Path
    labels: Callable[[Path], None] | None = None
    series: tuple[Path, ...] = ()


Sides = tuple[list[Scan], list[Scan]]  # source, target


def arrange(layout: str, folder: Path) -> list[Path]:
    """Return the cohort folders made below `folder`/cohort from the scans of one set; none where there are no scans.

    Where a person has both scans, a tenth of the people goes to `paired`, for testing, and the others to `unpaired`,
    each as a source or as a target, so that nobody is on both sides. Who goes where follows from the name alone: more
    cases change nothing for those that were there. Files are hard links where the disk allows, copies elsewhere; DICOM
    becomes NIfTI. Scans that cannot be read are left out, with a message.

    Raises InputError for an unknown layout, for two scans of one name, or when no scan can be read.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout: {layout!r}; expected one of {', '.join(LAYOUTS)}. Choose one of them")
    read, known = LAYOUTS[layout]
    made = []
    for group, (source, target) in read(folder).items():
        for side in (source, target):
            _once([(scan.id, scan.path) for scan in side])
        both = {scan.id for scan in source} & {scan.id for scan in target}
        cohorts = {"unpaired": (source, target)}
        if both:
            cohorts = {name: _chosen(source, target, ids) for name, ids in split(sorted(both)).items()}
        for name, sides in cohorts.items():
            if any(sides):
                made.append(_write(folder / "cohort" / group / name, sides, known, paired=name == "paired"))
    return made


def split(people: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Return who is a source and who a target in `paired` and `unpaired`, by a hash of each name.

    >>> split(list("abcdef"))
    {'paired': (['d', 'e'], ['d', 'e']), 'unpaired': (['a', 'c', 'f'], ['b'])}
    """
    number = {one: int(hashlib.sha256(one.encode()).hexdigest(), 16) for one in people}
    paired = [one for one in people if number[one] % 10 == 0]
    source = [one for one in people if number[one] % 10 and number[one] // 10 % 2]
    target = [one for one in people if number[one] % 10 and not number[one] // 10 % 2]
    return {"paired": (paired, paired), "unpaired": (source, target)}


def ixi(folder: Path) -> dict[str, Sides]:
    """PD/IXI002-Guys-0828-PD.nii.gz and T2/IXI002-Guys-0828-T2.nii.gz"""
    pd, t2 = (_named(folder, f"{kind}/**/*-{kind}.nii.gz", f"-{kind}.nii.gz") for kind in ("PD", "T2"))
    return {"": _both(_scans(pd), _scans(t2))}


def synthrad2023(folder: Path) -> dict[str, Sides]:
    """Task1/<brain or pelvis>/<case>/mr.nii.gz and ct.nii.gz"""
    return {region: _folders(folder, f"**/Task1/{region}/*", ".nii.gz") for region in ("brain", "pelvis")}


def synthrad2025(folder: Path) -> dict[str, Sides]:
    """Task1/<AB, HN or TH>/<case>/mr.mha and ct.mha"""
    regions = {"abdomen": "AB", "head-neck": "HN", "thorax": "TH"}
    return {name: _folders(folder, f"**/Task1/{short}/*", ".mha") for name, short in regions.items()}


def chaos(folder: Path) -> dict[str, Sides]:
    """CT/<id>/DICOM_anon, MR/<id>/T1DUAL/DICOM_anon/InPhase, and pictures of the labels in Ground

    The in-phase T1 is a gradient echo, as the second paper's T2*; CT and MR are of different people.
    """
    source = [
        Scan(f"mr{series.parts[-4]}", series, painted(series, _beside(series.parent, "Ground"), 63))
        for series in find(folder, "**/MR/*/T1DUAL/DICOM_anon/InPhase")
    ]
    target = [
        Scan(f"ct{series.parts[-2]}", series, painted(series, _beside(series, "Ground"), None))
        for series in find(folder, "**/CT/*/DICOM_anon")
    ]
    return {"": (source, target)}


def totalsegmentator(folder: Path) -> dict[str, Sides]:
    """s0001/ct.nii.gz or s0001/mri.nii.gz, and one mask per structure in s0001/segmentations"""
    found = {mask.name[: -len(".nii.gz")].lower() for mask in find(folder, "**/segmentations/*.nii.gz")}
    if unknown := sorted(found - set(names.TOTALSEGMENTATOR.values())):
        tqdm.write(f"structures without a number here are left out of the label maps: {', '.join(unknown)}")
    sides = tuple(
        [
            Scan(f"{kind}_{path.parent.name}", path, merged_masks(path.parent))
            for path in find(folder, f"**/{file}.nii.gz")
        ]
        for kind, file in (("mr", "mri"), ("ct", "ct"))
    )
    return {"": sides}


def amos22(folder: Path) -> dict[str, Sides]:
    """imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz, the same with Va; numbers from 500 on are MR"""
    sides: Sides = ([], [])
    for path in find(folder, "**/images*/amos_????.nii.gz"):
        id_, number = path.name[: -len(".nii.gz")], path.name[len("amos_") : -len(".nii.gz")]
        if number.isdecimal():
            labels = _beside(path.parent, f"labels{path.parent.name[len('images') :]}/{path.name}")
            sides[0 if int(number) >= 500 else 1].append(Scan(id_, path, copied(labels)))
    return {"": sides}


def ctpelvic1k(folder: Path) -> dict[str, Sides]:
    """dataset6_CLINIC_0001_data.nii.gz and dataset6_CLINIC_0001_mask_4label.nii.gz"""
    masks = _named(folder, "**/*_mask_4label.nii.gz", "_mask_4label.nii.gz")
    scans = _named(folder, "**/*_data.nii.gz", "_data.nii.gz")
    return {"": ([], [Scan(id_, path, copied(masks.get(id_))) for id_, path in scans.items()])}


def mmwhs(folder: Path) -> dict[str, Sides]:
    """mr_train_1001_image.nii.gz and ct_train_1001_image.nii.gz with _label.nii.gz beside each"""
    sides = tuple(
        [
            Scan(id_, path, copied(_beside(path, f"{id_}_label.nii.gz")))
            for id_, path in _named(folder, f"**/{kind}_train_*_image.nii.gz", "_image.nii.gz").items()
        ]
        for kind in ("mr", "ct")
    )
    return {"": sides}


def hipmri(folder: Path) -> dict[str, Sides]:
    """semantic_MRs_anon/Case_004_Week0_LFOV.nii.gz and semantic_labels_anon/Case_004_Week0_SEMANTIC_LFOV.nii.gz"""
    scans = _named(folder, "**/semantic_MRs*/*_LFOV.nii.gz", "_LFOV.nii.gz")
    maps = find(folder, "**/semantic_labels*/*_SEMANTIC*.nii.gz")
    labels = {path.name.lower().partition("_semantic")[0]: path for path in maps}
    return {"": ([Scan(id_, path, copied(labels.get(id_.lower()))) for id_, path in scans.items()], [])}


def lund_probe(folder: Path) -> dict[str, Sides]:
    """<patient>/MR_StorT2/image.nii.gz; the CT of this set is synthetic, so it is no target"""
    scans = find(folder, "**/MR_StorT2/image.nii.gz")
    return {"": ([Scan(path.parts[-3], path) for path in scans], [])}


def pelvic_reference(folder: Path) -> dict[str, Sides]:
    """Pelvic-Ref-001/<study>/<series>/1-001.dcm; of several series the longest is taken"""
    scans = []
    for patient in [path for path in find(folder, "**/Pelvic-Ref-*") if path.is_dir()]:
        places = [place for place in (patient, *patient.rglob("*")) if place.is_dir()]
        series = {place: sum(path.is_file() for path in place.iterdir()) for place in places}
        longest = max(series, key=series.__getitem__)
        if series[longest] > 1:
            scans.append(Scan(patient.name, longest))
    return {"": ([], scans)}


def gold_atlas(folder: Path) -> dict[str, Sides]:
    """<1_01_P>/: DICOM files of T1, T2, CT, and the CT that was deformed to the MR (by their Series Description)

    The MR is the source, once T1 and once T2; the deformed CT lies on it and is the target.
    """
    found: dict[str, dict[str, Scan]] = {"T1": {}, "T2": {}, "DEFORMED": {}}
    for patient in [path for path in find(folder, "**/[0-9]_[0-9][0-9]_P") if path.is_dir()]:
        series: dict[str, list[Path]] = {}
        described: dict[str, str] = {}
        for path, header in images_of(patient.iterdir()):
            uid = str(header.get("SeriesInstanceUID"))
            series.setdefault(uid, []).append(path)
            described[uid] = f"{header.get('Modality')} {header.get('SeriesDescription', '')}".upper()
        for uid, files in sorted(series.items(), key=lambda item: len(item[1])):  # of several the longest stays
            for kind, scans in found.items():
                if described[uid].startswith("CT" if kind == "DEFORMED" else "MR") and kind in described[uid]:
                    scans[patient.name] = Scan(patient.name, patient, series=tuple(files))
    ct = found.pop("DEFORMED")
    return {kind.lower(): _both(mr, ct) for kind, mr in found.items()}


LAYOUTS: dict[str, tuple[Callable[[Path], dict[str, Sides]], dict[int, str]]] = {
    "ixi": (ixi, {}),
    "synthrad2023": (synthrad2023, {}),
    "synthrad2025": (synthrad2025, {}),
    "chaos": (chaos, names.CHAOS),
    "totalsegmentator": (totalsegmentator, names.TOTALSEGMENTATOR),
    "amos22": (amos22, names.AMOS),
    "ctpelvic1k": (ctpelvic1k, names.CTPELVIC1K),
    "mm-whs": (mmwhs, names.MMWHS),
    "csiro-hipmri": (hipmri, names.HIPMRI),
    "lund-probe": (lund_probe, {}),
    "pelvic-reference": (pelvic_reference, {}),
    "gold-atlas": (gold_atlas, {}),
}


def expected(layout: str) -> str:
    """The files that a layout looks for, in words."""
    return str(LAYOUTS[layout][0].__doc__).splitlines()[0]


def _once(scans: list[tuple[str, Path]]) -> dict[str, Path]:
    """The scans by their ids. Raises InputError where two have the same one."""
    found: dict[str, Path] = {}
    for id_, path in scans:
        if id_ in found:
            raise InputError(f"{found[id_]} and {path}: are both called {id_}; expected one of them. Move one away")
        found[id_] = path
    return found


def _named(folder: Path, pattern: str, ending: str) -> dict[str, Path]:
    """Files by their names without the ending."""
    return _once([(path.name[: -len(ending)], path) for path in find(folder, pattern)])


def _beside(path: Path, name: str) -> Path | None:
    """What lies beside a file or folder under a name in small or capital letters."""
    return next(iter(find(path.parent, name)), None)


def _both(source: dict[str, Scan], target: dict[str, Scan]) -> Sides:
    """The scans of people who have both; a message names the others."""
    ids = [id_ for id_ in source if id_ in target]
    if lone := sorted(source.keys() ^ target.keys()):
        tqdm.write(f"left out, since only one of the two scans is there: {', '.join(lone)}")
    return [source[id_] for id_ in ids], [target[id_] for id_ in ids]


def _folders(folder: Path, pattern: str, ending: str) -> Sides:
    mr, ct = (find(folder, f"{pattern}/{kind}{ending}") for kind in ("mr", "ct"))
    return _both(*(_scans(_once([(path.parent.name, path) for path in side])) for side in (mr, ct)))


def _scans(paths: dict[str, Path]) -> dict[str, Scan]:
    return {id_: Scan(id_, path) for id_, path in paths.items()}


def _chosen(source: list[Scan], target: list[Scan], ids: tuple[list[str], list[str]]) -> Sides:
    return [scan for scan in source if scan.id in ids[0]], [scan for scan in target if scan.id in ids[1]]


def _write(out: Path, sides: Sides, known: dict[int, str], paired: bool) -> Path:
    failures: list[tuple[str, InputError]] = []
    with atomic(out) as temporary:
        for domain, unit, scans in zip(("source", "target"), ("a.u.", "HU"), sides, strict=True):
            (temporary / domain).mkdir(parents=True)
            labelled = [scan for scan in scans if scan.labels]
            if labelled and len(labelled) < len(scans):
                tqdm.write(f"left out of {out / domain}: {counted(len(scans) - len(labelled), 'scan')} without labels")
            for scan in tqdm(labelled or scans, desc=f"{out / domain}", unit="scan"):
                try:
                    if scan.labels:
                        (temporary / "labels").mkdir(exist_ok=True)
                        scan.labels(temporary / "labels" / f"{scan.id}.nii.gz")
                    _place(scan, temporary / domain / scan.id, unit)
                except InputError as error:
                    (temporary / "labels" / f"{scan.id}.nii.gz").unlink(missing_ok=True)
                    failures.append((scan.id, error))
        for id_, _ in failures if paired else ():  # a pair needs both sides
            for kind, ending in product(("source", "target", "labels"), ENDINGS):
                (temporary / kind / f"{id_}{ending}").unlink(missing_ok=True)
        if not any(any((temporary / domain).iterdir()) for domain in ("source", "target")):
            first = ": ".join(map(str, failures[0]))
            raise InputError(f"{out}: no scan can be used; expected at least one. The first: {first}")
        write_json({"paired": paired}, temporary / "cohort.json")
        if (temporary / "labels").is_dir():
            write_json(names.as_json(known), temporary / "names.json")
    for id_, error in failures:
        tqdm.write(f"left out: {id_}: {error}")
    return out


def _place(scan: Scan, place: Path, unit: str) -> None:
    if scan.series:
        with tempfile.TemporaryDirectory(dir=place.parent) as room:
            for file in scan.series:
                link(file, Path(room, file.name))
            _place(Scan(scan.id, Path(room)), place, unit)
    elif scan.path.is_dir():
        write_volume(read_volume(scan.path, unit=unit), place.with_name(place.name + ".nii.gz"))
    else:
        ending = next(ending for ending in ENDINGS if scan.path.name.lower().endswith(ending))
        link(scan.path, place.with_name(place.name + ending))
