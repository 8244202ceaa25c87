"""Settings: the papers' values, types from the command line, and refusals in one sentence."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from mr2ct_lib import cli
from mr2ct_lib.course import catalogue, papers
from mr2ct_lib.files import InputError
from mr2ct_lib.images import intensity
from mr2ct_lib.measures import metrics
from mr2ct_lib.methods import losses, networks, segmentation
from mr2ct_lib.methods.settings import PROFILES, make_settings
from mr2ct_lib.patients import hip, physics, scanner


def test_paper_profiles_hold_the_papers_settings():
    hiasa, wang = make_settings("cyclegan", "paper"), make_settings("dicyclegan", "paper")
    assert (hiasa.lambda_cycle, hiasa.lambda_gc, hiasa.iterations, hiasa.decay_iterations) == (
        3.0,
        0.3,
        100_000,
        100_000,
    )
    assert (wang.lambda_align, wang.lambda_cycle, wang.lambda_dicycle, wang.lambda_gc) == (0.9, 10.0, 10.0, 0.0)
    assert wang.augment and wang.offset_layers == "per_channel"
    for s in (hiasa, wang):
        assert s.average == 0
        assert (s.filters, s.blocks, s.discriminator_layers, s.learning_rate, s.batch_size, s.pool_size) == (
            64,
            9,
            3,
            2e-4,
            1,
            50,
        )


def test_learning_rate_is_constant_then_falls_linearly():
    s = make_settings("cyclegan", iterations=10, decay_iterations=4, learning_rate=1.0)
    rates = [s.learning_rate_at(step) for step in range(s.total_iterations)]
    assert rates[:11] == [1.0] * 11
    assert rates[11:] == pytest.approx([0.8, 0.6, 0.4])
    assert rates[-1] == pytest.approx(2 / (s.decay_iterations + 1))


def test_the_largest_seed_gives_all_networks_their_own():
    networks.initialise(networks.Generator(1, 1), seed=4 * make_settings("cyclegan", seed=2**61 - 1).seed + 3)


def test_text_from_the_command_line_takes_the_settings_type():
    s = make_settings(
        "cyclegan", lambda_gc="0.1", iterations="40", gc_absolute="false", patients="all", gc_operator="sobel"
    )
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
        ("dicyclegan", "quick", {"offset_layers": "some"}, "offset_layers"),
        ("cyclegan", "quick", {"iterations": 0, "decay_iterations": 0}, "at least one step"),
        ("cyclegan", "quick", {"epochs": 0, "decay_iterations": 0}, "at least one step"),
        ("cyclegan", "quick", {"lambda_align": "1"}, "lambda_align does nothing with method cyclegan"),
        ("cyclegan", "quick", {"lambda_gc": 0.0, "gc_operator": "sobel"}, "gc_operator does nothing with lambda_gc=0"),
        ("dicyclegan", "quick", {"gc_absolute": False}, "gc_absolute does nothing with lambda_gc=0"),
        ("cyclegan", "quick", {"iterations": 5, "epochs": 1}, "iterations and epochs both say"),
        ("cyclegan", "quick", {"epochs": "-1"}, "epochs=-1 is too small"),
        ("cyclegan", "quick", {"patience": "0"}, "patience=0 is too small; expected at least 1"),
        ("cyclegan", "quick", {"batch_size": 0}, "batch_size=0"),
        ("cyclegan", "quick", {"seed": 2**61}, r"seed=2305843009213693952 is too large; expected less than 2\*\*61"),
    ],
)
def test_what_cannot_be_meant_is_named(method, profile, changes, words):
    with pytest.raises(InputError, match=words):
        make_settings(method, profile, **changes)


def test_an_epoch_sees_the_larger_domain_once():
    s = make_settings("cyclegan", epochs=3, decay_epochs=2, batch_size=4)
    assert s.steps_per_epoch(9) == 3 and s.steps_per_epoch(8) == 2
    assert (s.in_steps(9).iterations, s.in_steps(9).decay_iterations) == (9, 6)
    plain = make_settings("cyclegan", iterations=5, decay_iterations=4)
    assert plain.in_steps(9) == plain


def test_steps_that_are_asked_for_take_the_place_of_a_profiles_epochs():
    s = make_settings("dicyclegan", "paper", iterations=40)
    assert (s.epochs, s.decay_epochs, s.in_steps(10).iterations, s.in_steps(10).decay_iterations) == (
        None,
        100,
        40,
        1000,
    )


ENGINE = Path(__file__).parents[1] / "docs" / "engine.md"
CELLS = re.compile(r"^\| (\w+) \| (.+?) \| ([PSI]) \| (.+?) \| `(.+?)` \| (.*?) ?\|$", flags=re.MULTILINE)


def table(method):
    """Rows of the method's table in docs/engine.md: name, paper, mark, here, where, switch."""
    parts = ENGINE.read_text(encoding="utf-8").split("\n### ")
    (part,) = (part for part in parts if f"`mr2ct train {method} --profile paper`" in part.splitlines()[0])
    return CELLS.findall(part)


def literal(text):
    try:
        return ast.literal_eval(text.split(" (")[0] if not text.startswith("(") else text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_the_table_of_settings_is_what_the_papers_say_and_what_the_code_does(method):
    rows = table(method)
    assert [name for name, *_ in rows] == list(papers.METHODS[method])
    settings = make_settings(method, "paper")
    paper_grids = scanner.PROFILES["paper"].grids
    grids = {name: paper_grids[name]["source"] for name in ("head", "abdomen")}
    modules = (hip, catalogue, metrics, intensity, losses, networks, physics, segmentation)
    names = (
        {module.__name__.split(".")[-1]: module for module in modules}
        | grids
        | {"settings": settings, "signature": inspect.signature}
    )
    names |= {"PROFILES": PROFILES, "hip_mr": paper_grids["hip"]["source"], "hip_ct": paper_grids["hip"]["target"]}
    for name, paper, mark, here, where, switch in rows:
        known = papers.METHODS[method][name]
        assert (literal(paper), mark) == (known.value, known.mark), name
        found = eval(where, names)  # expressions of our own document
        assert callable(found) or found == literal(here), f"{name}: {where} is {found!r}, not {here}"
        if literal(here) != known.value:
            assert "(" in here or name in ("gc_operator", "normalisation", "nmi", "augmentation"), (
                f"{name}: say why it differs"
            )
        if switch.startswith("`--set"):
            assert hasattr(settings, switch.strip("`").split()[1]), switch
        elif switch:
            assert switch.strip("`").split()[-1] in option_names(switch.strip("`").split()[1:-1]), switch


def option_names(words):
    """The options of a command of `mr2ct`."""
    import typer

    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    return {name for parameter in command.params for name in parameter.opts}
