"""A whole volume of 256x256x38 through a generator of the papers' size."""

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.measure import seconds, show, trainer

STEPS = 20  # of training before: random weights amplify the rounding of bf16 (2.5 HU), trained ones less


def main() -> None:
    """Print the seconds of a volume, against float32 slice by slice, and how far the two lie apart."""
    run = trainer("cyclegan", "paper")
    for _ in range(STEPS):
        run.step()
    translator = run.averaged
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(38, 256, 256)), (0, 2, 2))
    slices = np.clip(5 * noise, -1, 1).astype(np.float32)
    results: dict[str, np.ndarray] = {}

    def fast() -> None:
        results["fast"] = translator.translate(slices, precision="auto")

    def slow() -> None:
        results["slow"] = np.concatenate([translator.translate(one[None]) for one in slices[:6]])

    took = seconds({"fast": fast, "slow": slow}, rounds=1)
    apart = 250 * np.abs(results["fast"][:6] - results["slow"]).mean()
    show("volume of 38 slices, seconds", took["fast"], "<= 8 with AMX", "")
    show(
        "float32 slice by slice : the volume as it is done",
        took["slow"] / 6 * 38 / took["fast"],
        "as high as can be",
        "",
    )
    show("mean distance of the two in HU (window of 500 HU)", float(apart), "<= 2", f"after {STEPS} steps of training")
