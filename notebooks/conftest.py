"""What nbval leaves out when it compares a notebook's outputs with the stored ones."""

import pytest

from tools import quiet_kernels
from tools.hygiene import WIDGET_VIEW

quiet_kernels()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave warnings and progress on stderr out of the comparison: they depend on the machine."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave widgets, progress bars among them, out of the comparison: they are not stored."""
    compare = getattr(item, "compare_outputs", None)
    if compare:
        without_widgets = lambda outputs: [one for one in outputs if WIDGET_VIEW not in one.get("data", {})]  # noqa: E731
        item.compare_outputs = lambda new, stored: compare(without_widgets(new), stored)
