"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("MR2CT_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped where there is none (set MR2CT_REAL_DATA to point at it)."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real scans here; set MR2CT_REAL_DATA to the folder that holds them")
    return REAL_DATA
