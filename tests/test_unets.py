"""The U-Nets by name: made once, kept, used again; and their labels measured patient by patient."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mr2ct_lib.course import experiments
from mr2ct_lib.files import InputError
from mr2ct_lib.measures import evaluation
from mr2ct_lib.methods.settings import PROFILES
from mr2ct_lib.patients.hip import HIP_NAMES


@pytest.fixture
def hips(monkeypatch):
    """Six patients of one slice with a femur; prepared() gives them whatever it is asked for."""
    labels = np.zeros((6, 16, 16), np.uint8)
    labels[:, 4:12, 4:8] = 2  # femur
    image = np.where(labels > 0, 0.8, -0.8).astype(np.float32)
    hips = SimpleNamespace(
        folder="prepared/scratch",
        meta={
            "anatomy": "hip",
            "label_names": {str(v): n for v, n in HIP_NAMES.items()},
            "patients": {"source": []},
        },
        preparation=SimpleNamespace(spacing=(5.0, 5.0), slice_spacing=6.0, pixel=5.0, plane="coronal"),
        source=image, target=image, labels_source=labels, labels_target=labels,
        patients=lambda domain: [(f"p{n}", slice(n, n + 1)) for n in range(6)],
    )  # fmt: skip
    monkeypatch.setattr(experiments, "prepared", lambda *_: hips)
    quick = PROFILES["quick"]
    unet = replace(quick.unet, iterations=3, learning_rate=1e-3)
    monkeypatch.setitem(PROFILES, "quick", replace(quick, unet=unet))
    return hips


def test_segmenter_is_made_once_and_then_read(hips, tmp_path, capsys):
    first = experiments.segmenter("ct_alone", root=tmp_path)
    assert "training 3 steps" in capsys.readouterr().err
    again = experiments.segmenter("ct_alone", root=tmp_path)
    assert capsys.readouterr().err == ""
    assert first.channels == again.channels == ("CT",) and len(again.names) == 22
    assert len(again.training["curve"]) == 3 and first.training == again.training


def test_mr_only_prediction_is_made_once_and_then_read(hips, tmp_path, capsys):
    first = experiments.mr_only_prediction(root=tmp_path)
    assert first.shape == (6, 16, 16) and "5 folds" in capsys.readouterr().err
    np.testing.assert_array_equal(first, experiments.mr_only_prediction(root=tmp_path))
    assert capsys.readouterr().err == ""


def test_labelled_mr_alone_segments_the_test_mrs_without_a_translator(hips, tmp_path):
    assert experiments.segment_test("mr_alone", root=tmp_path).shape == (6, 16, 16)
    assert experiments.segmenter("mr_alone", root=tmp_path).channels == ("MR",)


def test_measure_labels_by_hand(hips):
    truth, names = experiments.structures(hips.labels_source, hips)
    prediction = truth.copy()
    prediction[1] = np.roll(prediction[1], 1, axis=1)  # 8 x 4 pixels, 5 mm to the right: 24 of 32 overlap
    table = evaluation.measure_labels(prediction, truth, names, hips).set_index(["patient", "structure"])
    assert len(table) == 6 * 22
    assert table.loc[("p0", "femur"), ["Dice", "HD95"]].tolist() == [1.0, 0.0]
    assert table.loc[("p1", "femur"), ["Dice", "HD95"]].tolist() == [0.75, 5.0]
    assert table.loc[("p1", "femur"), ["mL", "true mL"]].tolist() == pytest.approx([4.8, 4.8])  # 32 voxels of 150 mm3
    assert table.loc[("p0", "sacrum"), ["Dice", "HD95"]].isna().all()
    hips.meta["patients"]["source"].append({"id": "p1", "affine": np.diag([5.0, 12.0, 5.0, 1.0]).tolist()})
    table = evaluation.measure_labels(prediction, truth, names, hips).set_index(["patient", "structure"])
    assert table.loc[[("p0", "femur"), ("p1", "femur")], "true mL"].tolist() == pytest.approx([4.8, 9.6])
    with pytest.raises(InputError, match="whole test set"):
        evaluation.measure_labels(prediction[:2], truth, names, hips)


def test_a_recorded_translator_makes_the_mr_of_training_and_the_ct_of_the_test(hips, tmp_path, monkeypatch):
    hips.preparation.plane, hips.preparation.windows, asked = "coronal", {}, []

    def translate(slices, direction="source_to_target"):
        asked.append(direction)
        return -slices

    recorded = {"hip_many_gc": SimpleNamespace(preparation=hips.preparation, translate=translate)}
    monkeypatch.setattr(experiments, "recorded_translator", recorded.__getitem__)
    assert experiments.segment_test("recorded hip_many_gc", root=tmp_path).shape == (6, 16, 16)
    assert asked == ["target_to_source", "source_to_target"]
    assert experiments.segmenter("recorded hip_many_gc", root=tmp_path).channels == ("MR", "CT")
