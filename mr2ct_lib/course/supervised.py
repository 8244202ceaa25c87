"""The bound from above: the same two generators, trained on true pairs with L1, as no clinic without pairs could.

What an unpaired method still lacks of it is what the missing pairs cost; what this lacks of the truth is not in the
source image, or beyond this network and this number of patients.
"""

import torch
from torch import Tensor

from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import epoch_indices
from mr2ct_lib.methods import hardware, losses
from mr2ct_lib.methods.captured import without_waiting
from mr2ct_lib.methods.training import Trainer


class SupervisedTrainer(Trainer):
    """A run of both generators on pairs; no discriminator, no cycle. Steps, rates and averaging as in any other run.

    Each generator learns the truth of its own direction: the other scan, or, where the scanners see another shape,
    the other contrast on the source's shape. Discriminators and image pools are there and stay unused.
    """

    def step(self) -> dict[str, Tensor]:
        """Update the generators; return both L1 losses, scalars."""
        self.set_learning_rate()
        pairs = self.pairs()
        terms = self.updates["generators"](*({way: pair[i] for way, pair in pairs.items()} for i in (0, 1)))
        self.step_number += 1
        self.average_weights()
        return {direction: term.clone() for direction, term in terms.items()}  # a recorded update overwrites its terms

    def update_generators(self, real: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """One Adam step of both generators on the slices of each direction; their L1 losses."""
        generators = self.networks.translator
        with hardware.autocast(self.fabric.device, self.precision):
            terms = {
                direction: losses.cycle(truth[direction], getattr(generators, direction)(slices))  # a mean over pixels
                for direction, slices in real.items()
            }
        self._descend("generators", sum(terms.values()))
        return {direction: term.detach() for direction, term in terms.items()}

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return {direction: (real slices, their truth)}, (n, 1, h, w), of the next step: a permutation per epoch."""
        s, data = self.settings, self.data
        if not data.meta.get("paired"):
            raise InputError(f"{data.folder}: is not paired; expected a cohort made with --paired")
        chosen = epoch_indices(data.count("source", s.patients), self.step_number, s.batch_size, s.seed)
        truths = {
            "source_to_target": (data.source, data.target if (t := data.truth_source_to_target) is None else t),
            "target_to_source": (data.target, data.source if (t := data.truth_target_to_source) is None else t),
        }
        return {
            direction: tuple(
                without_waiting(self._share(torch.tensor(array[chosen])[:, None]), self.fabric.device)
                for array in arrays
            )
            for direction, arrays in truths.items()
        }
