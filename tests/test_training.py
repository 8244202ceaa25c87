"""Laws of a training step: same seed same bits, what the losses hold, what the image pool returns, averaged weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tiny_runs import bits, settings

from mr2ct_lib.images.slices import PreparedSlices, unpaired_batch, where_patient
from mr2ct_lib.methods import fast, training
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.training import ImagePool
from mr2ct_lib.methods.translator import DIRECTIONS, load_translator
from tools import kills
from tools.kills import same

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_same_seed_same_bits_other_seed_others(method, data, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train(settings(method, seed=seed), data, tmp_path / name)
    assert same(bits(tmp_path / "one"), bits(tmp_path / "again"))
    assert not same(bits(tmp_path / "one"), bits(tmp_path / "other"))


def test_one_field_there_and_its_inverse_back(data, tmp_path):
    run = train(settings("dicyclegan", offset_layers="field", lambda_dicycle=0.0, iterations=8), data, tmp_path / "run")
    assert "dicycle" not in read_log(run)[0]
    translator = load_translator(run)
    there, back = (getattr(translator, direction).offsets[0] for direction in DIRECTIONS)
    assert there.control is back.control and (there.inverted, back.inverted) == (False, True)
    slices = np.array(PreparedSlices(data).source[:1])
    plain, deformed = (translator.translate(slices, deform=deform) for deform in (False, True))
    np.testing.assert_allclose(there(torch.from_numpy(plain)[:, None]).detach()[:, 0], deformed, atol=1e-6)
    start = trainer(data, "dicyclegan", offset_layers="field")
    assert torch.equal(start.networks.translator.source_to_target.offsets[0].control, there.control)  # it never learns
    assert there.control.abs().max() > 0


def test_with_one_field_both_generators_start_upright(data):
    """Discs of the source are bright, those of the target dark."""
    for seed in range(4):
        translator = trainer(data, "dicyclegan", offset_layers="field", seed=seed).networks.translator
        for direction, domain, brighter in zip(DIRECTIONS, ("source", "target"), (False, True), strict=True):
            slices = np.array(getattr(PreparedSlices(data), domain))
            made, patient = translator.translate(slices, direction), where_patient(slices)
            assert (made[patient].mean() > made[~patient].mean()) == brighter


def trainer(data, method="cyclegan", **changes):
    return training.Trainer(settings(method, **changes), PreparedSlices(data), Fabric(accelerator="cpu", devices=1))


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_the_discriminators_have_a_rate_of_their_own(data, share):
    """Adam's first step moves a weight by the rate, whatever its gradient."""
    begun = trainer(data, learning_rate=1e-3, discriminator_rate=share, precision="float32")
    before = {name: [p.detach().clone() for p in parameters] for name, parameters in begun.parameters.items()}
    begun.step()
    for name, rate in (("generators", 1e-3), ("discriminators", share * 1e-3)):
        moved = max((p - old).abs().max().item() for p, old in zip(begun.parameters[name], before[name], strict=True))
        assert moved == pytest.approx(rate, rel=1e-2, abs=1e-12)


def test_gradient_consistency_is_part_of_the_loss_only_when_weighted(data, tmp_path):
    assert "gc" in read_log(train(settings(), data, tmp_path / "with"))[0]
    assert "gc" not in read_log(train(settings(lambda_gc=0.0), data, tmp_path / "without"))[0]


def test_the_translator_is_the_mean_of_the_weights_of_all_steps(data, tmp_path, monkeypatch):
    """With average near 1 the mean is the plain one; with 0 it is the last step's weights."""
    seen, step = [], training.Trainer.step

    def watched(trainer):
        terms = step(trainer)
        seen.append([p.detach().clone() for p in trainer.networks.translator.parameters()])
        return terms

    monkeypatch.setattr(training.Trainer, "step", watched)
    for average, expected in (
        (0.999, lambda weights: torch.stack(weights).mean(0)),
        (0.0, lambda weights: weights[-1]),
    ):
        seen.clear()
        run = train(settings(average=average), data, tmp_path / str(average))
        for parameter, *weights in zip(load_translator(run).parameters(), *seen, strict=True):
            torch.testing.assert_close(parameter, expected(weights), atol=1e-6, rtol=1e-5)


def test_the_discriminators_learn(data, tmp_path):
    log = read_log(
        train(settings(iterations=60, decay_iterations=0, learning_rate=1e-3, sample_every=0), data, tmp_path / "run")
    )
    assert np.mean([line["discriminator_target"] for line in log[-10:]]) < np.mean(
        [line["discriminator_target"] for line in log[:10]]
    )


def test_blank_slices_survive(data, tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for domain in ("source", "target"):
        np.save(folder / f"{domain}.npy", np.full((6, 32, 32), -1, np.float32))
    (folder / "prepared.json").write_text((data / "prepared.json").read_text())
    for method in ("cyclegan", "dicyclegan"):
        log = read_log(train(settings(method, lambda_gc=0.3), folder, tmp_path / method))
        assert all(np.isfinite(list(line.values())).all() for line in log)


def test_the_order_of_the_data_is_that_of_the_seed_alone(data):
    """Two processes share each batch equally: together they take what one process takes."""
    slices = PreparedSlices(data)
    processes = [SimpleNamespace(fabric=SimpleNamespace(global_rank=rank, world_size=2)) for rank in range(2)]
    for step in range(5):
        batches = [unpaired_batch(slices, step, 4, seed=3) for _ in range(3)]  # of one process, and of two others
        for whole, *others in zip(*batches, strict=True):
            one, two = (training.Trainer._share(p, batch) for p, batch in zip(processes, others, strict=True))
            assert len(one) == len(two) == 2
            taken, given = (sorted(x.numpy().tobytes() for x in images) for images in ((*one, *two), whole))
            assert taken == given


def test_image_pool_gives_back_half_of_what_it_holds():
    pool, rng = ImagePool(10), np.random.default_rng(0)
    first = torch.arange(10.0).view(10, 1, 1, 1)
    assert torch.equal(pool.query(first, rng), first)
    later = torch.cat([pool.query(torch.full((1, 1, 1, 1), 100.0 + i), rng) for i in range(400)]).flatten()
    old = (later != 100.0 + torch.arange(400)).float().mean()
    assert 0.4 < old < 0.6 and len(pool.images) == 10
    assert torch.equal(ImagePool(0).query(first, rng), first)


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_without_the_fast_forms_a_run_is_the_same(method, data, tmp_path):
    """To rounding, which the game between the networks enlarges from step to step."""
    s = settings(method, precision="float32", iterations=2, decay_iterations=0)
    with_forms = read_log(train(s, data, tmp_path / "with"))
    with fast.switched_off():
        without = read_log(train(s, data, tmp_path / "without"))
    for a, b in zip(with_forms, without, strict=True):
        del a["seconds"], b["seconds"]
        assert b == pytest.approx(a, rel=1e-4, abs=2e-6)


def test_the_averaged_generators_keep_no_history(data):
    """Else it would grow with every step, and on a GPU tie what is recorded to another stream, which breaks it off."""
    run = trainer(data, average=0.9)
    for _ in range(2):
        run.step()
    assert not any(p.requires_grad for p in run.averaged.parameters())
