"""docs/overview.jpg, the picture of the README: python -m tools.readme_picture [slice].

It is made by the recorded translator results/translators/hip_many_gc from a test patient of the full profile, whose
scans are made now if they are not in runs/.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mr2ct_lib.course import experiments
from mr2ct_lib.course.figures import synthesis_row
from mr2ct_lib.files import atomic
from mr2ct_lib.images.slices import PreparedSlices

PICTURE = Path(__file__).parents[1] / "docs" / "overview.jpg"


def middle_slice(test: PreparedSlices) -> int:
    """The middle slice of the first test patient."""
    where = test.patients("source")[0][1]
    return (where.start + where.stop) // 2


def draw(test: PreparedSlices, synthetic: np.ndarray, index: int) -> plt.Figure:
    """MR | synthetic CT | true CT | error of slice `index`; synthetic (n, h, w) in [-1, 1] of all test slices."""
    source, target = test.windows["source"], test.windows["target"]
    return synthesis_row(
        source.from_network(np.asarray(test.source[index])),
        target.from_network(synthetic[index]),
        target.from_network(np.asarray(test.target[index])),
        source,
        target,
        mask=None if test.valid is None else np.asarray(test.valid[index]),
        plane=test.preparation.plane,
        pixel=test.preparation.pixel,
    )


def main(arguments: list[str]) -> None:
    """Write the picture of the given test slice, by default the middle one of the first patient."""
    test = experiments.prepared("hip_test", "full")
    index = int(arguments[0]) if arguments else middle_slice(test)
    figure = draw(test, experiments.recorded_translator("hip_many_gc").translate(test.source, spin=True), index)
    with atomic(PICTURE) as temporary:
        figure.savefig(temporary, dpi=150, format="jpg", pil_kwargs={"quality": 85})
    print(f"{PICTURE.relative_to(PICTURE.parents[1])}: slice {index} of {len(test.source)}")


if __name__ == "__main__":
    main(sys.argv[1:])
