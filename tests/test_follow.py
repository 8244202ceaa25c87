"""Curves that follow a run look at its folder alone, draw when it has grown, and end when they should."""

import json
import types
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

from mr2ct_lib.course import widgets  # noqa: E402
from mr2ct_lib.files import InputError  # noqa: E402


def log(run: Path, steps: int) -> Path:
    run.mkdir(exist_ok=True)
    lines = [json.dumps({"step": step, "cycle": 1 / step, "discriminator_target": 0.2}) for step in range(1, steps + 1)]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    return run


@pytest.fixture
def shown(monkeypatch):
    """The figures that `follow` displays, as if in a notebook."""
    seen = []
    monkeypatch.setattr(
        widgets, "display", lambda figure, display_id: seen.append(figure) or types.SimpleNamespace(update=seen.append)
    )
    return seen


def test_follow_returns_at_once_when_the_run_is_finished_or_far_enough(tmp_path: Path, shown) -> None:
    run = log(tmp_path / "run", 20)
    assert len(widgets.follow(run, until=10)) == 20 and len(shown) == 1
    (run / "translator").mkdir()
    (run / "translator" / "translator.json").write_text("{}")
    assert widgets.follow(run, terms=["cycle"])[-1]["step"] == 20
    assert [ax.get_title() for ax in shown[1].axes] == ["cycle"]


def test_follow_draws_again_as_the_log_of_another_process_grows(tmp_path: Path, shown, monkeypatch) -> None:
    monkeypatch.setattr(widgets, "get_ipython", object)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    grown = iter((5, 5, 9))
    monkeypatch.setattr(widgets.time, "sleep", lambda _: log(tmp_path / "run", next(grown)))
    assert len(widgets.follow(tmp_path / "run", until=9)) == 9
    assert [len(figure.axes[0].lines[0].get_xdata()) for figure in shown] == [5, 9]  # not there yet, 5, 5 again, 9


def test_follow_ends_with_the_process_and_says_when_there_was_nothing(tmp_path: Path, shown) -> None:
    ended = types.SimpleNamespace(poll=lambda: 2)
    with pytest.raises(InputError, match="no step is logged yet"):
        widgets.follow(tmp_path / "run", process=ended)
    assert len(widgets.follow(log(tmp_path / "run", 3), process=ended)) == 3
    assert len(widgets.follow(tmp_path / "run", timeout=0)) == 3 and len(shown) == 2
