"""docs/gallery.md: three patients of each anatomy, chosen by number: python -m tools.gallery.

Of the test patients of the full profile, the one with the median, the lowest and the highest recorded MAE, seen through
the recorded translator. Anatomies without a recorded translator are skipped. Scans that are not in runs/ are made now.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mr2ct_lib.course import experiments
from mr2ct_lib.course.catalogue import SEEDS, TRAININGS
from mr2ct_lib.course.figures import synthesis_row
from mr2ct_lib.course.recorded import find_translator
from mr2ct_lib.files import InputError, atomic
from mr2ct_lib.images.intensity import Window
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.measures.evaluation import truth_of
from mr2ct_lib.methods.translator import Translator

DOCS = Path(__file__).parents[1] / "docs"
SOFT_TISSUE = Window(-160.0, 240.0, "HU")  # that of the networks reaches to -800 HU; organs hardly differ in it
# title -> runs, of which the first that is recorded is shown; names of both scans; the window of the CT, None for the
# networks' own
SHOWN = {
    "Hips: MR to CT": (("hip_many_gc",), ("MR", "CT"), None),
    "Distorted heads: PD to T2": (("head_distorted_field", "head_distorted_dicyclegan"), ("PD", "T2"), None),
    "Distorted heads: T1 to T2": (("head_t1_field",), ("T1", "T2"), None),
    "Abdomens: T2* to CT": (("abdomen_field", "abdomen_dicyclegan"), ("T2*", "CT"), SOFT_TISSUE),
}
HEAD = """# Gallery: the median, the best and the worst patient

Three test patients of each anatomy, chosen by their error and not by their looks: those with the median, the lowest and
the highest MAE of the recorded translator (seed {seed}, full profile). Each row shows the middle slice of the patient.
Red in the error map is too bright, blue too dark. A grey level is 1/255 of the window. The pictures show one seed only,
so they do not show how reliable the method is. Compare the MAE of the other seeds: one that is far larger means a
failed run ([notebook 5](../notebooks/05_evaluation.ipynb#the-second-paper-aligned-synthesis) shows two). `python -m
tools.gallery` makes this page again.
"""


def choose(errors: pd.DataFrame) -> dict[str, str]:
    """Return {"median": patient, "best": ..., "worst": ...} by MAE; of an even number the upper median.

    errors: columns patient and MAE, a row per patient. Raises InputError for fewer than three patients.
    """
    if len(errors) < 3:
        raise InputError(f"errors: {len(errors)} patients; expected at least 3 to choose from")
    order = errors.sort_values(["MAE", "patient"]).patient.tolist()
    return {"median": order[len(order) // 2], "best": order[0], "worst": order[-1]}


def row_of(
    test: PreparedSlices,
    synthetic: np.ndarray,
    at: int,
    names: tuple[str, str] = ("MR", "CT"),
    shown: Window | None = None,
) -> plt.Figure:
    """Return source | synthetic | truth | error of slice `at`; synthetic (h, w) in [-1, 1].

    shown: the window in which target and error are drawn; None for the networks' own.
    """
    source, target = test.windows["source"], test.windows["target"]
    return synthesis_row(
        source.from_network(np.asarray(test.source[at])),
        target.from_network(synthetic),
        target.from_network(truth_of(test, "source_to_target")[at]),
        source,
        shown or target,
        mask=None if test.valid is None else np.asarray(test.valid[at]),
        names=names,
        plane=test.preparation.plane,
        pixel=test.preparation.pixel,
    )


def draw(
    run: str, translator: Translator, patient: str, names: tuple[str, str], shown: Window | None = None
) -> plt.Figure:
    """Return source | synthetic | truth | error of a patient's middle slice."""
    test = experiments.prepared(f"{TRAININGS[run].cohort}_test", "full")
    where = dict(test.patients("source"))[patient]
    at = (where.start + where.stop) // 2
    return row_of(test, translator.translate(np.asarray(test.source[at])[None])[0], at, names, shown)


def is_recorded(run: str) -> bool:
    """Return whether there is a recorded translator of this name."""
    try:
        find_translator(run)
    except InputError:
        return False
    return True


def section(title: str, folder: Path) -> str:
    """Write the pictures of an anatomy and return its part of the page; empty without a recorded translator."""
    runs, (source, target), shown = SHOWN[title]
    run = next((name for name in runs if is_recorded(name)), None)
    if run is None:
        return ""
    translator = experiments.recorded_translator(run)
    images, provenance = experiments.recorded("images", "full")
    images = images[(images.run == run) & (images.direction == "source_to_target")]
    errors = images[images.seed == SEEDS[0]]
    values, steps = errors.set_index("patient").MAE, provenance["runs"][f"{run}:{SEEDS[0]}"]["steps"]
    others = [f"{mae:.1f}" for seed, mae in images.groupby("seed").MAE.mean().items() if seed != SEEDS[0]]
    text = f"\n## {title}\n\n`{run}`, {steps} steps; MAE of {len(errors)} test patients {values.mean():.1f} grey levels"
    text += f" (with other seeds: {', '.join(others)}).\n" if others else ".\n"
    if shown:
        own = translator.preparation.windows["target"]
        text += f"\n{target} is shown in the window for soft tissue, {shown}, to tell organs apart; the network sees"
        text += f" {own}, and the errors are those of that window.\n"
    for which, patient in choose(errors).items():
        path = folder / f"gallery_{run}_{which}.jpg"
        figure = draw(run, translator, patient, (source, target), shown)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=90, format="jpg", pil_kwargs={"quality": 85})
        plt.close(figure)
        about = f"{which} patient {patient}, MAE {values[patient]:.1f} grey levels"
        alt = f"{source}, synthetic {target}, true {target} and error map of the {about}"
        text += f"\n**The {about}.**\n\n![{alt}]({path.name})\n"
    return text


def main() -> None:
    """Write the page and its pictures, and say which anatomies are missing."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    parts = {title: section(title, DOCS) for title in SHOWN}
    with atomic(DOCS / "gallery.md") as temporary:
        temporary.write_text(HEAD.format(seed=SEEDS[0]) + "".join(parts.values()), encoding="utf-8")
    missing = ", ".join(title for title, text in parts.items() if not text)
    print(f"docs/gallery.md: {sum(map(bool, parts.values()))} anatomies; not recorded: {missing or 'none'}")


if __name__ == "__main__":
    main()
