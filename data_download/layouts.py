"""A set's own folders turned into cohorts, as `mr2ct prepare` reads them: source/, target/, labels/ and names.json."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tqdm.auto import tqdm

from data_download import names
from mr2ct_lib.files import InputError, atomic, counted, write_json
from mr2ct_lib.images.dicom import open_series
from mr2ct_lib.images.volumes import read_volume, write_volume

ENDINGS = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class Scan:
    """One scan of a set: a file or a DICOM folder. `labels` writes its label map to the path that it is given."""

    id: str
    path: Path
    labels: Callable[[Path], None] | None = None


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
    return {"": _both(pd, t2)}


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
        Scan(f"mr{series.parts[-4]}", series, _painted(series, series.parents[1] / "Ground", 63))
        for series in sorted(folder.glob("**/MR/*/T1DUAL/DICOM_anon/InPhase"))
    ]
    target = [
        Scan(f"ct{series.parts[-2]}", series, _painted(series, series.parent / "Ground", None))
        for series in sorted(folder.glob("**/CT/*/DICOM_anon"))
    ]
    return {"": (source, target)}


def totalsegmentator(folder: Path) -> dict[str, Sides]:
    """s0001/ct.nii.gz or s0001/mri.nii.gz, and one mask per structure in s0001/segmentations"""
    found = {mask.name.removesuffix(".nii.gz") for mask in folder.glob("**/segmentations/*.nii.gz")}
    if unknown := sorted(found - set(names.TOTALSEGMENTATOR.values())):
        tqdm.write(f"structures without a number here are left out of the label maps: {', '.join(unknown)}")
    sides = tuple(
        [
            Scan(f"{kind}_{path.parent.name}", path, _merged(path.parent))
            for path in sorted(folder.glob(f"**/{file}.nii.gz"))
        ]
        for kind, file in (("mr", "mri"), ("ct", "ct"))
    )
    return {"": sides}


def amos22(folder: Path) -> dict[str, Sides]:
    """imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz, the same with Va; numbers from 500 on are MR"""
    sides: Sides = ([], [])
    for path in sorted(folder.glob("**/images*/amos_[0-9][0-9][0-9][0-9].nii.gz")):
        labels = path.parent.with_name(path.parent.name.replace("images", "labels")) / path.name
        id_ = path.name.removesuffix(".nii.gz")
        sides[0 if int(id_.removeprefix("amos_")) >= 500 else 1].append(Scan(id_, path, _copied(labels)))
    return {"": sides}


def ctpelvic1k(folder: Path) -> dict[str, Sides]:
    """dataset6_CLINIC_0001_data.nii.gz and dataset6_CLINIC_0001_mask_4label.nii.gz"""
    masks = _named(folder, "**/*_mask_4label.nii.gz", "_mask_4label.nii.gz")
    scans = _named(folder, "**/*_data.nii.gz", "_data.nii.gz")
    return {"": ([], [Scan(id_, path, _copied(masks.get(id_))) for id_, path in scans.items()])}


def mmwhs(folder: Path) -> dict[str, Sides]:
    """mr_train_1001_image.nii.gz and ct_train_1001_image.nii.gz with _label.nii.gz beside each"""
    sides = tuple(
        [
            Scan(id_, path, _copied(path.with_name(f"{id_}_label.nii.gz")))
            for id_, path in _named(folder, f"**/{kind}_train_*_image.nii.gz", "_image.nii.gz").items()
        ]
        for kind in ("mr", "ct")
    )
    return {"": sides}


def hipmri(folder: Path) -> dict[str, Sides]:
    """semantic_MRs_anon/Case_004_Week0_LFOV.nii.gz and semantic_labels_anon/Case_004_Week0_SEMANTIC_LFOV.nii.gz"""
    scans = _named(folder, "**/semantic_MRs*/*_LFOV.nii.gz", "_LFOV.nii.gz")
    maps = folder.glob("**/semantic_labels*/*_SEMANTIC*.nii.gz")
    labels = {path.name.partition("_SEMANTIC")[0]: path for path in maps}
    return {"": ([Scan(id_, path, _copied(labels.get(id_))) for id_, path in scans.items()], [])}


def lund_probe(folder: Path) -> dict[str, Sides]:
    """<patient>/MR_StorT2/image.nii.gz; the CT of this set is synthetic, so it is no target"""
    scans = sorted(folder.glob("**/MR_StorT2/image.nii.gz"))
    return {"": ([Scan(path.parts[-3], path) for path in scans], [])}


def pelvic_reference(folder: Path) -> dict[str, Sides]:
    """Pelvic-Ref-001/<study>/<series>/1-001.dcm; of several series the longest is taken"""
    scans = []
    for patient in sorted(path for path in folder.glob("**/Pelvic-Ref-*") if path.is_dir()):
        places = [place for place in (patient, *patient.rglob("*")) if place.is_dir()]
        series = {place: sum(path.is_file() for path in place.iterdir()) for place in places}
        longest = max(series, key=series.__getitem__)
        if series[longest] > 1:
            scans.append(Scan(patient.name, longest))
    return {"": ([], scans)}


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
    return _once([(path.name.removesuffix(ending), path) for path in sorted(folder.glob(pattern))])


def _both(source: dict[str, Path], target: dict[str, Path]) -> Sides:
    """The scans of people who have both; a message names the others."""
    ids = [id_ for id_ in source if id_ in target]
    if lone := sorted(source.keys() ^ target.keys()):
        tqdm.write(f"left out, since only one of the two scans is there: {', '.join(lone)}")
    return [Scan(id_, source[id_]) for id_ in ids], [Scan(id_, target[id_]) for id_ in ids]


def _folders(folder: Path, pattern: str, ending: str) -> Sides:
    mr, ct = (sorted(folder.glob(f"{pattern}/{kind}{ending}")) for kind in ("mr", "ct"))
    return _both(*(_once([(path.parent.name, path) for path in side]) for side in (mr, ct)))


def _chosen(source: list[Scan], target: list[Scan], ids: tuple[list[str], list[str]]) -> Sides:
    return [scan for scan in source if scan.id in ids[0]], [scan for scan in target if scan.id in ids[1]]


def _write(out: Path, sides: Sides, known: dict[int, str], paired: bool) -> Path:
    failures, written = [], 0
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
                    _place(scan.path, temporary / domain / scan.id, unit)
                    written += 1
                except InputError as error:
                    (temporary / "labels" / f"{scan.id}.nii.gz").unlink(missing_ok=True)
                    failures.append(f"{scan.id}: {error}")
        if not written:
            raise InputError(f"{out}: no scan can be used; expected at least one. The first: {failures[0]}")
        write_json({"paired": paired}, temporary / "cohort.json")
        if (temporary / "labels").is_dir():
            write_json(names.as_json(known), temporary / "names.json")
    for failure in failures:
        tqdm.write(f"left out: {failure}")
    return out


def _place(scan: Path, place: Path, unit: str) -> None:
    if scan.is_dir():
        write_volume(read_volume(scan, unit=unit), place.with_name(place.name + ".nii.gz"))
        return
    ending = next(ending for ending in ENDINGS if scan.name.endswith(ending))
    _link(scan, place.with_name(place.name + ending))


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(file, place)


def _copied(labels: Path | None) -> Callable[[Path], None] | None:
    return (lambda place: _link(labels, place)) if labels and labels.exists() else None


def _merged(case: Path) -> Callable[[Path], None] | None:
    """One label map of a case's masks. It is kept beside them, since merging takes seconds per case."""
    if not (case / "segmentations").is_dir():
        return None

    def write(place: Path) -> None:
        kept = case / "labels.nii.gz"
        if not kept.exists():
            _merge(case / "segmentations", kept)
        _link(kept, place)

    return write


def _merge(folder: Path, place: Path) -> None:
    merged = first = None
    for value, name in names.TOTALSEGMENTATOR.items():
        path = folder / f"{name}.nii.gz"
        if not path.exists():
            continue
        try:
            image = nib.load(path)
            mask = np.asanyarray(image.dataobj) > 0
        except Exception as error:  # nibabel, gzip and zlib raise many kinds for a damaged file
            raise InputError(f"{path}: is no readable mask ({error}); expected NIfTI. Download it again") from error
        if merged is None:
            merged, first = np.zeros(mask.shape, np.uint8), image
        if mask.shape != merged.shape:
            raise InputError(f"{path}: has shape {mask.shape}; expected {merged.shape} as before. Download it again")
        merged[mask] = value
    if merged is None:
        raise InputError(f"{folder}: holds no mask that is known; expected one per structure. Download the case again")
    header = first.header.copy()
    header.set_data_dtype(np.uint8)
    with atomic(place) as temporary:
        nib.save(nib.Nifti1Image(merged, first.affine, header), temporary)


def _painted(series: Path, pictures: Path, step: int | None) -> Callable[[Path], None] | None:
    """A label map from one PNG per slice, in the order of the DICOM files' names; grey value / `step` is the label."""
    if not pictures.is_dir():
        return None

    def write(place: Path) -> None:
        grey, scan = sorted(pictures.glob("*.png")), open_series(series)
        files = sorted(image.path for image in scan.slices)
        if len(grey) != len(files):
            raise InputError(
                f"{pictures}: holds {len(grey)} pictures for {len(files)} slices; expected one each. Download it again"
            )
        try:
            painted = [sitk.ReadImage(str(grey[files.index(image.path)])) for image in scan.slices]
            stack = np.stack([sitk.GetArrayFromImage(picture) for picture in painted]).T
        except (RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[-1]
            raise InputError(
                f"{pictures}: cannot be read ({why}); expected PNG of one size. Download it again"
            ) from error
        if stack.shape != scan.shape:
            raise InputError(f"{pictures}: shape {stack.shape}; expected {scan.shape} as {series}. Download it again")
        labels = np.rint(stack / step) if step else stack > 0
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), scan.affine), place)

    return write
