"""Laws of the adapters, on miniatures of the layouts that the sets are published in."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from data_download import __main__ as command
from data_download import layouts, names, registry
from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import read_cohort
from mr2ct_lib.images.volumes import read_volume
from mr2ct_lib.patients.tissues import tissue_of

CHANCE = np.random.default_rng(0)
SHAPE = (6, 5, 4)


def nifti(path: Path, low: int = 0) -> None:
    """A scan: CT when `low` is -1000, else MR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = CHANCE.integers(0, 100, SHAPE).astype(np.int16)
    array[0] = low
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def label_map(path: Path, **voxels: tuple[int, int, int]) -> None:
    """A label map with one voxel per value: v7=(0, 1, 2)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(SHAPE, np.int16)
    for value, voxel in voxels.items():
        array[voxel] = int(value[1:])
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def mha(path: Path, low: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = CHANCE.integers(0, 100, SHAPE).astype(np.int16)
    array[0] = low
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def dicom(folder: Path, low: int, modality: str, first: int = 1, slices: int = 4) -> None:
    """A series whose file names run from the head down, against the positions."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(slices):
        array = np.full((5, 6), 10 * (number + 1), np.int16)
        array[0] = low
        image = sitk.GetImageFromArray(array[None])
        uid = f"1.2.3.{abs(hash(str(folder))) % 10**9}"
        place = {"0020|0032": f"0\\0\\{-2 * number}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(number + 1)}
        series = {"0008|0060": modality, "0020|000e": uid, "0020|000d": uid + ".1", "0008|0018": f"{uid}.2.{number}"}
        for tag, value in (place | series | {"0028|1052": "0", "0028|1053": "1"}).items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IMG-0004-{first + number:05d}.dcm"))
        writer.Execute(image)


def picture(path: Path, *grey: int) -> None:
    """A picture of one slice, with one pixel per grey value in its second row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((5, 6), np.uint8)
    array[1, : len(grey)] = grey
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def listing(cohort: Path) -> dict[str, list[str]]:
    sides = (cohort / side for side in ("source", "target", "labels"))
    return {side.name: sorted(p.name for p in side.iterdir()) for side in sides if side.is_dir()}


def values(path: Path) -> dict[int, tuple[int, ...]]:
    """The place of each label, as (i, j, k) in the file; the last one where there are several."""
    array = np.asarray(nib.load(path).dataobj)
    return {int(value): tuple(int(i) for i in np.argwhere(array == value)[-1]) for value in np.unique(array) if value}


def only(made: list[Path]) -> Path:
    (cohort,) = made
    return cohort


def test_the_split_does_not_change_when_a_case_is_added():
    people = [f"1PA{number:03d}" for number in range(60)]
    before, after = layouts.split(people[1::2]), layouts.split(people)
    for cohort in before:
        for side in (0, 1):
            assert set(before[cohort][side]) == set(after[cohort][side]) & set(people[1::2])
    source, target = after["unpaired"]
    paired = after["paired"][0]
    assert sorted(source + target + paired) == people and min(len(source), len(target)) > 15 and len(paired) > 1


def test_ixi_pairs_by_person(tmp_path):
    people = [f"IXI{number:03d}-Guys-0828" for number in range(40)]
    for person in people:
        nifti(tmp_path / f"PD/{person}-PD.nii.gz")
        if person != people[7]:
            nifti(tmp_path / f"T2/{person}-T2.nii.gz")
    paired, unpaired = (listing(place) for place in layouts.arrange("ixi", tmp_path))
    assert paired["source"] == paired["target"] != []
    everyone = unpaired["source"] + unpaired["target"] + paired["source"]
    assert sorted(everyone) == [f"{person}.nii.gz" for person in people if person != people[7]]
    assert read_cohort(tmp_path / "cohort/paired").paired and not read_cohort(tmp_path / "cohort/unpaired").paired


def test_a_pair_of_which_one_scan_cannot_be_read_is_left_out_whole(tmp_path, capsys):
    for id_ in ("p1", "p10"):
        nifti(tmp_path / f"{id_}.nii.gz")
    (tmp_path / "empty").mkdir()
    files = {id_: tmp_path / f"{id_}.nii.gz" for id_ in ("p1", "p10")}
    sides = [[layouts.Scan(*item) for item in side.items()] for side in (files, files | {"p1": tmp_path / "empty"})]
    out = layouts._write(tmp_path / "cohort", tuple(sides), {}, paired=True)
    assert listing(out) == {"source": ["p10.nii.gz"], "target": ["p10.nii.gz"]}
    with pytest.raises(InputError, match="no scan can be used"):
        layouts._write(tmp_path / "none", (sides[0][:1], sides[1][:1]), {}, paired=True)


@pytest.mark.parametrize(
    ("layout", "top", "groups", "write", "ending"),
    [
        ("synthrad2023", "Task1", {"brain": "brain", "pelvis": "pelvis"}, nifti, ".nii.gz"),
        (
            "synthrad2025",
            "synthRAD2025_Task1_Train/Task1",
            {"abdomen": "AB", "head-neck": "HN", "thorax": "TH"},
            mha,
            ".mha",
        ),
    ],
    ids=["2023", "2025"],
)
def test_synthrad_makes_cohorts_per_region(tmp_path, layout, top, groups, write, ending):
    for short in groups.values():
        for case in range(30):
            for kind, low in (("mr", 0), ("ct", -1000), ("mask", 0)):
                write(tmp_path / top / short / f"1{short}A{case:03d}" / f"{kind}{ending}", low)
    (tmp_path / top / "overview").mkdir()
    made = layouts.arrange(layout, tmp_path)
    assert {place.parent.name for place in made} == set(groups) and len(made) == 2 * len(groups)
    for place in made:
        cohort = read_cohort(place)
        assert cohort.paired == (place.name == "paired") and all(
            str(p).endswith(ending) for p in cohort.source.values()
        )
        assert cohort.paired or not set(cohort.source) & set(cohort.target)


def test_chaos_labels_follow_the_file_names(tmp_path):
    mr, ct = tmp_path / "Train_Sets/MR/1/T1DUAL", tmp_path / "Train_Sets/CT/2"
    dicom(mr / "DICOM_anon/InPhase", 0, "MR", first=2)
    dicom(mr / "DICOM_anon/OutPhase", 0, "MR")
    dicom(ct / "DICOM_anon", -1000, "CT")
    for number in range(4):
        picture(mr / f"Ground/IMG-0004-{number:05d}.png", *([63, 126, 189, 252] if number == 1 else []))
        picture(ct / f"Ground/liver_GT_{number:03d}.png", *([255] if number == 3 else []))
    cohort = only(layouts.arrange("chaos", tmp_path))
    both = ["ct2.nii.gz", "mr1.nii.gz"]
    assert listing(cohort) == {"source": both[1:], "target": both[:1], "labels": both}
    organs = {"0": "background", "1": "liver", "2": "kidney_right", "3": "kidney_left", "4": "spleen"}
    assert json.loads((cohort / "names.json").read_text()) == organs
    scan, labels = read_volume(cohort / "source/mr1.nii.gz"), read_volume(cohort / "labels/mr1.nii.gz", "label")
    assert np.allclose(scan.affine, labels.affine) and scan.array.shape == labels.array.shape
    assert set(scan.array[labels.array > 0]) == {20.0} and set(labels.array[labels.array > 0]) == {1, 2, 3, 4}
    scan, labels = read_volume(cohort / "target/ct2.nii.gz"), read_volume(cohort / "labels/ct2.nii.gz", "label")
    assert set(scan.array[labels.array > 0]) == {40.0} and labels.array.sum() == 1
    assert set(read_cohort(cohort).labels) == {"ct2", "mr1"}


def test_chaos_scans_whose_pictures_do_not_fit_are_left_out(tmp_path, capsys):
    for number in (1, 2, 3):
        dicom(tmp_path / f"CT/{number}/DICOM_anon", -1000, "CT")
        for slice_ in range(4 if number != 2 else 3):
            picture(tmp_path / f"CT/{number}/Ground/liver_GT_{slice_:03d}.png", 255)
    (tmp_path / "CT/3/Ground/liver_GT_000.png").write_bytes(b"no picture")
    assert listing(only(layouts.arrange("chaos", tmp_path)))["target"] == ["ct1.nii.gz"]
    output = capsys.readouterr().out
    assert "left out: ct2: " in output and "holds 3 pictures for 4 slices" in output
    assert "left out: ct3: " in output and "expected PNG of one size" in output


def test_totalsegmentator_masks_become_one_map_with_the_same_numbers_in_ct_and_mr(tmp_path, capsys):
    for kind, low in (("ct", -1000), ("mri", 0)):
        nifti(tmp_path / f"{kind}/s0001/{kind}.nii.gz", low)
        for structure, voxel in {"hip_left": (1, 1, 1), "sacrum": (2, 2, 2), "tail": (3, 3, 3)}.items():
            label_map(tmp_path / f"{kind}/s0001/segmentations/{structure}.nii.gz", v1=voxel)
    label_map(tmp_path / "mri/s0001/segmentations/intervertebral_discs.nii.gz", v1=(4, 4, 3))
    ct, mr = (only(layouts.arrange("totalsegmentator", tmp_path / kind)) for kind in ("ct", "mri"))
    assert listing(ct) == {"source": [], "target": ["ct_s0001.nii.gz"], "labels": ["ct_s0001.nii.gz"]}
    assert listing(mr) == {"source": ["mr_s0001.nii.gz"], "target": [], "labels": ["mr_s0001.nii.gz"]}
    known = json.loads((ct / "names.json").read_text())
    assert known == json.loads((mr / "names.json").read_text()) and known["77"] == "hip_left"
    bones = {77: (1, 1, 1), 25: (2, 2, 2)}
    assert values(ct / "labels/ct_s0001.nii.gz") == bones
    assert values(mr / "labels/mr_s0001.nii.gz") == bones | {121: (4, 4, 3)} and known["121"] == "intervertebral_discs"
    assert "left out of the label maps: tail" in capsys.readouterr().out


def test_amos_sorts_by_number_and_keeps_what_is_labelled(tmp_path, capsys):
    for part, numbers in {"Tr": (1, 507), "Va": (8, 600), "Ts": (9, 601)}.items():
        for number in numbers:
            nifti(tmp_path / f"amos22/images{part}/amos_{number:04d}.nii.gz", -1000 if number < 500 else 0)
            if part != "Ts":
                label_map(tmp_path / f"amos22/labels{part}/amos_{number:04d}.nii.gz", v8=(1, 2, 3))
    (tmp_path / "__MACOSX/amos22/imagesTr").mkdir(parents=True)
    (tmp_path / "__MACOSX/amos22/imagesTr/._amos_0001.nii.gz").write_bytes(b"junk")
    cohort = only(layouts.arrange("amos22", tmp_path))
    source, target = ["amos_0507.nii.gz", "amos_0600.nii.gz"], ["amos_0001.nii.gz", "amos_0008.nii.gz"]
    assert listing(cohort) == {"source": source, "target": target, "labels": target + source}
    assert capsys.readouterr().out.count(": 1 scan without labels") == 2
    assert json.loads((cohort / "names.json").read_text())["8"] == "aorta" and len(read_cohort(cohort).labels) == 4


def test_ctpelvic1k_is_ct_with_four_bones(tmp_path):
    nifti(tmp_path / "data/CTPelvic1K_dataset6_data/dataset6_CLINIC_0001_data.nii.gz", -1000)
    mask = "dataset6_CLINIC_0001_mask_4label.nii.gz"
    label_map(tmp_path / "masks/ipcai2021_dataset6_Anonymized" / mask, v2=(1, 2, 3))
    cohort = only(layouts.arrange("ctpelvic1k", tmp_path))
    name = "dataset6_CLINIC_0001.nii.gz"
    assert listing(cohort) == {"source": [], "target": [name], "labels": [name]}
    assert json.loads((cohort / "names.json").read_text())["2"] == "hip_left"
    assert values(cohort / "labels" / name) == {2: (1, 2, 3)}


def arranged(name: str, folder: Path) -> str:
    run = CliRunner().invoke(command.app, ["arrange", name, str(folder)])
    assert run.exit_code == 0, run.output
    return run.output


def test_mm_whs_by_hand(tmp_path):
    for kind, low in (("mr", 0), ("ct", -1000)):
        nifti(tmp_path / f"my hearts/{kind}_train/{kind}_train_1001_image.nii.gz", low)
        label_map(tmp_path / f"my hearts/{kind}_train/{kind}_train_1001_label.nii.gz", v500=(1, 1, 1))
    output = arranged("mm-whs", tmp_path / "my hearts")
    cohort = tmp_path / "my hearts/cohort/unpaired"
    assert f"next: mr2ct prepare '{cohort}' --out 'prepared/my hearts/cohort/unpaired'" in output
    assert listing(cohort)["labels"] == ["ct_train_1001.nii.gz", "mr_train_1001.nii.gz"]
    assert json.loads((cohort / "names.json").read_text())["500"] == "left_ventricle" and read_cohort(cohort).labels


def test_the_folder_may_be_the_current_one(tmp_path, monkeypatch):
    nifti(tmp_path / "basePart/abc/MR_StorT2/image.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert "then: mr2ct prepare cohort/unpaired --out prepared/cohort/unpaired" in arranged("lund-probe", Path("."))
    assert not list(tmp_path.rglob(".*"))


def test_mr_of_the_hip_by_hand_says_that_ct_is_missing(tmp_path):
    nifti(tmp_path / "data/semantic_MRs_anon/Case_004_Week0_LFOV.nii.gz")
    label_map(tmp_path / "data/semantic_labels_anon/Case_004_Week0_SEMANTIC_LFOV.nii.gz", v5=(1, 1, 1))
    output = arranged("csiro-hipmri", tmp_path)
    assert f"put CT scans into {tmp_path}/cohort/unpaired/target, which is empty, then: mr2ct prepare" in output
    name = ["Case_004_Week0.nii.gz"]
    assert listing(tmp_path / "cohort/unpaired") == {"source": name, "target": [], "labels": name}


def test_lund_probe_gives_mr_only_since_its_ct_is_synthetic(tmp_path):
    nifti(tmp_path / "basePart/abc/MR_StorT2/image.nii.gz")
    nifti(tmp_path / "basePart/abc/sCT/image.nii.gz", -1000)
    arranged("lund-probe", tmp_path)
    assert listing(tmp_path / "cohort/unpaired") == {"source": ["abc.nii.gz"], "target": []}


def test_pelvic_reference_takes_the_longest_series(tmp_path):
    study = tmp_path / "Pelvic-Reference-Data/Pelvic-Ref-001/study"
    dicom(study / "long", -1000, "CT")
    dicom(study / "scout", -1000, "CT", slices=2)
    for path in (study / "long").iterdir():
        path.rename(path.with_suffix(".DCM"))
    arranged("pelvic-reference", tmp_path)
    assert listing(tmp_path / "cohort/unpaired") == {"source": [], "target": ["Pelvic-Ref-001.nii.gz"]}
    assert nib.load(tmp_path / "cohort/unpaired/target/Pelvic-Ref-001.nii.gz").shape == (6, 5, 4)


def test_gold_atlas_takes_the_series_of_a_folder_by_what_they_are(tmp_path, capsys):
    """A patient's files lie in one folder; T1 and T2 each meet the CT that was deformed to them, not the other CT."""
    for patient in ("1_01_P", "3_04_P", "2_03_P"):
        kinds = {"T1 TRA": "MR", "t2_tse": "MR", "Pelvis": "CT", "Deformed CT": "CT", "T2 short": "MR"}
        for number, (described, modality) in enumerate(kinds.items()):
            if patient == "2_03_P" and described == "Deformed CT":
                continue
            low = {"MR": 0, "CT": -1000}[modality] - ("Deformed" in described)
            dicom(tmp_path / "series", low, modality, slices=2 if "short" in described else 4)
            (tmp_path / patient).mkdir(exist_ok=True)
            for path in sorted((tmp_path / "series").iterdir()):
                image = pydicom.dcmread(path)
                image.SeriesDescription, image.SeriesInstanceUID = described, f"1.2.3.{number}"
                image.save_as(tmp_path / patient / f"{modality}{number}.{path.name}")
                path.unlink()
            (tmp_path / "series").rmdir()
        (tmp_path / patient / "read me.txt").write_text("no image")
    made = layouts.arrange("gold-atlas", tmp_path)
    assert {place.parent.name for place in made} == {"t1", "t2"}
    for kind in ("t1", "t2"):
        scans = [p for place in made if place.parent.name == kind for p in place.glob("*/*.nii.gz")]
        assert {path.name for path in scans} <= {"1_01_P.nii.gz", "3_04_P.nii.gz"} and scans
        assert all(nib.load(path).shape == (6, 5, 4) for path in scans)
        assert {read_volume(p).array.min() for p in scans if p.parent.name == "target"} <= {-1001.0}
    assert "only one of the two scans is there: 2_03_P" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.parametrize("change", [str.upper, str.swapcase], ids=["upper", "swapped"])
@pytest.mark.parametrize(
    ("layout", "scans", "labels"),
    [
        ("mm-whs", {"mr_train/mr_train_1_image.nii.gz": 0}, {"mr_train/mr_train_1_label.nii.gz": 500}),
        ("synthrad2023", {"Task1/pelvis/1PA001/mr.nii.gz": 0, "Task1/pelvis/1PA001/ct.nii.gz": -1000}, {}),
        ("amos22", {"imagesTr/amos_0001.nii.gz": -1000}, {"labelsTr/amos_0001.nii.gz": 8}),
        ("totalsegmentator", {"s0001/ct.nii.gz": -1000}, {"s0001/segmentations/liver.nii.gz": 1}),
        ("ctpelvic1k", {"data/d6_0001_data.nii.gz": -1000}, {"masks/d6_0001_mask_4label.nii.gz": 2}),
        ("csiro-hipmri", {"semantic_MRs/C1_LFOV.nii.gz": 0}, {"semantic_labels/C1_SEMANTIC_LFOV.nii.gz": 5}),
        ("lund-probe", {"abc/MR_StorT2/image.nii.gz": 0}, {}),
        ("ixi", {"PD/IXI2-PD.nii.gz": 0, "T2/IXI2-T2.nii.gz": 0}, {}),
    ],
    ids=["mm-whs", "synthrad", "amos", "totalsegmentator", "ctpelvic1k", "hipmri", "lund", "ixi"],
)
def test_names_in_capitals_are_read_with_their_labels(tmp_path, layout, scans, labels, change):
    for name, low in scans.items():
        nifti(tmp_path / name, low)
    for name, value in labels.items():
        label_map(tmp_path / name, **{f"v{value}": (1, 1, 1)})
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.rename(path.with_name(change(path.name)))
    found = [listing(place) for place in layouts.arrange(layout, tmp_path)]
    assert sum(len(one["source"]) + len(one["target"]) for one in found) >= 1
    assert sum(len(one.get("labels", [])) for one in found) == len(labels)
    assert all(name.endswith(".nii.gz") for one in found for side in one.values() for name in side)


def test_two_scans_of_one_name_are_refused_and_neither_is_touched(tmp_path):
    """A copy of a set inside its folder: a hard link of the first must never be written through by the second."""
    for copy in ("a", "b"):
        nifti(tmp_path / "total" / copy / "s0001/ct.nii.gz", -1000)
        nifti(tmp_path / "synth" / copy / "Task1/brain/1BA001/mr.nii.gz")
        nifti(tmp_path / "synth" / copy / "Task1/brain/1BA001/ct.nii.gz", -1000)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    for layout, folder, name in (("totalsegmentator", "total", "ct_s0001"), ("synthrad2023", "synth", "1BA001")):
        with pytest.raises(InputError, match=f"a/.* and .*b/.*both called {name}"):
            layouts.arrange(layout, tmp_path / folder)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}


def test_who_has_one_scan_only_is_named(tmp_path, capsys):
    for number in range(1, 9):
        nifti(tmp_path / f"Task1/pelvis/1PA00{number}/mr.nii.gz")
        if number != 3:
            nifti(tmp_path / f"Task1/pelvis/1PA00{number}/ct.nii.gz", -1000)
    layouts.arrange("synthrad2023", tmp_path)
    assert "only one of the two scans is there: 1PA003" in "".join(capsys.readouterr())


def test_a_scan_that_cannot_be_read_is_left_out_and_named(tmp_path, capsys):
    for number in (1, 2):
        nifti(tmp_path / f"s000{number}/ct.nii.gz", -1000)
        label_map(tmp_path / f"s000{number}/segmentations/liver.nii.gz", v1=(1, 1, 1))
    (tmp_path / "s0002/segmentations/liver.nii.gz").write_bytes(b"no image")
    cohort = only(layouts.arrange("totalsegmentator", tmp_path))
    assert listing(cohort)["target"] == listing(cohort)["labels"] == ["ct_s0001.nii.gz"]
    assert "left out: ct_s0002: " in capsys.readouterr().out
    (tmp_path / "s0001/labels.nii.gz").unlink()
    (tmp_path / "s0001/segmentations/liver.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="no scan can be used.*liver.nii.gz: is no readable mask"):
        layouts.arrange("totalsegmentator", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gold-atlas", "holds no scans of gold-atlas; expected <1_01_P>/: DICOM files"),
        ("hip-labels", "label maps, which `mr2ct cohort --labels` reads"),
        ("mm-whs", "holds no scans of mm-whs; expected mr_train_1001_image.nii.gz"),
        ("nonsense", "expected one of ixi"),
    ],
    ids=["empty", "label-maps", "nothing-there", "unknown"],
)
def test_what_cannot_be_arranged_is_said(tmp_path, name, words):
    run = CliRunner().invoke(command.app, ["arrange", name, str(tmp_path)])
    assert isinstance(run.exception, InputError)
    with pytest.raises(InputError, match=words):
        raise run.exception
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_label_map_sets_are_known_tissues(real_data):
    for known in (names.HIP, names.HEAD):
        assert all(tissue_of(name) for name in known.values()) and len(set(known.values())) == len(known)
    for path, known in (("hip_labels/hip_labels", names.HIP), ("brain/head_labels", names.HEAD)):
        present = set(np.unique(np.asarray(nib.load(real_data / f"{path}.nii.gz").dataobj)).astype(int)) - {0}
        assert present <= set(known)
    assert names.as_json(names.HIP) == json.loads((real_data / "hip_labels/names.json").read_text())


def test_every_layout_of_the_registry_exists_and_says_what_it_looks_for():
    used = {data.layout for data in registry.DATASETS.values() if data.layout}
    assert used == set(layouts.LAYOUTS)
    assert all("/" in layouts.expected(layout) or "_" in layouts.expected(layout) for layout in used)
