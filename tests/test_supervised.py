"""The bound from above learns from pairs, in both directions, in a run folder like any other."""

import numpy as np
import pytest
from lightning_fabric import Fabric
from tiny_runs import Replayer

from mr2ct_lib.course.supervised import SupervisedTrainer
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.translator import load_translator
from tools.kills import same

SMALL = {"filters": 4, "blocks": 1, "discriminator_filters": 4, "discriminator_layers": 1, "batch_size": 2}


def pairs(folder, paired=True, truth=None):
    """Two patients of three slices, 16 x 16: the target is half the negative of the source."""
    folder.mkdir()
    x = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.float32)
    np.save(folder / "source.npy", x)
    np.save(folder / "target.npy", -x / 2)
    if truth is not None:
        np.save(folder / "truth_source_to_target.npy", truth(x))
    rows = [{"id": f"p{i}", "first": 3 * i, "count": 3} for i in (0, 1)]
    preparation = Preparation("coronal", 2.0, (16, 16), 2.0, dict.fromkeys(("source", "target"), MR_WINDOW))
    write_record(folder, preparation, {"source": rows, "target": rows}, anatomy="hip", label_names={}, paired=paired)
    return folder


def test_it_learns_the_pairs_and_no_discriminator_takes_part(tmp_path):
    data = pairs(tmp_path / "data")
    settings = make_settings("cyclegan", "quick", **SMALL, iterations=200, decay_iterations=100, learning_rate=0.01)
    run = train(settings, data, tmp_path / "run", trainer_class=SupervisedTrainer)
    log, slices = read_log(run), PreparedSlices(data)
    assert set(log[-1]) == {"step", "seconds", "learning_rate", "source_to_target", "target_to_source"}
    result = load_translator(run)
    untrained = np.abs(np.asarray(slices.source) - slices.target).mean()
    assert np.abs(result.translate(slices.source) - slices.target).mean() < 0.4 * untrained


def test_a_direction_learns_its_own_truth_where_there_is_one(tmp_path):
    data = PreparedSlices(pairs(tmp_path / "data", truth=lambda x: x / 4))
    settings = make_settings("cyclegan", "quick", **SMALL, iterations=2, decay_iterations=0)
    trainer = SupervisedTrainer.__new__(SupervisedTrainer)
    trainer.settings, trainer.data, trainer.step_number = settings, data, 0
    trainer.fabric = Fabric(accelerator="cpu", devices=1)
    there, back = (trainer.pairs()[way] for way in ("source_to_target", "target_to_source"))
    assert there[0].shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(there[1], there[0] / 4)
    np.testing.assert_array_equal(back[0], -back[1] / 2)


def test_a_recorded_update_gives_the_bits_of_a_plain_one(tmp_path):
    """Losses are read at the end, as on a GPU; recorded updates overwrite theirs."""
    data = PreparedSlices(pairs(tmp_path / "data", truth=lambda x: x / 4))
    settings, found = make_settings("cyclegan", "quick", **SMALL), []
    for recorder in (None, Replayer):
        trainer = SupervisedTrainer(settings, data, Fabric(accelerator="cpu", devices=1))
        trainer.updates["generators"].recorder = recorder and recorder(trainer)
        terms = [trainer.step() for _ in range(8)]
        found.append(([[float(value) for value in step.values()] for step in terms], trainer))
    (plain, one), (recorded, other) = found
    assert plain == recorded and same(one.state(), other.state())
    assert other.updates["generators"].replay is not None


def test_unpaired_slices_are_refused(tmp_path):
    settings = make_settings("cyclegan", "quick", **SMALL, iterations=2, decay_iterations=0)
    with pytest.raises(InputError, match="is not paired"):
        train(settings, pairs(tmp_path / "data", paired=False), tmp_path / "run", trainer_class=SupervisedTrainer)
