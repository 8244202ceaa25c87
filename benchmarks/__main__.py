"""Ratios of durations, each pair measured in turn within this one run; absolute times are shown for scale."""

import platform
import statistics
import time
from collections.abc import Callable

import torch

from mr2ct_lib import losses
from mr2ct_lib.networks import Discriminator, Generator, initialise
from mr2ct_lib.settings import make_settings
from mr2ct_lib.training import GENERATOR_LOSSES, Networks

SIZE, BATCH, ROUNDS = 64, 4, 7


def compare(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, taken in turn so that a busy machine slows both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 2):
        for work, taken in zip((first, second), times, strict=True):
            started = time.perf_counter()
            work()
            if turn >= 2:
                taken.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def generator_step(method: str) -> Callable[[], object]:
    """The generators' losses of one step and their gradients, in the precision that training would take."""
    settings = make_settings(method, "quick")
    networks = Networks(settings, {})
    source, target = (torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1 for _ in range(2))
    fast = torch.cpu._is_amx_tile_supported()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            terms, _, _ = GENERATOR_LOSSES[method](networks, source, target, settings)
        sum(terms.values()).backward()

    return step


def backward_of(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], object]:
    """A loss between two batches and its gradient."""
    a, b = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1, (torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1).requires_grad_()
    return lambda: loss(a, b).sum().backward()


def forward(network: torch.nn.Module, fast: bool) -> Callable[[], object]:
    """A pass and its gradient in float32 or bf16."""
    x = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            y = network(x)
        y.mean().backward()

    return run


def main() -> None:
    """Print the machine and the ratios."""
    torch.manual_seed(0)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, AMX {torch.cpu._is_amx_tile_supported()}")
    cyclegan, generator = generator_step("cyclegan"), initialise(Generator(16, 4), 0)
    rows = {
        "DicycleGAN step : CycleGAN step": (generator_step("dicyclegan"), cyclegan),
        "both directions' GC : CycleGAN step": (backward_of(losses.gradient_correlation), cyclegan),
        "both directions' NMI : CycleGAN step": (backward_of(losses.normalised_mutual_information), cyclegan),
        "generator float32 : bf16": (forward(generator, False), forward(generator, True)),
        "generator : discriminator": (forward(generator, False), forward(initialise(Discriminator(16), 1), False)),
    }
    for name, (first, second) in rows.items():
        a, b = compare(first, second)
        a = 2 * a if name.startswith("both") else a
        print(f"{name:<40}{a / b:6.2f}   ({a * 1e3:.1f} ms : {b * 1e3:.1f} ms)")


if __name__ == "__main__":
    main()
