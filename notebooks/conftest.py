"""What nbval leaves out when it compares a notebook's outputs with the stored ones."""

import pytest

from tools import quiet_kernels

quiet_kernels()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave warnings and progress on stderr out of the comparison: they depend on the machine."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
