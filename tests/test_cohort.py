"""Cohorts on disk: what decides the bits, what is kept, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mr2ct_lib.files import LOCK, InputError, atomic
from mr2ct_lib.images.folders import read_cohort
from mr2ct_lib.images.prepare import prepare
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.patients import cohort, scanner
from mr2ct_lib.patients.cohort import make_cohort


class Spheres:
    """A patient of muscle with a ball of fat, whose sizes follow the seed."""

    names = {0: "background", 1: "muscle", 2: "subcutaneous_fat", 3: "csf"}

    def __init__(self, seed, press=0.0):
        self.seed, self.press = seed, press
        self.radius = 60 + 10 * np.random.default_rng(seed).random()
        self.landmarks = {"centre": (1.0, 2.0, 3.0)}

    def paint(self, shape, affine):
        x, y, z = (affine[a, 3] + affine[a, a] * np.arange(shape[a]) for a in range(3))
        y = y + self.press * np.cos(x / 40)[:, None]
        distance = np.sqrt(x[:, None, None] ** 2 + y.reshape(-1, shape[1])[..., None] ** 2 + (z[None, None] * 0.4) ** 2)
        return ((distance < self.radius).astype(np.uint8) + (distance < 0.5 * self.radius)).astype(np.uint8)


@pytest.fixture
def spheres(monkeypatch, small_grids):
    for name, anatomy in scanner.ANATOMIES.items():
        pressed = 10.0 if anatomy.postures_differ else 0.0

        def patient(seed, domain, posture, pressed=pressed):
            return Spheres(seed, pressed if posture == "target" else 0.0)

        monkeypatch.setitem(scanner.ANATOMIES, name, replace(anatomy, patient=patient))


@pytest.fixture
def small_grids(monkeypatch):
    """Few voxels; other processes don't inherit that, so only with workers=1."""
    grids = {}
    for anatomy, spacing in (("hip", 12.0), ("head", 8.0), ("head_t1", 8.0), ("abdomen", 10.0)):
        grids[anatomy] = dict.fromkeys(("source", "target"), scanner.Grid((24, 24, 6), (spacing,) * 3, (2, 2, 1)))
    monkeypatch.setitem(scanner.PROFILES, "full", replace(scanner.PROFILES["full"], grids=grids))


def bits(folder):
    return {
        p.relative_to(folder).as_posix(): read_volume(p, "a.u.").array.tobytes()
        for p in sorted(folder.rglob("s*.nii.gz"))
    } | {
        p.relative_to(folder).as_posix(): read_volume(p, "a.u.").array.tobytes()
        for p in sorted(folder.rglob("[tp]*.nii.gz"))
    }


def test_unpaired_cohort(tmp_path, spheres):
    made = make_cohort("hip", tmp_path / "a", 2, seed=1, workers=1)
    assert list(made.source) == ["s0001", "s0002"] and list(made.target) == ["t0001", "t0002"]
    assert list(made.labels) == ["s0001", "s0002", "t0001", "t0002"] and not made.paired
    assert made.meta["domains"]["target"] == {"modality": "CT", "name": "CT", "unit": "HU"}
    assert made.meta["label_names"]["1"] == "muscle"
    centre = np.array(
        made.meta["patients"]["t0002"]["landmarks"]["centre"]
    )  # where the radiographer aimed, near the true landmark
    assert 0 < np.abs(centre - [1.0, 2.0, 3.0]).max() < 5 * 12
    ct = read_volume(made.target["t0002"])
    np.testing.assert_allclose((ct.affine @ [*(np.array(ct.array.shape) - 1) / 2, 1])[:3], centre, atol=1e-3)
    assert len({person["seed"] for person in made.meta["patients"].values()}) == 4
    ct = nib.load(made.target["t0001"])
    assert ct.get_data_dtype() == np.int16
    assert read_volume(made.target["t0001"]).unit == "HU"
    centre = made.meta["patients"]["t0001"]["landmarks"]["centre"]
    np.testing.assert_allclose((ct.affine @ [11.5, 11.5, 2.5, 1])[:3], centre, atol=1e-4)


def test_seed_decides(tmp_path, spheres):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_cohort("hip", tmp_path / name, 1, seed=seed, workers=1)
    a, b, c = (bits(tmp_path / name) for name in "abc")
    assert a == b and set(a) == set(c) and all(a[path] != c[path] for path in a if "labels" not in path)


def test_workers_do_not_change_bits(tmp_path, monkeypatch):
    make_cohort("head", tmp_path / "one", 1, seed=3, workers=1)
    make_cohort("head", tmp_path / "two", 1, seed=3, workers=2)
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


def test_interrupted_cohort_is_taken_up_again(tmp_path, spheres, monkeypatch):
    make_cohort("hip", tmp_path / "whole", 3, seed=1, paired=True, workers=1)
    make_patient, made = cohort.make_patient, []

    def stops_at_the_third(settings, folder, atlas, id_):
        if id_ == "p0003" and len(made) == 2:
            raise KeyboardInterrupt
        made.append(id_)
        return make_patient(settings, folder, atlas, id_)

    monkeypatch.setattr(cohort, "make_patient", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_cohort("hip", tmp_path / "part", 3, seed=1, paired=True, workers=1)
    with pytest.raises(InputError, match="unfinished"):
        read_cohort(tmp_path / "part")
    (tmp_path / "part" / "source" / ".p0003.nii.gz.k2x").mkdir()  # what SIGKILL leaves
    (tmp_path / "part" / "source" / ".p0003.nii.gz.k2x" / LOCK).touch()
    monkeypatch.setattr(
        cohort, "make_patient", lambda *arguments: made.append(arguments[3]) or make_patient(*arguments)
    )
    make_cohort("hip", tmp_path / "part", 3, seed=1, paired=True, workers=1)
    assert made == ["p0001", "p0002", "p0003"]  # finished patients were kept
    assert not list((tmp_path / "part").rglob(".*"))
    assert bits(tmp_path / "part") == bits(tmp_path / "whole")
    assert (tmp_path / "part" / "cohort.json").read_text() == (tmp_path / "whole" / "cohort.json").read_text()
    make_cohort("hip", tmp_path / "part", 4, seed=1, paired=True, workers=1)  # and a cohort may grow
    assert made[3:] == ["p0004"]


def test_half_written_files_of_a_run_that_is_alive_stay(tmp_path, spheres):
    make_cohort("hip", tmp_path / "a", 1, seed=1, paired=True, workers=1)
    with atomic(tmp_path / "a" / "source" / "p0002.nii.gz") as temporary:
        temporary.write_bytes(b"half")
        make_cohort("hip", tmp_path / "a", 2, seed=1, paired=True, workers=1)
        assert temporary.read_bytes() == b"half"


def ids(made):
    return [*made.source], [*made.target]


def test_a_cohort_grows_and_never_loses_a_patient(tmp_path, spheres):
    make_cohort("head", tmp_path / "a", (3, 1), seed=1, workers=1)
    before = (tmp_path / "a" / "cohort.json").read_text()
    for fewer, lost in (((1, 3), "s0002"), ((2, 4), "s0003"), (1, "s0002")):
        with pytest.raises(InputError, match=f"more than the . asked for, such as {lost}"):
            make_cohort("head", tmp_path / "a", fewer, seed=1, workers=1)
    assert (tmp_path / "a" / "cohort.json").read_text() == before
    grown = make_cohort("head", tmp_path / "a", (3, 2), seed=1, workers=1)
    assert ids(grown) == (["s0001", "s0002", "s0003"], ["t0001", "t0002"])
    grown = make_cohort("head", tmp_path / "a", (4, 3), seed=1, workers=1)
    assert ids(grown) == (["s0001", "s0002", "s0003", "s0004"], ["t0001", "t0002", "t0003"])


def test_patients_that_an_unfinished_growth_left_are_listed_once_they_are_asked_for(tmp_path, spheres, monkeypatch):
    make_cohort("hip", tmp_path / "a", (2, 1), seed=1, workers=1)
    make_patient = cohort.make_patient

    def fails(settings, folder, atlas, id_):
        if id_ == "t0002":
            raise RuntimeError("moved")
        make_patient(settings, folder, atlas, id_)

    monkeypatch.setattr(cohort, "make_patient", fails)
    with pytest.raises(InputError, match="t0002"):
        make_cohort("hip", tmp_path / "a", (3, 2), seed=1, workers=1)
    assert ids(make_cohort("hip", tmp_path / "a", (2, 1), seed=1, workers=1)) == (["s0001", "s0002"], ["t0001"])
    again = make_cohort("hip", tmp_path / "a", (3, 1), seed=1, workers=1)
    assert ids(again) == (["s0001", "s0002", "s0003"], ["t0001"])


@pytest.mark.parametrize("content", ["[]", '{"patients": []}', '{"settings": 3}'])
def test_a_cohort_json_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "cohort.json").write_text(content)
    with pytest.raises(InputError, match=r"cohort\.json: .*expected"):
        make_cohort("hip", tmp_path, 1, seed=1, workers=1)


def test_failed_patients_are_listed_with_their_reasons_and_the_others_kept(tmp_path, spheres, monkeypatch):
    make_patient = cohort.make_patient

    def fails_twice(settings, folder, atlas, id_):
        if id_ in ("s0002", "t0001"):
            raise RuntimeError(f"{id_} has moved")
        make_patient(settings, folder, atlas, id_)

    monkeypatch.setattr(cohort, "make_patient", fails_twice)
    with pytest.raises(InputError) as caught:
        make_cohort("hip", tmp_path / "a", 2, seed=1, workers=1)
    assert "2 of 4 patients failed" in str(caught.value)
    assert "s0002: RuntimeError: s0002 has moved" in str(caught.value) and "t0001:" in str(caught.value)
    assert {path.stem for path in (tmp_path / "a" / "patients").iterdir()} == {"s0001", "t0002"}
    monkeypatch.setattr(cohort, "make_patient", make_patient)
    assert make_cohort("hip", tmp_path / "a", 2, seed=1, workers=1).meta["complete"]


def test_a_terminated_cohort_leaves_no_process_and_no_hidden_folder(tmp_path):
    command = [sys.executable, "-m", "mr2ct_lib.cli", "cohort", "hip", "--patients", "20", "--out", str(tmp_path / "a")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = subprocess.Popen(command, start_new_session=True, **quiet)
    while not list((tmp_path / "a").glob("patients/*.json")) and program.poll() is None:
        time.sleep(0.02)
    program.terminate()
    assert program.wait(timeout=60) == 143
    with pytest.raises(ProcessLookupError):
        for _ in range(3000):  # a minute for the workers to end
            os.killpg(program.pid, 0)
            time.sleep(0.02)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_other_settings_are_refused(tmp_path, spheres):
    make_cohort("hip", tmp_path / "a", 2, seed=1, workers=1)
    before = (tmp_path / "a" / "cohort.json").read_text()
    for changed in ({"seed": 2}, {"paired": True, "seed": 1}, {"profile": "coarse", "seed": 1}):
        with pytest.raises(InputError, match=next(iter(changed))):
            make_cohort("hip", tmp_path / "a", 2, workers=1, **changed)
    with pytest.raises(InputError, match="more than"):
        make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="other files"):
        make_cohort("hip", tmp_path / "mine", 1, seed=1, workers=1)
    assert (tmp_path / "a" / "cohort.json").read_text() == before


def test_distorted_heads_hold_their_truth(tmp_path, spheres):
    plain = make_cohort("head", tmp_path / "plain", 1, seed=1, paired=True, workers=1)
    bent = make_cohort("head", tmp_path / "bent", 1, seed=1, paired=True, distort_target=True, workers=1)
    otherwise = make_cohort("head", tmp_path / "otherwise", 1, seed=1, paired=True, distort_target=3, workers=1)

    def load(made, kind):
        return read_volume(made.folder / kind / "p0001.nii.gz", "a.u.").array

    np.testing.assert_array_equal(load(plain, "source"), load(bent, "source"))
    assert np.abs(load(plain, "target") - load(bent, "target")).mean() > 0.05 * load(plain, "target").mean()
    assert np.abs(load(otherwise, "target") - load(bent, "target")).mean() > 0.05 * load(plain, "target").mean()
    np.testing.assert_array_equal(load(bent, "truth_source_to_target"), load(plain, "target"))  # T2 without distortion
    truth, labels = load(bent, "truth_target_to_source"), load(bent, "labels_target")
    assert ((truth > 0) == (labels > 0)).all()  # PD of the distorted head
    assert not (plain.folder / "truth_source_to_target").exists()


def test_abdomen_keeps_each_posture(tmp_path, spheres):
    made = make_cohort("abdomen", tmp_path / "a", 1, seed=1, paired=True, workers=1)
    volumes = {
        p.parent.name: read_volume(p) for p in made.folder.rglob("p0001.nii.gz") if "labels" not in p.parent.name
    }
    assert volumes["truth_source_to_target"].unit == "HU" and volumes["truth_target_to_source"].unit == "a.u."
    body = {
        kind: read_volume(made.folder / kind / "p0001.nii.gz", "label").array == 2
        for kind in ("labels", "labels_target")
    }
    lowest = {kind: inside.any(axis=(0, 2)).argmax() for kind, inside in body.items()}
    assert lowest["labels"] > lowest["labels_target"]  # the stand-in is pressed down by 10 mm in CT
    fat = volumes["truth_source_to_target"].array[body["labels"]]
    assert np.median(fat) == pytest.approx(-94, abs=15)


def test_label_map_takes_the_anatomys_place(tmp_path):
    spacing = np.diag([4.0, 4.0, 6.0, 1.0])
    spacing[:3, 3] = -80, -80, -60
    write_volume(Volume(Spheres(1).paint((40, 40, 20), spacing), spacing, "label"), tmp_path / "map.nii.gz")
    (tmp_path / "names.json").write_text(json.dumps({"1": "muscle", "2": "subcutaneous_fat"}))
    files = {"labels": tmp_path / "map.nii.gz", "names": tmp_path / "names.json"}
    made = make_cohort("hip", tmp_path / "a", 2, seed=1, paired=True, workers=1, **files)
    assert "muscle" in made.meta["label_names"].values()
    first, second = (read_volume(made.labels[id_]) for id_ in ("p0001", "p0002"))
    assert (first.array == 1).sum() > 100 and (first.array != second.array).any()  # the second is a deformed one
    (tmp_path / "names.json").write_text(json.dumps({"1": "muscle"}))
    with pytest.raises(InputError, match="sha256"):
        make_cohort("hip", tmp_path / "a", 2, seed=1, paired=True, workers=1, **files)
    with pytest.raises(InputError, match="2"):
        make_cohort("hip", tmp_path / "b", 2, seed=1, paired=True, workers=1, **files)
    assert not (tmp_path / "b").exists()


def write_maps(tmp_path, *seeds):
    """Label maps of several people, and the names of their structures."""
    affine = np.diag([4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = -80, -80, -60
    for seed in seeds:
        write_volume(Volume(Spheres(seed).paint((40, 40, 20), affine), affine, "label"), tmp_path / f"map{seed}.nii.gz")
    (tmp_path / "names.json").write_text(json.dumps({"1": "muscle", "2": "subcutaneous_fat"}))
    return {"labels": [tmp_path / f"map{seed}.nii.gz" for seed in seeds], "names": tmp_path / "names.json"}


def test_several_label_maps_take_turns(tmp_path, small_grids):
    files = write_maps(tmp_path, 1, 2)
    both = make_cohort("hip", tmp_path / "both", 4, seed=1, paired=True, workers=1, **files)
    alone = make_cohort(
        "hip", tmp_path / "alone", 1, seed=9, paired=True, workers=1, labels=files["labels"][1], names=files["names"]
    )

    def volume(made, id_):
        return (read_volume(made.labels[id_], "label").array > 0).sum()

    # the first two are the maps themselves, the next two deformations of them in the same order
    assert volume(both, "p0002") == volume(alone, "p0001") != volume(both, "p0001")
    third, fourth = ((read_volume(both.labels[id_], "label").array) for id_ in ("p0003", "p0004"))
    first, second = ((read_volume(both.labels[id_], "label").array) for id_ in ("p0001", "p0002"))
    assert (third != first).any() and (fourth != second).any()
    with pytest.raises(InputError, match="1 masks for 2 label maps"):
        make_cohort("hip", tmp_path / "c", 1, seed=1, body=files["labels"][0], **files)


def test_a_killed_cohort_goes_on_and_finished_patients_stay(tmp_path):
    """SIGKILL in a process of its own: no half-written patient is taken for whole, no finished one is made again."""
    command = [
        sys.executable,
        "-m",
        "mr2ct_lib.cli",
        "cohort",
        "head",
        "--patients",
        "3",
        "--paired",
        "--seed",
        "4",
        "--out",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    made = subprocess.Popen([*command, str(tmp_path / "part")], start_new_session=True, **quiet)
    while not list((tmp_path / "part").glob("patients/p*.json")) and made.poll() is None:
        time.sleep(0.02)
    os.killpg(made.pid, signal.SIGKILL)
    made.wait()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "part" / "patients").glob("p*.json")}
    assert finished
    if len(finished) < 3:
        with pytest.raises(InputError, match="unfinished"):
            read_cohort(tmp_path / "part")
    whole = make_cohort("head", tmp_path / "whole", 3, seed=4, paired=True, workers=1)
    again = make_cohort("head", tmp_path / "part", 3, seed=4, paired=True, workers=1)
    assert bits(again.folder) == bits(whole.folder)
    assert (again.folder / "cohort.json").read_text() == (whole.folder / "cohort.json").read_text()
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


GRIDS = [((3, 40, 20), (50.0, 4.0, 6.0)), ((2, 2, 2), (60.0, 60.0, 60.0)), ((40, 40, 1), (4.0, 4.0, 100.0))]


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("shape, spacing", GRIDS)
def test_tiny_coarse_and_oblique_label_maps_are_scanned_where_they_lie(tmp_path, small_grids, shape, spacing, slope):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    affine[:3, :3] = (
        np.array([[np.cos(slope), -np.sin(slope), 0], [np.sin(slope), np.cos(slope), 0], [0, 0, 1]]) @ affine[:3, :3]
    )
    labels = np.ones(shape, np.uint8)
    labels[: shape[0] // 2] = 2
    write_volume(Volume(labels, affine, "label"), tmp_path / "map.nii.gz")
    (tmp_path / "names.json").write_text(json.dumps({"1": "muscle", "2": "subcutaneous_fat"}))
    files = {"labels": tmp_path / "map.nii.gz", "names": tmp_path / "names.json"}
    made = make_cohort("hip", tmp_path / "a", 1, seed=1, paired=True, workers=1, **files)
    found, ct = read_volume(made.labels["p0001"], "label"), read_volume(made.target["p0001"])
    place = np.argwhere(np.ones(found.array.shape)) @ found.affine[:3, :3].T + found.affine[:3, 3]
    index = np.rint((place - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    inside = ((index >= 0) & (index < shape)).all(axis=1)
    expected = np.where(inside, labels[tuple(np.clip(index, 0, np.array(shape) - 1).T)], 0)
    assert (
        found.array.ravel() == expected
    ).mean() > 0.995 and inside.any()  # but for rounding half way between two voxels
    assert 0 < ct.array.max() < 150 and ct.array.min() < -900


@pytest.mark.parametrize(
    "array, word",
    [
        (np.zeros((9, 9, 9, 2), np.uint8), "3D volume"),
        (np.zeros((9, 9, 9), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])), "colours"),
        (np.full((9, 9, 9), 0.5, np.float32), "no label map"),
        (np.full((9, 9, 9), -1000, np.int16), "no label map"),  # a CT
        (np.zeros((9, 9, 9), np.uint8), "background only"),
        (np.full((9, 9, 9), 7, np.uint8), "no name"),
    ],
)
def test_what_is_no_label_map_is_named_and_leaves_nothing(tmp_path, array, word):
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "map.nii.gz")
    (tmp_path / "names.json").write_text(json.dumps({"1": "muscle"}))
    with pytest.raises(InputError, match=word) as caught:
        make_cohort("hip", tmp_path / "a", 1, seed=1, labels=tmp_path / "map.nii.gz", names=tmp_path / "names.json")
    assert "map.nii.gz" in str(caught.value) and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"anatomy": "knee"}, "anatomy"),
        ({"profile": "huge"}, "profile"),
        ({"patients": 0}, "patients"),
        ({"seed": -1}, "seed"),
        ({"distort_target": True}, "distort_target"),
        *(({"anatomy": "head", "distort_target": bad}, "distort_target: ") for bad in (1, 0, -3, 2.5, "yes", None)),
        ({"labels": "a.nii.gz"}, "names"),
        ({"labels": "a.nii.gz", "names": "b.json"}, "a.nii.gz"),
        ({"body": "a.nii.gz"}, "body"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, arguments, word):
    with pytest.raises(InputError, match=word):
        make_cohort(**({"anatomy": "hip", "out": tmp_path / "a", "patients": 1, "seed": 1} | arguments))
    assert not (tmp_path / "a").exists()


def own_folder(made, tmp_path, source="source", target="target"):
    folder = tmp_path / "own"
    shutil.copytree(made.folder / source, folder / "source")
    shutil.copytree(made.folder / target, folder / "target")
    return folder


def test_own_folder_of_scans(tmp_path, spheres):
    made = make_cohort("hip", tmp_path / "a", 2, seed=1, paired=True, workers=1)
    folder = own_folder(made, tmp_path)
    own = read_cohort(folder)
    assert own.meta["domains"]["target"]["modality"] == "CT" and own.meta["domains"]["source"]["unit"] == "a.u."
    assert not own.paired and own.labels == {} and list(own.source) == ["p0001", "p0002"]
    (folder / "names.json").write_text('{"1": "pelvis"}')
    assert read_cohort(folder).meta["label_names"] == {"1": "pelvis"}
    (folder / "names.json").write_text('["pelvis"]')
    with pytest.raises(InputError, match="names.json: holds no names"):
        read_cohort(folder)
    (folder / "names.json").unlink()
    (folder / "cohort.json").write_text(json.dumps({"paired": True}))
    assert read_cohort(folder).paired
    (folder / "source" / "p0002.nii.gz").unlink()
    with pytest.raises(InputError, match="p0002"):
        read_cohort(folder)


def test_swapped_domains_are_refused(tmp_path, spheres):
    made = make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1)
    with pytest.raises(InputError, match="Exchange the two folders"):
        read_cohort(own_folder(made, tmp_path, "target", "source"))
    (made.folder / "source").rename(made.folder / "x")
    (made.folder / "target").rename(made.folder / "source")
    (made.folder / "x").rename(made.folder / "target")
    with pytest.raises(InputError, match="source"):
        read_cohort(made.folder)


def test_mixed_domain_is_refused(tmp_path, spheres):
    made = make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1)
    folder = own_folder(made, tmp_path)
    shutil.copy(made.target["t0001"], folder / "source" / "x.nii.gz")
    with pytest.raises(InputError, match=r"x\.nii\.gz: looks like CT.*expected MR as source"):
        prepare(folder, tmp_path / "prepared", progress=False)


def test_empty_and_missing_cohorts_are_refused(tmp_path, spheres):
    with pytest.raises(InputError, match="does not exist"):
        read_cohort(tmp_path / "nowhere")
    (tmp_path / "empty" / "source").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no scans"):
        read_cohort(tmp_path / "empty")
    made = make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1)
    made.target["t0001"].unlink()
    with pytest.raises(InputError, match="t0001"):
        read_cohort(made.folder)


def test_label_maps_among_a_users_scans_are_no_scans(tmp_path, spheres):
    made = make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1)
    folder = own_folder(made, tmp_path)
    for end in ("_labels", "_seg", "_Mask"):
        shutil.copy(made.labels["s0001"], folder / "source" / f"s0001{end}.nii.gz")
    assert list(read_cohort(folder).source) == ["s0001"]
    (folder / "source" / "s0001.nii.gz").unlink()
    with pytest.raises(InputError, match="source: holds no scans"):
        read_cohort(folder)


def test_two_scans_of_one_name_are_refused(tmp_path, spheres):
    folder = own_folder(make_cohort("hip", tmp_path / "a", 1, seed=1, workers=1), tmp_path)
    shutil.copy(folder / "source" / "s0001.nii.gz", folder / "source" / "s0001.nii")
    with pytest.raises(InputError, match="two scans have the same name"):
        read_cohort(folder)
