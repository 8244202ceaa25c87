"""CycleGAN with gradient consistency in the simplest form: float32, PyTorch's own layers, default Adam."""

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mr2ct_lib.images.slices import PreparedSlices, unpaired_batch
from mr2ct_lib.methods.layers import InstanceNorm
from mr2ct_lib.methods.networks import Discriminator, Generator, initialise
from mr2ct_lib.methods.settings import Settings


def usual(network: nn.Module) -> nn.Module:
    """A copy of the network, of torch.nn's own layers, contiguous in memory: the same function of the same weights."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, InstanceNorm):
            part.forward = F.instance_norm
        for plain in (nn.Conv2d, nn.ConvTranspose2d):
            if isinstance(part, plain):
                part.__class__ = plain  # the same weights, PyTorch's own forward
    return network.to(memory_format=torch.contiguous_format)


def gradient_consistency(a: Tensor, b: Tensor, operator: str) -> Tensor:
    """Eq. 4 and 5 of Hiasa et al. with magnitudes, by convolutions; operator "central" or "forward"."""
    weights = {"central": [-1.0, 0.0, 1.0], "forward": [0.0, -1.0, 1.0]}[operator]
    kernel, total = torch.tensor([[[weights]]], device=a.device), 0.0
    for k, pad in ((kernel, (1, 1, 0, 0)), (kernel.transpose(-1, -2), (0, 0, 1, 1))):
        x, y = (F.conv2d(F.pad(image, pad, mode="replicate"), k).abs().flatten(1) for image in (a, b))
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        total = total + (x * y).mean(1) / (x.square().mean(1) * y.square().mean(1) + 1e-8).sqrt()
    return (1 - total / 2).mean()


class PlainCycleGAN:
    """The algorithm, settings, initial weights and slices of the library's step, without image pool."""

    def __init__(self, s: Settings, data: PreparedSlices, device: torch.device):
        self.s, self.data, self.device, self.number = s, data, device, 0
        self.to_target, self.to_source = (
            usual(initialise(Generator(s.filters, s.blocks, upsampling=s.upsampling), 4 * s.seed + i)).to(device)
            for i in range(2)
        )
        discriminators = [Discriminator(s.discriminator_filters, s.discriminator_layers) for _ in range(2)]
        self.discriminator_source, self.discriminator_target = (
            usual(initialise(network, 4 * s.seed + 2 + i)).to(device) for i, network in enumerate(discriminators)
        )
        self.discriminators = [*self.discriminator_source.parameters(), *self.discriminator_target.parameters()]
        generators = itertools.chain(self.to_target.parameters(), self.to_source.parameters())
        self.for_generators = torch.optim.Adam(generators, s.learning_rate, betas=(s.beta1, 0.999))
        self.for_discriminators = torch.optim.Adam(self.discriminators, s.learning_rate, betas=(s.beta1, 0.999))

    def step(self) -> dict[str, float]:
        """One step: the generators' losses, then each discriminator's on real and on synthetic slices."""
        s, mse = self.s, F.mse_loss
        source, target = (x.to(self.device) for x in unpaired_batch(self.data, self.number, s.batch_size, s.seed))
        self.number += 1
        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        synthetic_target, synthetic_source = self.to_target(source), self.to_source(target)
        back_source, back_target = self.to_source(synthetic_target), self.to_target(synthetic_source)
        scores = self.discriminator_target(synthetic_target), self.discriminator_source(synthetic_source)
        adversarial = sum(mse(score, torch.ones_like(score)) for score in scores)
        cycle = s.lambda_cycle * (F.l1_loss(back_source, source) + F.l1_loss(back_target, target))
        gc = (
            s.lambda_gc
            * (
                gradient_consistency(source, synthetic_target, s.gc_operator)
                + gradient_consistency(target, synthetic_source, s.gc_operator)
            )
            / 2
        )
        self.for_generators.zero_grad()
        (adversarial + cycle + gc).backward()
        self.for_generators.step()
        for parameter in self.discriminators:
            parameter.requires_grad_(True)
        self.for_discriminators.zero_grad()
        wrong = {}
        pairs = {
            "source": (self.discriminator_source, source, synthetic_source),
            "target": (self.discriminator_target, target, synthetic_target),
        }
        for domain, (discriminator, real, synthetic) in pairs.items():
            for_real, for_synthetic = discriminator(real), discriminator(synthetic.detach())
            loss = 0.5 * (
                mse(for_real, torch.ones_like(for_real)) + mse(for_synthetic, torch.zeros_like(for_synthetic))
            )
            loss.backward()
            wrong[f"discriminator_{domain}"] = loss.item()
        self.for_discriminators.step()
        return {"adversarial": adversarial.item(), "cycle": cycle.item(), "gc": gc.item()} | wrong
