"""Errors against the truth, patient by patient: what counts and what does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from mr2ct_lib import experiments
from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.intensity import CT_WINDOW


@pytest.fixture
def test_set():
    """Two patients of one slice each, truth 0 everywhere (in the network's range), the first row not covered by the truth's scan."""
    valid = np.ones((2, 8, 8), bool)
    valid[:, 0] = False
    return SimpleNamespace(
        folder="prepared/scratch",
        windows={"source": CT_WINDOW, "target": CT_WINDOW},
        target=np.zeros((2, 8, 8), np.float32),
        truth_source_to_target=None,
        valid=valid,
        patients=lambda domain: [("p0001", slice(0, 1)), ("p0002", slice(1, 2))],
    )


def test_measure_by_hand(test_set):
    synthetic = np.zeros((2, 8, 8), np.float32)
    synthetic[1] = 0.2  # 25.5 grey levels, 50 HU
    table = experiments.measure(synthetic, test_set).set_index("patient")
    np.testing.assert_allclose(table["MAE"], [0, 25.5], rtol=1e-6)
    np.testing.assert_allclose(table.loc["p0002", ["PSNR", "MSE unit", "PSNR unit"]].astype(float), [20, 2500, 20], rtol=1e-6)


def test_measure_leaves_out_what_the_truth_does_not_cover(test_set):
    synthetic = np.zeros((2, 8, 8), np.float32)
    synthetic[:, 0] = 1
    assert (experiments.measure(synthetic, test_set)["MAE"] == 0).all()


def test_measure_counts_only_inside(test_set):
    synthetic, inside = np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8), bool)
    synthetic[:, :2] = 0.2
    inside[:, :2] = True  # its first row is not covered
    assert experiments.measure(synthetic, test_set, inside=inside)["MAE"].tolist() == pytest.approx([25.5, 25.5])


def test_measure_refuses_another_shape(test_set):
    with pytest.raises(InputError, match="translate the whole test set"):
        experiments.measure(np.zeros((1, 8, 8)), test_set)


def test_recorded_says_what_is_missing():
    with pytest.raises(InputError, match="tools.record no_such_table"):
        experiments.recorded("no_such_table")


def test_an_interrupted_cohort_is_finished(tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.COHORTS, "scratch", ({"anatomy": "head", "seed": 1, "workers": 1, "progress": False}, {"quick": 1}))
    folder = experiments.cohort("scratch", root=tmp_path)
    write_json(read_json(folder / "cohort.json") | {"complete": False}, folder / "cohort.json")
    (folder / "target" / "t0001.nii.gz").unlink()
    experiments.cohort("scratch", root=tmp_path)
    assert read_json(folder / "cohort.json")["complete"] and (folder / "target" / "t0001.nii.gz").exists()
