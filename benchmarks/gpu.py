"""All that is claimed of a GPU, measured in less than four minutes: python -m benchmarks gpu.

The speed is recorded in results/throughput.csv.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE, SIZES, now, prepared, show, trainer
from benchmarks.plain import PlainCycleGAN
from benchmarks.throughput import about, peak, record, row
from mr2ct_lib.methods import hardware
from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.training import Trainer
from tools.kills import Kills

SIZES_AND_BATCHES = {"paper": (1, 4), "quick": (1, 4)}
TARGETS = {
    ("cyclegan", "paper", 1): "<= 12, aim 8",
    ("cyclegan", "quick", 1): "<= 5",
    ("dicyclegan", "quick", 1): "<= 10",
}
SEEDS = (1, 2, 3)


def per_step(step: Callable[[], object], warm_up: int = 6, steps: int = 20) -> float:
    """Seconds per step of steps in a row; nobody waits for the device until the last one."""
    for _ in range(warm_up):
        step()
    started = now()
    for _ in range(steps):
        step()
    return (now() - started) / steps


def speed() -> None:
    """Milliseconds per step of both methods, their share of the peak, and the plain loop; recorded."""
    rows, took = [], {}
    for method in ("cyclegan", "dicyclegan"):
        for profile, batches in SIZES_AND_BATCHES.items():
            for batch in batches:
                run = trainer(method, profile, batch_size=batch)
                with FlopCounterMode(display=False) as counter:
                    run.step()  # the first step is not captured, so its operations can be counted
                took[method, profile, batch] = per_step(run.step)
                captured = all(update.replay is not None for update in run.updates.values())
                best = peak(run.precision)
                measured = row(method, profile, batch, took[method, profile, batch], counter.get_total_flops(), best)
                rows.append(measured | about(run.precision))
                how = f"{run.precision}, {'captured' if captured else 'NOT CAPTURED'}, "
                how += f"{100 * rows[-1]['share_of_peak']:.0f} % of {best / 1e12:.0f} T/s"
                target = TARGETS.get((method, profile, batch), "as low as can be")
                show(
                    f"{method}, {profile}, batch {batch}: ms per step", 1e3 * took[method, profile, batch], target, how
                )
    record(rows)
    ratio = took["dicyclegan", "paper", 1] / took["cyclegan", "paper", 1]
    show("paper, batch 1: DicycleGAN step : CycleGAN step", ratio, "<= 2.3", "")
    for profile, batch in (("paper", 1), ("quick", 1)):
        plain = PlainCycleGAN(make_settings("cyclegan", profile, pool_size=0), prepared(SIZES[profile]), DEVICE)
        loop = per_step(plain.step, warm_up=3, steps=10)
        detail = f"plain loop {1e3 * loop:.0f} ms"
        show(f"{profile}: plain float32 loop : CycleGAN step", loop / took["cyclegan", profile, batch], ">= 5", detail)


def losses_of(run: Trainer, steps: int) -> np.ndarray:
    """Loss terms of the next steps, (steps, terms), read from the device once."""
    return torch.stack([torch.stack(list(run.step().values())) for _ in range(steps)]).cpu().numpy()


def uncaptured(run: Trainer) -> Trainer:
    """The run with its updates launched one by one."""
    for update in run.updates.values():
        update.recorder = None
    return run


def captured_against_plain() -> None:
    """Largest relative distance of the losses of 20 steps in float32, captured and not, at quick size."""
    for method in ("cyclegan", "dicyclegan"):
        runs = [
            trainer(method, "quick", precision="float32"),
            uncaptured(trainer(method, "quick", precision="float32")),
        ]
        captured, plain = (losses_of(run, 20) for run in runs)
        show(f"{method}: captured against plain, 20 steps, float32", np.abs(captured / plain - 1).max(), "<= 0.001", "")


def precision_curves(steps: int = 500) -> None:
    """Distance of the loss curves in the lower precision and in float32, as means over tenths of the steps."""
    lower = hardware.lower_precision(DEVICE)
    curves = {
        precision: np.stack(
            [
                losses_of(trainer("cyclegan", "quick", seed=seed, precision=precision), steps)
                .reshape(10, steps // 10, -1)
                .mean(1)
                for seed in SEEDS
            ]
        )  # (seeds, 10, terms)
        for precision in (lower, "float32")
    }
    apart = np.abs(curves[lower].mean(0) - curves["float32"].mean(0)).mean(0)
    spread = np.mean([np.ptp(curve, axis=0).mean(0) for curve in curves.values()], axis=0)
    for name, a, b in zip(("adversarial", "cycle", "gc", "D source", "D target"), apart, spread, strict=True):
        show(f"curve of {name}, {lower} against float32 : spread of seeds", a / b, "<= 1", f"{a:.4f} : {b:.4f}")


def killed_and_resumed(kills: int = 5) -> None:
    """Kill and resume runs, `kills` kills in all; compare their losses with those of runs that are not killed."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Kills(Path(folder), device=DEVICE.type)
        whole, again = (losses_in(path) for path in (runs.folder / "whole", runs.repeat("again")))
        done, seed, apart = 0, 0, []
        while done < kills:
            killed, _, out = runs.kill_and_resume(seed)
            done, seed = done + killed, seed + 1
            apart.append(np.abs(losses_in(out) - whole).max())
    between = np.abs(again - whole).max()
    detail = f"{done} kills in {seed} runs; largest distance {max(apart):.2g}, of two unkilled runs {between:.2g}"
    show("after resume : between two unkilled runs, losses", max(apart) / max(between, 1e-6), "about 1", detail)


def losses_in(run: Path) -> np.ndarray:
    """The loss terms in a run's log, (lines, terms)."""
    return np.array(
        [[value for name, value in line.items() if name not in ("step", "seconds")] for line in read_log(run)]
    )


def main() -> None:
    """Print everything; InputError where there is no GPU."""
    if DEVICE.type != "cuda":
        sys.exit("benchmarks gpu: PyTorch sees no GPU here; expected one. Run it on a machine that has one")
    channels = {profile: 4 * make_settings("cyclegan", profile).filters for profile in SIZES_AND_BATCHES}
    lower = hardware.lower_precision(DEVICE)
    for profile, width in channels.items():
        gains = [hardware.gain(DEVICE, lower, width) for _ in range(3)]
        show(
            f"{profile}: {lower} : float32, convolution of {width} channels",
            statistics.median(gains),
            ">= 1.2 is taken",
            "",
        )
    for part in (speed, captured_against_plain, precision_curves, killed_and_resumed):
        started = now()
        part()
        print(f"  {part.__name__.replace('_', ' ')} took {now() - started:.0f} s", flush=True)
