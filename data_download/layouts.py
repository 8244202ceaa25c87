"""A set's own folders turned into source/ and target/ folders of NIfTI files, as `mr2ct prepare` reads them."""

import os
import shutil
from pathlib import Path

from mr2ct_lib.files import InputError, atomic, write_json
from mr2ct_lib.images.volumes import read_volume, write_volume

Pairs = dict[str, tuple[Path, Path]]  # patient -> (source scan, target scan)


def arrange(layout: str, folder: Path) -> list[Path]:
    """Return the cohort folders made below `folder`/cohort from the scans of one set; empty when a needed part is missing.

    `layout` is "ixi" (PD to T2), "synthrad2023" (MR to CT, one cohort a region) or "chaos" (MR to CT). Where both scans of a
    patient exist, every tenth patient goes to `paired`, for the truth; the others to `unpaired`, in turn as a source and as
    a target, so that no one trains both sides. Files are hard links where the disk allows, copies elsewhere; CHAOS's DICOM is
    written as NIfTI.

    Raises InputError for an unknown layout or a scan that cannot be read.
    """
    if layout == "chaos":
        return _arrange_chaos(folder)
    if layout == "ixi":
        groups = {"": ixi_pairs(folder)}
    elif layout == "synthrad2023":
        groups = {region: synthrad_pairs(folder, region) for region in ("brain", "pelvis")}
    else:
        raise InputError(f"layout: {layout!r}; expected one of ixi, synthrad2023, chaos. Choose one of them")
    return [made for region, pairs in groups.items() if pairs for made in _write(folder / "cohort" / region, pairs)]


def ixi_pairs(folder: Path) -> Pairs:
    """PD and T2 of the same person: PD/IXI002-Guys-0828-PD.nii.gz and T2/IXI002-Guys-0828-T2.nii.gz."""
    pairs = {}
    for source in sorted(folder.glob("PD/**/*-PD.nii.gz")):
        patient = source.name.removesuffix("-PD.nii.gz")
        if targets := list(folder.glob(f"T2/**/{patient}-T2.nii.gz")):
            pairs[patient] = (source, targets[0])
    return pairs


def synthrad_pairs(folder: Path, region: str) -> Pairs:
    """MR and CT on one grid: Task1/<region>/<case>/mr.nii.gz and ct.nii.gz."""
    scans = sorted(folder.glob(f"Task1/{region}/*/mr.nii.gz"))
    return {mr.parent.name: (mr, mr.with_name("ct.nii.gz")) for mr in scans if mr.with_name("ct.nii.gz").exists()}


def split(patients: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Return who is a source and who a target in `unpaired` and `paired`; nobody is in both cohorts.

    >>> split(list("abcd"))
    {'paired': (['a'], ['a']), 'unpaired': (['b', 'd'], ['c'])}
    """
    paired = patients[::10]
    rest = [patient for patient in patients if patient not in paired]
    return {"paired": (paired, paired), "unpaired": (rest[::2], rest[1::2])}


def _write(out: Path, pairs: Pairs) -> list[Path]:
    made = []
    for cohort, patients in split(list(pairs)).items():
        if not patients[0] or not patients[1]:  # too few scans: no such cohort
            continue
        with atomic(out / cohort) as temporary:
            for domain, (name, chosen) in enumerate(zip(("source", "target"), patients, strict=True)):
                (temporary / name).mkdir(parents=True)
                for patient in chosen:
                    _place(pairs[patient][domain], temporary / name / f"{patient}.nii.gz")
            write_json({"paired": cohort == "paired"}, temporary / "cohort.json")
        made.append(out / cohort)
    return made


def _place(scan: Path, place: Path) -> None:
    try:
        os.link(scan.resolve(), place)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(scan, place)


def _arrange_chaos(folder: Path) -> list[Path]:
    """CT/<id>/DICOM_anon and the in-phase T1 of MR/<id>: a gradient echo, as the second paper's T2*; other people on each side."""
    scans = {
        "source": sorted(folder.glob("**/MR/*/T1DUAL/DICOM_anon/InPhase")),
        "target": sorted(folder.glob("**/CT/*/DICOM_anon")),
    }
    if not all(scans.values()):
        return []
    out = folder / "cohort" / "unpaired"
    with atomic(out) as temporary:
        for domain, modality, at, unit in (("source", "mr", -4, "a.u."), ("target", "ct", -2, "HU")):
            for series in scans[domain]:
                place = temporary / domain / f"{modality}{series.parts[at]}.nii.gz"
                place.parent.mkdir(parents=True, exist_ok=True)
                write_volume(read_volume(series, unit=unit), place)
    return [out]
