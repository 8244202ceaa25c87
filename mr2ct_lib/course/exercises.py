"""The exercises of the course: `check("01.1", answer)` prints "solved", or one sentence that says what is still wrong.

An exercise has a number ("01.1": notebook 01, exercise 1), a stub, a solution and a check. The checks are functions of
`exercise_checks`. Stub and solution come from one source, `notebooks/exercises/NN.py`, which
`python -m tools.exercises` writes into the notebooks.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from mr2ct_lib.course import exercise_checks as checks
from mr2ct_lib.files import InputError

CHECKS: MappingProxyType[str, Callable[[Any], str]] = MappingProxyType(
    {
        "01.1": checks.flip_angles,
        "01.2": checks.gain,
        "01.3": checks.same_place,
        "02.1": checks.uncorrelated,
        "02.2": checks.signs,
        "02.3": checks.magnitude,
        "03.1": checks.twenty,
        "03.2": checks.patch_size,
        "03.3": checks.exchange,
        "04.1": checks.composition,
        "04.2": checks.rows_down,
        "04.3": checks.reaches,
        "05.1": checks.witnesses,
        "05.2": checks.patients_needed,
        "05.3": checks.by_structure,
        "06.1": checks.invented,
        "06.2": checks.strays,
        "06.3": checks.shifted_band,
        "07.1": checks.bone_window,
        "07.2": checks.without_truth,
        "07.3": checks.signed_error,
    }
)


def check(number: str, answer: Any) -> None:
    """Print whether `answer` solves an exercise, and if not, what is wrong, in one sentence.

    Args:
        number: notebook and exercise, such as "01.1".
        answer: a value or a function, as the exercise's stub prepares it. What a function raises is reported.

    Raises InputError for an unknown number.
    """
    if number not in CHECKS:
        raise InputError(f"number: {number!r}; expected one of {', '.join(CHECKS)}")
    try:
        print(f"exercise {number} solved: {CHECKS[number](answer)}")
    except checks.Wrong as wrong:
        print(f"exercise {number}, not solved yet: {wrong}")
    except Exception as error:  # whatever the reader's own code raises
        print(f"exercise {number}, not solved yet: your code stops with {type(error).__name__}: {error}")
