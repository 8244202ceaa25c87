"""Real scans through the commands and the script of docs/own_data.md. Skipped where there are none."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mr2ct_lib import cli
from mr2ct_lib.images.folders import read_cohort
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import read_volume, reslice, write_volume
from mr2ct_lib.methods import settings

DOCS = Path(__file__).parents[1] / "docs" / "own_data.md"
TINY = {"filters": 4, "blocks": 1, "discriminator_filters": 4, "iterations": 2, "decay_iterations": 0, "batch_size": 4}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scripts() -> list[str]:
    """The Python of docs/own_data.md: two contrasts of a head."""
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)


def mr2ct(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["mr2ct", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


def test_a_real_hip_is_scanned_as_mr_and_ct(real_data, tmp_path, monkeypatch):
    """The real label map as MR and CT of one person: tissues have their Hounsfield units, fat is brighter in T1."""
    maps = real_data / "hip_labels"
    words = ["cohort", "hip", "--labels", maps / "hip_labels.nii.gz", "--names", maps / "names.json"]
    words += ["--body", maps / "body_mask.nii.gz"]
    mr2ct(monkeypatch, *words, "--patients", 1, "--paired", "--out", tmp_path / "hip")
    made = read_cohort(tmp_path / "hip")
    values = {name: int(value) for value, name in made.meta["label_names"].items()}
    mr, ct = read_volume(made.source["p0001"]), read_volume(made.target["p0001"])
    labels = read_volume(made.labels["p0001"], "label")
    ct = reslice(ct, labels.array.shape, labels.affine)

    def median(scan, name, percentile=50):
        return float(np.percentile(scan.array[labels.array == values[name]], percentile))

    for muscle in ("gluteus_medius", "iliacus", "adductor_muscles"):
        assert 10 < median(ct, muscle) < 60
        assert median(mr, muscle) < 0.5 * median(mr, "subcutaneous_fat")
        assert median(mr, "pelvis_cortex", 5) < median(mr, muscle)  # a thin cortex is dark where it fills a voxel
    assert -120 < median(ct, "subcutaneous_fat") < -60
    assert 100 < median(ct, "pelvis") < median(ct, "pelvis_cortex") and median(ct, "femur_cortex", 95) > 500
    assert median(ct, "background") < -900
    truth = read_volume(maps / "hip_labels.nii.gz", "label")  # the person keeps shape and place
    there = reslice(truth, labels.array.shape, labels.affine).array
    for name in ("gluteus_medius", "adductor_muscles"):
        a, b = there == values[name], labels.array == values[name]
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85


def test_real_unpaired_folders_become_a_ct_on_the_mrs_grid_and_dicom_goes_back(real_data, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/source").symlink_to(real_data / "mr")  # their label maps lie among the scans
    (tmp_path / "own/target").symlink_to(real_data / "ct")
    mr2ct(monkeypatch, "prepare", tmp_path / "own", "--out", tmp_path / "prepared", "--window", -150, 350)
    assert PreparedSlices(tmp_path / "prepared").source.shape == (20, 92, 120)
    changes = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    mr2ct(monkeypatch, "train", "cyclegan", "--data", tmp_path / "prepared", "--out", tmp_path / "run", *changes)
    translator, mr = tmp_path / "run/translator", real_data / "mr/abdomen_mr.nii.gz"
    mr2ct(monkeypatch, "synthesize", translator, mr, "--out", tmp_path / "sct.nii.gz")
    given, made = nib.load(mr), nib.load(tmp_path / "sct.nii.gz")
    assert made.shape == given.shape and made.get_data_dtype() == np.int16
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-5)
    hu = made.get_fdata()
    assert -150 <= hu.min() < hu.max() <= 350
    mr2ct(monkeypatch, "synthesize", translator, real_data / "dicom_ct", "--reverse", "--out", tmp_path / "smr.nii.gz")
    series, made = read_volume(real_data / "dicom_ct"), read_volume(tmp_path / "smr.nii.gz")
    assert made.array.shape == series.array.shape == (512, 512, 20) and made.unit == "%"
    np.testing.assert_allclose(made.affine, series.affine, atol=1e-3)


def test_a_ct_is_brought_to_the_grid_of_an_mr(real_data, tmp_path, monkeypatch):
    """The command of docs/own_data.md; the two are other people, so only the grid and the values can be held."""
    grid = tmp_path / "scan.nii.gz"
    mr = read_volume(real_data / "mr/abdomen_mr.nii.gz")
    write_volume(mr.replace(array=mr.array[::4, ::4], affine=mr.affine @ np.diag([4, 4, 1, 1])), grid)
    (tmp_path / "ct.nii.gz").symlink_to(real_data / "ct/abdomen_ct_small.nii.gz")
    monkeypatch.chdir(tmp_path)
    mr2ct(monkeypatch, "register", "ct.nii.gz", "scan.nii.gz", "--out", "true_ct.nii.gz")
    registered, scan, ct = (read_volume(tmp_path / f"{name}.nii.gz") for name in ("true_ct", "scan", "ct"))
    assert registered.unit == "HU" and registered.array.shape == scan.array.shape
    np.testing.assert_allclose(registered.affine, scan.affine, atol=1e-3)
    assert ct.array.min() - 1 <= registered.array.min() and registered.array.max() <= ct.array.max() + 1


def test_one_contrast_of_a_real_head_becomes_another(real_data, tmp_path, monkeypatch, capsys):
    """The script of docs/own_data.md as it stands there, with a network of two steps."""
    for name in ("T1", "T2"):
        (tmp_path / f"{name}.nii.gz").symlink_to(real_data / f"brain/{name}.nii.gz")
    script = scripts()[-1]
    monkeypatch.chdir(tmp_path)
    quick = settings.PROFILES["quick"]
    monkeypatch.setitem(settings.PROFILES, "quick", replace(quick, both=quick.both | TINY))
    names: dict = {}
    exec(compile(script, str(DOCS), "exec"), names)
    test, table = names["test"], names["table"]
    assert test.preparation.plane == "axial" and test.meta["paired"]
    assert test.preparation.normalisation == {"source": "zscore", "target": "zscore"}
    learned = PreparedSlices("prepared_head")
    for stack in (test.source, learned.source, learned.target):
        assert 30 <= len(stack) < 35 and stack.shape[1:] == (64, 52)  # of 35, without the blank ones at the ends
    kinds = (learned, "source"), (learned, "target"), (test, "source")
    first = {slices.meta["patients"][domain][0]["affine"][2][3] % 4 for slices, domain in kinds}
    assert len(first) == 3  # mm: the three kinds of slices lie between one another
    assert list(table.index) == ["histogram matching", "mean training slice", "seed 7", "seed 8", "seed 9"]
    assert np.isfinite(table.to_numpy()).all() and "seed 9" in capsys.readouterr().out
