"""When a run goes over to its second phase, ends before its time, or must not go on: all of it counted, and kept in the checkpoint."""

import math
from dataclasses import dataclass, field

from mr2ct_lib.files import InputError

# A judge that knows nothing scores every patch 1/2 and has a loss of 1/4; one that has won has a loss of 0. Both happen for a step; a
# judge that stays there for long teaches the generators nothing, and nothing brings it back.
BLIND = 0.25
NEAR = 1e-3
COLLAPSED_STEPS = 200


@dataclass
class Patience:
    """Early stopping of Wang et al. 2018, one phase at a time: epochs since the mean total loss of an epoch was lower than ever before.

    The total loss is the generators', all terms weighted. An epoch of the run is one pass through the larger domain.

    >>> patience = Patience()
    >>> [patience.is_out(loss, epoch=1, limit=2) for loss in (3.0, 2.0, 2.5, 2.0)]
    [False, False, False, True]
    """

    best: float = math.inf
    waited: int = 0  # epochs
    total: float = 0.0  # of the losses in this epoch so far
    steps: int = 0  # in this epoch so far

    def is_out(self, loss: float, epoch: int, limit: int | None) -> bool:
        """Take in one step's loss; True when `limit` epochs (of `epoch` steps) in a row brought nothing lower. None: never."""
        self.total, self.steps = self.total + loss, self.steps + 1
        if self.steps == epoch:
            mean, self.total, self.steps = self.total / epoch, 0.0, 0
            self.best, self.waited = (mean, 0) if mean < self.best else (self.best, self.waited + 1)
        return limit is not None and self.waited >= limit


@dataclass
class Judges:
    """How many steps in a row each judge has been blind, or has won."""

    steps: dict[str, int] = field(default_factory=dict)

    @property
    def suspect(self) -> bool:
        """True while a judge may be collapsing: such a state is no good checkpoint."""
        return max(self.steps.values(), default=0) > COLLAPSED_STEPS // 4

    def look(self, terms: dict[str, float], step: int, out: object) -> None:
        """Count `terms` of `step`; InputError that names the step and the loss when one is no number or a judge has collapsed."""
        for name, value in terms.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{out}: the {name} loss is {value} at step {step}; the last good checkpoint is kept. "
                    "Look at the data for odd values, or lower learning_rate"
                )
            if name.startswith("judge_"):
                stuck = value < NEAR or abs(value - BLIND) < NEAR
                self.steps[name] = self.steps.get(name, 0) + 1 if stuck else 0
                if self.steps[name] >= COLLAPSED_STEPS:
                    state = "has won: the generators learn nothing more" if value < NEAR else "scores everything alike"
                    raise InputError(
                        f"{out}: {name} has collapsed, its loss is {value:.4f} at step {step} and was so for {COLLAPSED_STEPS} steps; it "
                        f"{state}. The last good checkpoint is kept. Start anew with a lower learning_rate, another seed or more slices"
                    )
