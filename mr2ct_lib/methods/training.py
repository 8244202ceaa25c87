"""One training step of either method, and all that a run keeps between two steps.

The loss terms stand in `cyclegan` and `dicyclegan`; the run's folder and the loop over steps in `runs`. Every random
draw of a run (slices, augmentation, image pools) is a function of the seed and the step. A run therefore needs only its
networks, optimisers, pools and step number to continue exactly as if it had never stopped, on any number of processes.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices, mean_slices, where_patient
from mr2ct_lib.methods import cyclegan, dicyclegan, hardware
from mr2ct_lib.methods.captured import Batches, CapturedUpdate, CudaRecorder
from mr2ct_lib.methods.networks import Discriminator, initialise, start_upright
from mr2ct_lib.methods.offsets import register
from mr2ct_lib.methods.settings import Settings
from mr2ct_lib.methods.stopping import CollapseWatch, Patience
from mr2ct_lib.methods.translator import Architecture, Translator

METHODS = {"cyclegan": cyclegan, "dicyclegan": dicyclegan}  # each with generator_losses and discriminator_losses


class ImagePool:
    """Past synthetic slices of one domain, half of what a discriminator sees (Shrivastava et al. 2017).

    size: how many slices it holds; 0 switches it off.
    """

    def __init__(self, size: int):
        self.size, self.images = size, []  # of tensors (1, h, w)

    def query(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Return as many slices as given, (n, 1, h, w): with probability 1/2 each is exchanged for one in the pool.

        The pool takes in every slice until it is full; from then on it takes in those that it exchanges.
        """
        returned = []
        for image in images.detach():
            if self.size == 0:
                returned.append(image)
            elif len(self.images) < self.size:
                self.images.append(image.clone())
                returned.append(image)
            elif rng.random() < 0.5:
                place = int(rng.integers(self.size))
                returned.append(self.images[place])
                self.images[place] = image.clone()
            else:
                returned.append(image)
        return torch.stack(returned)


class Networks(nn.Module):
    """The four networks of a run: two generators in `translator`, `discriminator_source`, `discriminator_target`.

    Each discriminator is named after the domain whose real slices it tells from synthetic ones.
    """

    def __init__(self, settings: Settings, preparation: Preparation):
        super().__init__()
        s = settings
        offset_layers = s.offset_layers if s.method == "dicyclegan" else None
        architecture = Architecture(s.filters, s.blocks, offset_layers, s.upsampling)
        self.translator = Translator(architecture, preparation, dataclasses.asdict(s))
        self.discriminator_source = Discriminator(s.discriminator_filters, s.discriminator_layers)
        self.discriminator_target = Discriminator(s.discriminator_filters, s.discriminator_layers)
        generators = (self.translator.source_to_target, self.translator.target_to_source)
        for i, network in enumerate((*generators, self.discriminator_source, self.discriminator_target)):
            initialise(network, seed=4 * s.seed + i)


class Trainer:
    """A run between two steps: networks, optimisers, image pools, step number. `step()` makes one more step."""

    def __init__(self, settings: Settings, data: PreparedSlices, fabric: Fabric):
        self.settings, self.data, self.fabric, self.step_number = settings, data, fabric, 0
        self.batches = Batches(data, settings, fabric.device)
        hardware.keep_memory()
        self.precision = fabric.broadcast(
            hardware.choose_precision(settings.precision, fabric.device, 4 * settings.filters)
        )
        layout = hardware.memory_format(fabric.device, self.precision)
        networks = Networks(settings, data.preparation)
        if networks.translator.architecture.offset_layers == "field":  # so that mean slices agree
            means = [map(torch.from_numpy, mean_slices(data, domain, settings.patients)) for domain in DOMAINS]
            generators = (networks.translator.source_to_target, networks.translator.target_to_source)
            register(generators[0].offsets[0], *zip(*means, strict=True))
            shown = [self._some_slices(domain) for domain in DOMAINS]
            for generator, read, wanted in zip(generators, shown, reversed(shown), strict=True):
                start_upright(generator, read, wanted)
        self.networks = fabric.to_device(networks).to(memory_format=layout)
        discriminators = (self.networks.discriminator_source, self.networks.discriminator_target)
        self.parameters = {
            "generators": list(self.networks.translator.parameters()),
            "discriminators": [p for network in discriminators for p in network.parameters()],
        }
        self.optimisers = {name: self._adam(parameters) for name, parameters in self.parameters.items()}
        self._reset_updates()
        self.averaged = copy.deepcopy(self.networks.translator).requires_grad_(False)  # the result of the run
        self.pools = {domain: ImagePool(settings.pool_size) for domain in DOMAINS}
        self.patience, self.collapse, self.stopped_early = Patience(), CollapseWatch(), False
        self.epoch = settings.steps_per_epoch(max(data.count(domain, settings.patients) for domain in DOMAINS))

    def _some_slices(self, domain: str) -> tuple[Tensor, Tensor]:
        """Up to 16 slices (n, h, w) of a domain, at equal distances, and where they show the patient."""
        slices = getattr(self.data, domain)[: self.data.count(domain, self.settings.patients)]
        slices = slices[:: -(-len(slices) // 16)]
        return torch.from_numpy(slices.astype(np.float32)), torch.from_numpy(where_patient(slices))

    @property
    def asynchronous(self) -> bool:
        """Whether a step returns before its work is done, so that reading its losses would make the device wait."""
        return self.fabric.device.type == "cuda"

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the second phase has run out of patience."""
        return self.stopped_early or self.step_number >= self.settings.total_iterations

    def step(self) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, as in Zhu et al. 2017.

        Returns the loss terms of the step, each a scalar on the run's device, averaged over processes.
        """
        self.set_learning_rate()
        real = {domain: self._share(x) for domain, x in self.batches.of_step(self.step_number).items()}
        terms, synthetic = self.updates["generators"](real)
        terms = terms | self.updates["discriminators"](real, self.from_pools(synthetic))
        self.step_number += 1
        self.average_weights()
        means = self.fabric.all_reduce(torch.stack([term.float() for term in terms.values()]), reduce_op="mean")
        return dict(zip(terms, means, strict=True))

    def set_learning_rate(self) -> None:
        """Give both optimisers the rates of the next step."""
        generators = self.settings.learning_rate_at(self.step_number)
        rates = {"generators": generators, "discriminators": generators * self.settings.discriminator_rate}
        for name, optimiser in self.optimisers.items():
            rate = rates[name]
            group = optimiser.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # recorded updates read it in this place
            else:
                group["lr"] = rate

    def update_generators(self, real: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One Adam step of both generators; their loss terms and the synthetic slices of each domain, detached."""
        s = self.settings
        for parameter in self.parameters["discriminators"]:
            parameter.requires_grad_(False)  # gradients pass through them to the generators
        with hardware.autocast(self.fabric.device, self.precision):
            terms, *synthetic = METHODS[s.method].generator_losses(self.networks, real["source"], real["target"], s)
        self._descend("generators", sum(terms.values()))
        slices = {domain: x.detach() for domain, x in zip(DOMAINS, synthetic, strict=True)}
        return {name: term.detach() for name, term in terms.items()}, slices

    def update_discriminators(self, real: dict[str, Tensor], synthetic: dict[str, Tensor]) -> dict[str, Tensor]:
        """One Adam step of both discriminators; their loss terms."""
        for parameter in self.parameters["discriminators"]:
            parameter.requires_grad_(True)
        with hardware.autocast(self.fabric.device, self.precision):
            terms = METHODS[self.settings.method].discriminator_losses(self.networks, real, synthetic)
        self._descend("discriminators", sum(terms.values()))
        return {name: term.detach() for name, term in terms.items()}

    def from_pools(self, synthetic: dict[str, Tensor]) -> dict[str, Tensor]:
        """The synthetic slices that the discriminators see: half of them from the image pools.

        Every process keeps the same pools: it puts in the slices of all processes, in the order of the whole batch.
        """
        seen = {}
        for i, domain in enumerate(DOMAINS):
            slices = synthetic[domain]
            if self.fabric.world_size > 1:
                slices = self.fabric.all_gather(slices).transpose(0, 1).flatten(0, 1)
            rng = np.random.default_rng((self.settings.seed, self.step_number, i))
            seen[domain] = self._share(self.pools[domain].query(slices, rng))
        return seen

    @torch.no_grad()  # a history of the weights would grow with every step, and tie what is recorded to another stream
    def average_weights(self) -> None:
        """Move the averaged generators towards those of this step: a plain mean at first, then a running mean."""
        kept = min(self.settings.average, 1 - 1 / self.step_number)
        torch._foreach_lerp_(list(self.averaged.parameters()), self.parameters["generators"], 1 - kept)

    def count_patience(self, loss: float, step: int) -> None:
        """Take the total generator loss of a step into early stopping, which may end the phase or the run."""
        s, first = self.settings, step <= self.settings.iterations
        if self.patience.is_exhausted(loss, self.epoch, s.patience if first else s.decay_patience):
            if first:
                self.settings = dataclasses.replace(s, iterations=step)
            self.stopped_early = not first
        if step == self.settings.iterations:
            self.patience = Patience()  # the second phase counts anew

    def _share(self, batch: Tensor) -> Tensor:
        """This process's part of a whole batch (n, ...)."""
        return batch[self.fabric.global_rank :: self.fabric.world_size]

    def _adam(self, parameters: list[nn.Parameter]) -> torch.optim.Adam:
        """Adam as in Zhu et al. 2017; on a GPU with its rate in a tensor, so that it can be recorded."""
        s, gpu = self.settings, self.fabric.device.type == "cuda"
        rate = torch.tensor(s.learning_rate, device=self.fabric.device) if gpu else s.learning_rate
        return torch.optim.Adam(parameters, rate, betas=(s.beta1, 0.999), fused=True, capturable=gpu)

    def _reset_updates(self, scales: dict[str, Any] | None = None, record: bool = True) -> None:
        """Start again with warm-up and recording of both updates.

        scales: states of loss scaling to continue with; record: False where it failed.
        """
        device = self.fabric.device
        scaled = self.precision == "float16"  # small range: losses are scaled up, and steps with overflow left out
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=scaled) for name in self.parameters}
        for name, scaler in self.scalers.items():
            scaler.load_state_dict((scales or {}).get(name, {}) or scaler.state_dict())
        alone = self.fabric.world_size == 1
        recorder = CudaRecorder(device) if record and alone and device.type == "cuda" else None
        updates = {"generators": self.update_generators, "discriminators": self.update_discriminators}
        self.updates = {
            name: CapturedUpdate(update, recorder, self._launch_one_by_one) for name, update in updates.items()
        }

    def _launch_one_by_one(self) -> None:
        """Go on without recorded updates, and forget the one that was broken off while it was recorded."""
        for optimiser in self.optimisers.values():
            for left in ("grad_scale", "found_inf"):  # there during a step; loss scaling multiplies by what it finds
                vars(optimiser).pop(left, None)
        self._reset_updates({name: scaler.state_dict() for name, scaler in self.scalers.items()}, record=False)

    def _descend(self, name: str, loss: Tensor) -> None:
        """Backward pass, mean of the gradients over processes, one Adam step."""
        optimiser, parameters, scaler = self.optimisers[name], self.parameters[name], self.scalers[name]
        optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(scaler.scale(loss))
        if self.fabric.world_size > 1:
            used = [p for p in parameters if p.grad is not None]
            flat = self.fabric.all_reduce(torch.cat([p.grad.flatten() for p in used]), reduce_op="mean")
            for p, mean in zip(used, flat.split([p.numel() for p in used]), strict=True):
                p.grad.copy_(mean.view(p.shape))
        scaler.step(optimiser)
        scaler.update()

    def state(self) -> dict[str, Any]:
        """All that the run needs to continue, as tensors and plain values."""
        return {
            "step": self.step_number,
            "precision": self.precision,
            "networks": self.networks.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": {name: optimiser.state_dict()["state"] for name, optimiser in self.optimisers.items()},
            "scales": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "pools": {domain: pool.images for domain, pool in self.pools.items()},
            "stopping": {
                "iterations": self.settings.iterations,
                "patience": dataclasses.asdict(self.patience),
                "stopped_early": self.stopped_early,
                "collapse": self.collapse.steps,
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned. Raises RuntimeError or KeyError when it is of another architecture."""
        self.networks.load_state_dict(state["networks"])
        self.averaged.load_state_dict(state["averaged"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state["optimisers"][name]})
            for parameter, moments in optimiser.state.items():  # saved in the layout of another device, perhaps
                for kept in ("exp_avg", "exp_avg_sq"):
                    moments[kept] = torch.empty_like(parameter).copy_(moments[kept])
        for domain, pool in self.pools.items():
            pool.images = [self.fabric.to_device(image) for image in state["pools"][domain]]
        stopping, device = state["stopping"], self.fabric.device
        self.settings = dataclasses.replace(self.settings, iterations=stopping["iterations"])
        self.patience, self.collapse = Patience(**stopping["patience"]), CollapseWatch(stopping["collapse"])
        self.stopped_early = stopping["stopped_early"]
        self.step_number = state["step"]
        if self.settings.precision != "auto" or state["precision"] in ("float32", hardware.lower_precision(device)):
            self.precision = state["precision"]  # else it is of a device that has another 16-bit type
        self._reset_updates(state["scales"])
