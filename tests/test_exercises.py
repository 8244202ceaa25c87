"""Each exercise of the course: the stub says what to do, the solution passes, a plausible wrong answer is caught."""

import json

import pytest

from mr2ct_lib.course import exercises as library
from mr2ct_lib.files import InputError
from tools import exercises, numbered_notebooks

EXERCISES = [exercise for source in sorted(exercises.SOURCES.glob("*.py")) for exercise in exercises.read(source)]
KINDS = ("recall", "change and see", "build")


def said(exercise: exercises.Exercise, version: str, capsys: pytest.CaptureFixture) -> str:
    """Run a version of an exercise as a reader's cell, and return what its check prints."""
    names = {}
    exec(exercise.prelude, names)  # noqa: S102
    exec("from mr2ct_lib.course.exercises import check", names)  # noqa: S102
    exec(exercise.version(version), names)  # noqa: S102
    return capsys.readouterr().out


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_stub_fails_with_help_solution_passes_wrong_answer_is_caught(
    exercise: exercises.Exercise, capsys: pytest.CaptureFixture
) -> None:
    stub, solution, wrong = (said(exercise, version, capsys) for version in exercises.VERSIONS)
    assert solution.startswith(f"exercise {exercise.number} solved: ")
    for failing in (stub, wrong):
        assert failing.startswith(f"exercise {exercise.number}, not solved yet: ")
        assert "your code stops" not in failing
        assert len(failing.split()) > 8 and failing.rstrip().endswith((".", "lines", "degrees", "None"))
    assert stub != wrong


def test_every_notebook_has_the_three_kinds_and_every_check_is_used() -> None:
    for notebook in numbered_notebooks():
        tasks = [exercise.task.splitlines()[0] for exercise in exercises.exercises_of(notebook)]
        found = sorted(kind for kind in KINDS for task in tasks if f"({kind})" in task)
        assert found in (sorted(KINDS), []), notebook.name
    assert [exercise.number for exercise in EXERCISES] == sorted(library.CHECKS)


@pytest.mark.parametrize("notebook", numbered_notebooks(), ids=lambda path: path.stem)
def test_notebook_holds_what_its_source_says(notebook, capsys: pytest.CaptureFixture) -> None:
    cells = {cell.get("id"): cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]}
    for exercise in exercises.exercises_of(notebook):
        for name, text in exercises.sources(exercise).items():
            assert "".join(cells[name]["source"]) == text, f"run python -m tools.exercises {notebook.name[:2]}"
        stored = "".join(cells[f"exercise-{exercise.number[-1]}"]["outputs"][0]["text"])
        assert stored == said(exercise, "stub", capsys)


def test_stub_shows_nothing_of_the_solution() -> None:
    for exercise in EXERCISES:
        hidden = set(exercise.version("solution").splitlines()) - set(exercise.version("stub").splitlines())
        assert hidden and "#|" not in exercise.version("stub")
        task, fold = exercise.text().split("<details>")
        assert all(line.strip() not in task for line in hidden if len(line) > 12)
        assert all(line.strip() in fold for line in hidden)


def test_unknown_number_and_code_that_raises(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="expected one of 01.1"):
        library.check("09.1", None)
    library.check("06.3", lambda width, shift: 1 / 0)
    assert "your code stops with ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# %% [markdown] 2\n# task\n# %%\na = 1\n# %% [markdown] solution\n# why\n", "expected '[markdown] 1'"),
        ("# %% [markdown] 1\n# task\n# %%\na = 1  #| stubb\n# %% [markdown] solution\n# why\n", "' stubb'"),
    ],
)
def test_bad_source_is_refused(source: str, message: str, tmp_path) -> None:
    path = tmp_path / "01.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        exercises.read(path)
    assert message in str(refused.value)
