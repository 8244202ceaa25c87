"""Loss curves of the library's step and of the plain loop, 500 steps, quick size, three seeds (ten minutes)."""

import numpy as np

from benchmarks.measure import DEVICE, SIZES, prepared, show, trainer
from benchmarks.plain import PlainCycleGAN
from mr2ct_lib.methods.settings import make_settings

STEPS, SEEDS, TERMS = 500, (1, 2, 3), ("adversarial", "cycle", "gc", "discriminator_source", "discriminator_target")


def curve(step) -> np.ndarray:
    """Terms of five hundred steps as means over fifty: (10, terms)."""
    lines = [[float(terms[name]) for name in TERMS] for terms in (step() for _ in range(STEPS))]
    return np.array(lines).reshape(10, -1, len(TERMS)).mean(1)


def main() -> None:
    """Print, for each term, the distance of the means over seeds in units of the spread between seeds."""
    fast = np.stack(
        [curve(trainer("cyclegan", "quick", seed=seed, pool_size=0).step) for seed in SEEDS]
    )  # (seeds, 10, terms)
    data = prepared(SIZES["quick"])
    settings = [make_settings("cyclegan", "quick", seed=seed, pool_size=0) for seed in SEEDS]
    plain = np.stack([curve(PlainCycleGAN(s, data, DEVICE).step) for s in settings])
    for i, name in enumerate(TERMS):
        apart = np.abs(fast.mean(0) - plain.mean(0))[:, i].mean()
        spread = (np.ptp(plain[..., i], axis=0).mean() + np.ptp(fast[..., i], axis=0).mean()) / 2
        show(
            f"curve of {name}: distance of the means : spread of seeds",
            apart / spread,
            "<= 1",
            f"{apart:.4f} : {spread:.4f}",
        )
