"""Prepared slices: batches and augmentation are pure functions of their seeds."""

import numpy as np
import pytest
import torch

from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices, augment, epoch_indices, mean_slices, unpaired_batch


@pytest.fixture
def prepared(tmp_path) -> PreparedSlices:
    """Three source patients of 2, 3, 2 slices and two target patients of 5 and 6; slice i is filled with i / 100
    (target: -i / 100)."""
    counts = {"source": [2, 3, 2], "target": [5, 6]}
    patients = {}
    for domain, sign in (("source", 1), ("target", -1)):
        total = sum(counts[domain])
        array = np.broadcast_to(sign * np.arange(total, dtype=np.float32)[:, None, None] / 100, (total, 16, 20))
        np.save(tmp_path / f"{domain}.npy", array)
        firsts = np.cumsum([0, *counts[domain]])
        patients[domain] = [
            {"id": f"{domain[0]}{n}", "first": int(firsts[n]), "count": count} for n, count in enumerate(counts[domain])
        ]
    write_record(
        tmp_path, Preparation("coronal", 5.0, (16, 20), 5.0, {"source": MR_WINDOW, "target": CT_WINDOW}), patients
    )
    return PreparedSlices(tmp_path)


def seen(batch: torch.Tensor) -> list[int]:
    return (batch[:, 0, 0, 0].abs() * 100).round().int().tolist()


def test_arrays_are_mapped_and_absent_ones_are_none(prepared):
    assert isinstance(prepared.source, np.memmap)
    assert prepared.labels_source is None
    assert prepared.patients("target") == [("t0", slice(0, 5)), ("t1", slice(5, 11))]
    assert prepared.windows["target"].unit == "HU"


def test_an_epoch_takes_each_slice_once():
    for epoch in range(3):
        taken = np.concatenate([epoch_indices(12, step, 3, 5) for step in range(4 * epoch, 4 * epoch + 4)])
        assert sorted(taken) == list(range(12))


def test_nothing_repeats_within_an_epoch_that_batches_do_not_divide():
    row = np.concatenate([epoch_indices(7, step, 3, 0) for step in range(7)])
    for epoch in range(3):
        assert sorted(row[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_batches_larger_than_the_set_go_round():
    assert sorted(epoch_indices(3, 0, 6, 0)) == [0, 0, 1, 1, 2, 2]


def test_a_batch_depends_on_seed_and_step_alone(prepared):
    late = unpaired_batch(prepared, 1000, 4, seed=3)
    for step in (0, 5, 1000):
        again = unpaired_batch(prepared, step, 4, seed=3)
    for first, second in zip(late, again, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_same_row_of_slices_whatever_the_batch_size(prepared):
    ones = [seen(unpaired_batch(prepared, step, 1, seed=1)[0])[0] for step in range(8)]
    fours = sum((seen(unpaired_batch(prepared, step, 4, seed=1)[0]) for step in range(2)), [])
    assert ones == fours


def test_seeds_and_domains_have_orders_of_their_own(prepared):
    def order(seed, domain, steps):
        return [seen(unpaired_batch(prepared, step, 1, seed)[domain])[0] for step in range(steps)]

    assert len({tuple(order(seed, 1, 11)) for seed in range(3)}) == 3
    prepared.meta["patients"]["target"] = prepared.meta["patients"]["source"]  # seven slices in either domain
    assert order(0, 0, 7) != order(0, 1, 7)


def test_seeds_epochs_and_domains_differ():
    rows = {tuple(epoch_indices(50, 0, 50, seed, domain)) for seed in range(3) for domain in range(2)}
    rows.add(tuple(epoch_indices(50, 1, 50, 0, 0)))
    assert len(rows) == 7


def test_shapes_types_and_domains(prepared):
    source, target = unpaired_batch(prepared, 0, 4, seed=0)
    assert source.shape == target.shape == (4, 1, 16, 20)
    assert source.dtype == target.dtype == torch.float32
    assert source.min() >= 0 >= target.max()


def test_only_the_first_patients_are_used(prepared):
    used = [unpaired_batch(prepared, step, 5, seed=2, patients=1) for step in range(6)]
    assert set(sum((seen(source) for source, _ in used), [])) == {0, 1}
    assert set(sum((seen(target) for _, target in used), [])) == {0, 1, 2, 3, 4}
    with pytest.raises(InputError, match="3 asked of 2 in the target"):
        unpaired_batch(prepared, 0, 1, seed=0, patients=3)


def test_a_folder_that_was_not_prepared_is_refused(prepared, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        PreparedSlices(tmp_path / "nowhere")
    np.save(tmp_path / "target.npy", np.zeros((3, 16, 20), np.float32))
    with pytest.raises(InputError, match="target.npy"):
        PreparedSlices(tmp_path)
    (tmp_path / "target.npy").write_bytes(b"broken")
    with pytest.raises(InputError, match="target.npy"):
        PreparedSlices(tmp_path)
    write_json(read_json(tmp_path / "prepared.json") | {"format": 9}, tmp_path / "prepared.json")
    with pytest.raises(InputError, match="format"):
        PreparedSlices(tmp_path)


@pytest.mark.parametrize("name", ["labels_source", "labels_target", "valid", "truth_source_to_target"])
def test_arrays_that_do_not_lie_on_their_slices_are_refused(name, prepared, tmp_path):
    right = getattr(prepared, "target" if name == "labels_target" else "source").shape
    np.save(tmp_path / f"{name}.npy", np.zeros(right, np.uint8))
    assert getattr(PreparedSlices(tmp_path), name).shape == right
    for wrong in ((3, 4, 4), (right[0] + 1, *right[1:]), right[1:]):
        np.save(tmp_path / f"{name}.npy", np.zeros(wrong, np.uint8))
        with pytest.raises(InputError, match=rf"{name}\.npy: has shape .*expected"):
            PreparedSlices(tmp_path)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(6, 1, 8, 6, generator=generator), (48, 36), mode="bilinear")


def test_augmentation_is_a_pure_function_of_its_seed(images):
    torch.testing.assert_close(augment(images, 4), augment(images, 4), rtol=0, atol=0)
    assert (augment(images, 4) - augment(images, 5)).abs().max() > 0.05
    same = images[:1].expand(6, -1, -1, -1)
    out = augment(same, 4)
    assert all((out[i] - out[0]).abs().max() > 0.05 for i in range(1, 6))  # each image by its own amounts


def test_no_amounts_no_change(images):
    still = augment(images, 0, rotation=0, shear=0, translation=0, flip=False)
    torch.testing.assert_close(still, images, atol=1e-4, rtol=0)


def test_flips_are_exact_mirrors_in_about_half(images):
    many = images[:1].expand(200, -1, -1, -1)
    out = augment(many, 0, rotation=0, shear=0, translation=0)
    flipped = (out - many.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    kept = (out - many).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (flipped | kept).all()
    assert 70 < int(flipped.sum()) < 130


def test_a_constant_stays_constant_up_to_the_border():
    out = augment(torch.full((4, 1, 32, 48), 0.7), 3)
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_rotation_turns_about_the_centre_and_keeps_distances():
    """A dot 16 pixels right of the centre of a wide image stays 16 pixels away: no skew from unequal sides."""
    image = torch.zeros(1, 1, 65, 129)
    rows, columns = torch.meshgrid(torch.arange(65.0), torch.arange(129.0), indexing="ij")
    image[0, 0] = torch.exp(-((rows - 32) ** 2 + (columns - 80) ** 2) / 8)
    angles = []
    for seed in range(5):
        out = augment(image, seed, shear=0, translation=0, flip=False)[0, 0]
        centre = torch.stack([(out * rows).sum(), (out * columns).sum()]) / out.sum() - torch.tensor([32.0, 64.0])
        assert abs(float(centre.norm()) - 16) < 0.1
        angles.append(abs(float(torch.atan2(centre[0], centre[1]).rad2deg())))
    assert 5 < max(angles) < 15.1


def test_shear_slants_about_the_centre():
    """A line through the centre keeps its middle there; what lies 16 pixels along it moves across by up to its part."""
    rows, columns = torch.meshgrid(torch.arange(65.0), torch.arange(129.0), indexing="ij")
    slants = []
    for seed in range(10):
        found = []
        for column in (48, 64, 80):
            image = torch.exp(-((rows - 32) ** 2 + (columns - column) ** 2) / 8)[None, None]
            out = augment(image, seed, rotation=0, shear=0.2, translation=0, flip=False)[0, 0]
            found.append(float((out * rows).sum() / out.sum() - 32))
        left, middle, right = found
        assert abs(middle) < 0.02 and abs(left + right) < 0.05
        slants.append(abs(right) / 16)
    assert 0.1 < max(slants) < 0.2 / (1 - 0.2**2) + 0.01


def test_translation_stays_within_its_part_of_the_side():
    image = torch.zeros(1, 1, 60, 100)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    image[0, 0] = torch.exp(-((rows - 29.5) ** 2 + (columns - 49.5) ** 2) / 8)
    moved = []
    for seed in range(30):
        out = augment(image, seed, rotation=0, shear=0, translation=0.1, flip=False)[0, 0]
        moved.append([float((out * rows).sum() / out.sum() - 29.5), float((out * columns).sum() / out.sum() - 49.5)])
    most = np.abs(moved).max(axis=0)
    assert 4 < most[0] < 6.01
    assert 7 < most[1] < 10.01


def test_mean_slices_say_what_a_pixel_shows_and_how_often_it_is_the_patient(prepared):
    target = np.full((11, 16, 20), -1.0, dtype=np.float32)  # patients of 5 and of 6 slices
    target[0:3, 8] = 0.5  # row 8 in the first three slices of the first patient
    target[5:8, 8] = -0.5  # and of the second
    target[8, 3] = 0.5
    prepared.target = target
    means, outlines = mean_slices(prepared, "target", parts=2)
    np.testing.assert_allclose(means[0][[8, 3]], np.array([0, -1])[:, None].repeat(20, 1), atol=1e-6)  # 0.5 and -0.5
    np.testing.assert_allclose(means[1][3], -1 + 1.5 / 5)
    assert outlines.shape == (2, 16, 20) and outlines.dtype == np.float32
    np.testing.assert_array_equal(outlines[0][[8, 3, 0]], np.array([1, 0, 0])[:, None].repeat(20, 1))
    np.testing.assert_allclose(outlines[1][[8, 3, 0]], np.array([0, 1 / 5, 0])[:, None].repeat(20, 1))
    assert mean_slices(prepared, "target", patients=1, parts=2)[1][1].max() == 0
