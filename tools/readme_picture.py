"""docs/overview.jpg, the picture of the README: python -m tools.readme_picture [slice].

It is made by the recorded translator results/translators/hip_many_gc from a test patient of the full profile, whose
scans are made now if they are not in runs/.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from mr2ct_lib.course import experiments
from mr2ct_lib.files import atomic
from mr2ct_lib.images.slices import PreparedSlices
from tools.gallery import row_of

PICTURE = Path(__file__).parents[1] / "docs" / "overview.jpg"


def middle_slice(test: PreparedSlices) -> int:
    """The middle slice of the first test patient."""
    where = test.patients("source")[0][1]
    return (where.start + where.stop) // 2


def main(arguments: list[str]) -> None:
    """Write the picture of the given test slice, by default the middle one of the first patient."""
    test = experiments.prepared("hip_test", "full")
    index = int(arguments[0]) if arguments else middle_slice(test)
    synthetic = experiments.recorded_translator("hip_many_gc").translate(test.source[index : index + 1])
    figure = row_of(test, synthetic[0], index)
    with atomic(PICTURE) as temporary:
        figure.savefig(temporary, dpi=150, format="jpg", pil_kwargs={"quality": 85})
    print(f"{PICTURE.relative_to(PICTURE.parents[1])}: slice {index} of {len(test.source)}")


if __name__ == "__main__":
    main(sys.argv[1:])
