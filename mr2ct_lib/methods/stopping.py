"""When a run enters its second phase, ends early, or must stop. The counts are kept in the checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from mr2ct_lib.files import InputError

# A discriminator that knows nothing scores every patch 1/2: its loss is 1/4. One that is never wrong has a loss of 0.
# Both happen for single steps. A discriminator that stays there teaches the generators nothing, and nothing brings it
# back.
UNDECIDED = 0.25
NEAR = 1e-3
COLLAPSED_STEPS = 200
# Mean loss of both at the end of a run: 0.02 to 0.2 in recorded runs, 0.001 in the one whose images are negatives
IGNORED = 0.01


@dataclass
class Patience:
    """Early stopping of Wang et al. 2018, for one phase: epochs since the mean total loss of an epoch was lowest.

    The total loss is that of the generators, all terms weighted. An epoch is one pass through the larger domain.

    >>> patience = Patience()
    >>> [patience.is_exhausted(loss, epoch=1, limit=2) for loss in (3.0, 2.0, 2.5, 2.0)]
    [False, False, False, True]
    """

    best: float = math.inf
    waited: int = 0  # epochs
    total: float = 0.0  # sum of the losses of this epoch so far
    steps: int = 0  # of this epoch so far

    def is_exhausted(self, loss: float, epoch: int, limit: int | None) -> bool:
        """Count one step's loss. True when `limit` epochs (of `epoch` steps) in a row were not lower; None: never."""
        self.total, self.steps = self.total + loss, self.steps + 1
        if self.steps == epoch:
            mean, self.total, self.steps = self.total / epoch, 0.0, 0
            self.best, self.waited = (mean, 0) if mean < self.best else (self.best, self.waited + 1)
        return limit is not None and self.waited >= limit


@dataclass
class CollapseWatch:
    """How many steps in a row each discriminator has been undecided, or never wrong."""

    steps: dict[str, int] = field(default_factory=dict)

    @property
    def suspects(self) -> bool:
        """True while a discriminator may be collapsing: such a state makes no good checkpoint."""
        return max(self.steps.values(), default=0) > COLLAPSED_STEPS // 4

    def check(self, terms: dict[str, float], step: int, run: object, slices: Callable[[int], str]) -> None:
        """Count the loss terms of a step.

        Args:
            terms: loss terms; those of the discriminators have names that begin with "discriminator_".
            step: the number of the step, from 1.
            run: the run's folder, for the message.
            slices: says which slices a step was trained on, for the message.

        Raises InputError when a term is not finite or a discriminator has collapsed.
        """
        for name, value in terms.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{run}: the {name} loss is {value} at step {step}, on {slices(step)}; expected a finite number. "
                    "The last good checkpoint is kept. Look at these slices for odd values, or lower learning_rate"
                )
            if name.startswith("discriminator_"):
                self._count(name, value, step, run)

    def _count(self, name: str, value: float, step: int, run: object) -> None:
        """Count the steps in a row in which the discriminator taught nothing; InputError after COLLAPSED_STEPS."""
        stuck = value < NEAR or abs(value - UNDECIDED) < NEAR
        self.steps[name] = self.steps.get(name, 0) + 1 if stuck else 0
        if self.steps[name] >= COLLAPSED_STEPS:
            state = "is never wrong, so the generators learn nothing" if value < NEAR else "scores everything alike"
            raise InputError(
                f"{run}: {name} has collapsed. Its loss is {value:.4f} at step {step} and has been for "
                f"{COLLAPSED_STEPS} steps: it {state}. The last good checkpoint is kept. Start a new run with a lower "
                "learning_rate, another seed or more slices"
            )


def ignored_discriminators(log: list[dict[str, float]]) -> str | None:
    """Return a warning where both discriminators were hardly ever wrong in the last tenth of a run; None elsewhere.

    log: lines of log.jsonl, all of one run. Such generators went their own way: cycle and GC losses can be low for
    images that no discriminator believes, for example negatives.

    >>> ignored_discriminators([{"discriminator_source": 0.1, "discriminator_target": 0.001}]) is None
    True
    """
    names = sorted({name for line in log for name in line if name.startswith("discriminator_")})
    end = log[-max(1, len(log) // 10) :]
    means = [sum(line[name] for line in end) / len(end) for name in names]
    if not names or max(means) >= IGNORED:
        return None
    found = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True))
    return (
        f"the discriminators know nearly every synthetic slice from a real one (mean loss at the end: {found}; "
        f"expected {IGNORED} or more), so the images may be far from their domain. Look at samples/, and train with "
        "another seed"
    )
