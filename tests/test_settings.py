"""Settings: the papers' values, types from the command line, and refusals in one sentence."""

import pytest

from mr2ct_lib.files import InputError
from mr2ct_lib.settings import make_settings


def test_paper_profiles_hold_the_papers_settings():
    hiasa, wang = make_settings("cyclegan", "paper"), make_settings("dicyclegan", "paper")
    assert (hiasa.lambda_cycle, hiasa.lambda_gc, hiasa.iterations, hiasa.decay_iterations) == (3.0, 0.3, 100_000, 100_000)
    assert (wang.lambda_align, wang.lambda_cycle, wang.lambda_dicycle, wang.lambda_gc) == (0.9, 10.0, 10.0, 0.0)
    assert wang.augment and wang.offset_layers == "per_channel"
    for s in (hiasa, wang):
        assert s.average == 0
        assert (s.filters, s.blocks, s.discriminator_layers, s.learning_rate, s.batch_size, s.pool_size) == (64, 9, 3, 2e-4, 1, 50)


def test_learning_rate_is_constant_then_falls_linearly():
    s = make_settings("cyclegan", iterations=10, decay_iterations=4, learning_rate=1.0)
    rates = [s.learning_rate_at(step) for step in range(s.total_iterations)]
    assert rates[:11] == [1.0] * 11
    assert rates[11:] == pytest.approx([0.8, 0.6, 0.4])


def test_text_from_the_command_line_takes_the_settings_type():
    s = make_settings("cyclegan", lambda_gc="0.1", iterations="40", gc_absolute="false", patients="all", gc_operator="sobel")
    assert (s.lambda_gc, s.iterations, s.gc_absolute, s.patients, s.gc_operator) == (0.1, 40, False, None, "sobel")


@pytest.mark.parametrize(
    "method, profile, changes, words",
    [
        ("pix2pix", "quick", {}, "method 'pix2pix'.*cyclegan"),
        ("cyclegan", "fast", {}, "profile 'fast'.*quick"),
        ("cyclegan", "quick", {"lamda_gc": "1"}, "'lamda_gc' is unknown; did you mean 'lambda_gc'"),
        ("cyclegan", "quick", {"iterations": "many"}, "iterations='many'.*int"),
        ("cyclegan", "quick", {"iterations": "1.5"}, "iterations"),
        ("cyclegan", "quick", {"lambda_gc": "nan"}, "lambda_gc"),
        ("cyclegan", "quick", {"augment": "yes"}, "augment"),
        ("cyclegan", "quick", {"filters": 0}, "filters=0"),
        ("cyclegan", "quick", {"lambda_cycle": -1.0}, "lambda_cycle"),
        ("cyclegan", "quick", {"gc_operator": "roberts"}, "roberts"),
        ("dicyclegan", "quick", {"offset_layers": "none"}, "offset_layers"),
        ("cyclegan", "quick", {"iterations": 0, "decay_iterations": 0}, "at least one step"),
    ],
)
def test_what_cannot_be_meant_is_named(method, profile, changes, words):
    with pytest.raises(InputError, match=words):
        make_settings(method, profile, **changes)
