"""All that is claimed of a GPU, measured in less than four minutes: python -m benchmarks gpu.

Each line is printed, and each row of results/throughput.csv written, as soon as it is measured. A part that fails, or
takes too long, is named and does not stop the others; the most important come first.
"""

import copy
import gc
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE, SIZES, now, prepared, show, trainer
from benchmarks.plain import PlainCycleGAN
from benchmarks.throughput import about, peak, record, row
from mr2ct_lib import cores
from mr2ct_lib.methods import fast, hardware, training
from mr2ct_lib.methods.captured import shared_gpu
from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.training import Trainer
from tools.kills import Kills

METHODS = ("cyclegan", "dicyclegan")
TARGETS = {
    ("cyclegan", "paper", 1): "<= 12, aim 8",
    ("cyclegan", "quick", 1): "<= 5",
    ("dicyclegan", "quick", 1): "<= 10",
}
SEEDS = (1, 2, 3)
LIMIT, ALL = 90, 205  # seconds after which a part is cut off, and after which none begins: the rest is imports
took: dict[tuple[str, str, int], float] = {}  # seconds per step, by method, profile and batch


class TooLong(BaseException):
    """A part has used up its time. Like Ctrl-C, nothing may take it for an error of what is measured."""


def per_step(step: Callable[[], object], warm_up: int = 6, steps: int = 20) -> float:
    """Seconds per step of steps in a row; nobody waits for the device until the last one."""
    for _ in range(warm_up):
        step()
    started = now()
    for _ in range(steps):
        step()
    return (now() - started) / steps


def gains() -> None:
    """How much faster the lower precision is, for convolutions of the networks' own widths."""
    lower = hardware.lower_precision(DEVICE)
    for profile in ("paper", "quick"):
        width = 4 * make_settings("cyclegan", profile).filters
        gain = hardware.gain(DEVICE, lower, width)
        show(f"{profile}: {lower} : float32, convolution of {width} channels", gain, ">= 1.2 is taken", "")


def speed(method: str, profile: str, batch: int) -> None:
    """Milliseconds per step and share of the peak; recorded."""
    run = trainer(method, profile, batch_size=batch)
    with FlopCounterMode(display=False) as counter:
        run.step()  # the first step is not captured, so its operations can be counted
    seconds = took[method, profile, batch] = per_step(run.step)
    captured = all(update.replay is not None for update in run.updates.values())
    best = peak(run.precision)
    measured = row(method, profile, batch, seconds, counter.get_total_flops(), best)
    record([measured | about(run.precision)])
    kernels = fast._kernels(torch.device("cuda", 0), hardware.TYPES.get(run.precision, torch.float32))
    how = f"{run.precision}, {'captured' if captured else 'NOT CAPTURED'}, {'' if kernels else 'NO '}Triton, "
    how += f"{100 * measured['share_of_peak']:.0f} % of {best / 1e12:.0f} T/s"
    target = TARGETS.get((method, profile, batch), "as low as can be")
    show(f"{method}, {profile}, batch {batch}: ms per step", 1e3 * seconds, target, how)


def ratio() -> None:
    """DicycleGAN's step over CycleGAN's, at paper size."""
    times = took["dicyclegan", "paper", 1] / took["cyclegan", "paper", 1]
    show("paper, batch 1: DicycleGAN step : CycleGAN step", times, "<= 2.3", "")


def plain_loop(profile: str) -> None:
    """The plain loop's step over the library's."""
    plain = PlainCycleGAN(make_settings("cyclegan", profile, pool_size=0), prepared(SIZES[profile]), DEVICE)
    loop = per_step(plain.step, warm_up=3, steps=10)
    detail = f"plain loop {1e3 * loop:.0f} ms"
    show(f"{profile}: plain float32 loop : CycleGAN step", loop / took["cyclegan", profile, 1], ">= 5", detail)


def no_kernels() -> AbstractContextManager:
    """PyTorch's kernels alone, as where Triton is missing."""
    return patch.object(fast, "_kernels", lambda *_: None)


def launched() -> AbstractContextManager:
    """No recorded updates: every kernel is launched from Python."""
    return patch.object(training, "CudaRecorder", lambda *_: None)


def contiguous() -> AbstractContextManager:
    """Networks in PyTorch's default layout."""
    return patch.object(hardware, "memory_format", lambda *_: torch.contiguous_format)


def another_way(name: str, way: Callable[[], AbstractContextManager], profile: str = "paper", **changes: str) -> None:
    """Milliseconds per CycleGAN step done in another way."""
    with way():
        seconds = per_step(trainer("cyclegan", profile, **changes).step)
    ours = 1e3 * took["cyclegan", profile, 1]
    show(f"cyclegan, {profile}, {name}: ms per step", 1e3 * seconds, "other", f"ours {ours:.1f} ms")


def losses_of(run: Trainer, steps: int) -> np.ndarray:
    """Loss terms of the next steps, (steps, terms), read from the device once."""
    return torch.stack([torch.stack(list(run.step().values())) for _ in range(steps)]).cpu().numpy()


def two_steps_apart(make: Callable[[], Trainer], steps: int = 20) -> np.ndarray:
    """Relative distances of losses, (2, 2): of captured and plain steps, of two plain ones, in the first and the second
    step from one state; the largest over `steps` steps of a captured run.

    More than two steps from one state say nothing: Adam's first steps are hardly larger for a large gradient than for
    one that is rounding alone, so weights that differ by 1e-7 give losses that differ by a third after 20 steps.
    """
    captured, plain, again = (make() for _ in range(3))
    apart = np.zeros((2, 2))
    for _ in range(steps // 2):
        for run in (plain, again):
            run.load_state(copy.deepcopy(captured.state()))
            for update in run.updates.values():
                update.recorder = None
        losses = [losses_of(run, 2) for run in (captured, plain, again)]
        distances = [np.abs(one / losses[1] - 1).max(axis=1) for one in (losses[0], losses[2])]
        apart = np.maximum(apart, distances)
    return apart


def captured_against_plain(method: str) -> None:
    """Distance of the losses of captured and plain steps in float32, at quick size."""
    apart = two_steps_apart(lambda: trainer(method, "quick", precision="float32"))
    for i, step in enumerate(("first", "second")):
        detail = f"{apart[0, i]:.1e}; two plain runs {apart[1, i]:.1e}"
        target = "<= 0.001" if i == 0 else "as two plain runs"
        show(f"{method}: captured against plain, float32, {step} step", apart[0, i], target, detail)


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
    settings = {"precision": hardware.lower_precision(DEVICE), "patience": None, "decay_patience": None}
    settings |= {"augment": False}  # each of a dozen processes would import MONAI for it
    with tempfile.TemporaryDirectory() as folder:
        runs = Kills(Path(folder), device=DEVICE.type, **settings)
        whole, again = (losses_in(path) for path in (runs.folder / "whole", runs.repeat("again")))
        done, seed, apart = 0, 0, []
        while done < kills and seed < 2 * kills:
            killed, _, out = runs.kill_and_resume(seed)
            done, seed = done + killed, seed + 1
            apart.append(np.abs(losses_in(out) - whole).max())
    between = np.abs(again - whole).max()
    detail = f"{done} kills in {seed} runs; largest distance {max(apart):.2g}, of two unkilled runs {between:.2g}"
    show("after resume : between two unkilled runs, losses", max(apart) / max(between, 1e-6), "about 1", detail)


def side_by_side(runs: int = 8, steps: int = 1000) -> None:
    """Milliseconds per step of all runs together, of runs side by side in processes of their own.

    They do not begin together, so the time runs from the first step of the first to the last step of the last.
    """
    with shared_gpu() as shared, cores.pool(runs) as pool:
        times = [done.result() for done in [pool.submit(first_and_last, seed, steps) for seed in range(runs)]]
    began, ended = np.transpose(times)
    each_one = 1e3 * float(np.median(ended - began)) / steps
    how = f"{'with' if shared else 'without'} MPS, {each_one:.1f} ms in each run"
    alone = 1e3 * took["cyclegan", "quick", 1]
    of_all = 1e3 * float(ended.max() - began.min()) / (runs * steps)
    show(f"{runs} runs side by side: ms per step of all", of_all, f"{alone:.1f} alone", how)


def first_and_last(seed: int, steps: int) -> tuple[float, float]:
    """When the steps of one run at quick size began and ended, in seconds of the clock of all processes."""
    run = trainer("cyclegan", "quick", seed=seed)
    per_step(run.step)  # warm-up and recording
    began = time.time()
    per_step(run.step, warm_up=0, steps=steps)
    return began, time.time()


def losses_in(run: Path) -> np.ndarray:
    """The loss terms in a run's log, (lines, terms)."""
    other = ("step", "seconds", "learning_rate")
    return np.array([[value for name, value in line.items() if name not in other] for line in read_log(run)])


PARTS: list[Callable[[], None]] = [
    gains,
    *(partial(speed, method, profile, 1) for profile in ("quick", "paper") for method in METHODS),
    ratio,
    partial(plain_loop, "paper"),
    partial(plain_loop, "quick"),
    *(partial(another_way, "without Triton", no_kernels, profile) for profile in ("quick", "paper")),
    *(partial(another_way, "launched one by one", launched, profile) for profile in ("quick", "paper")),
    *(partial(captured_against_plain, method) for method in METHODS),
    killed_and_resumed,
    side_by_side,
    precision_curves,
    *(partial(another_way, "float32", nullcontext, profile, precision="float32") for profile in ("quick", "paper")),
    partial(another_way, "contiguous", contiguous),
    *(partial(speed, method, profile, 4) for profile in ("quick", "paper") for method in METHODS),
]


def attempt(part: Callable[[], None], seconds: float) -> str | None:
    """Measure a part within so many seconds; return its name, and print why, if it fails."""
    words = [part.func.__name__, *map(str, part.args[:3])] if isinstance(part, partial) else [part.__name__]
    name, started, failed = " ".join(word for word in words if not word.startswith("<")), time.perf_counter(), None
    signal.signal(signal.SIGALRM, _too_long)
    try:
        if seconds <= 0:
            raise TooLong("not begun, since the others took all the time")
        signal.setitimer(signal.ITIMER_REAL, seconds)
        part()
    except (Exception, TooLong) as error:  # of any kind, also a GPU that went away
        failed = name
        print(f"  {name} FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}", flush=True)
        for process in active_children():  # of a part that was cut off
            process.kill()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()  # a run's graphs and its memory
    print(f"  [{name}: {time.perf_counter() - started:.0f} s]", flush=True)
    return failed


def _too_long(*_: object) -> None:
    raise TooLong("cut off, so that the others are measured")


def main() -> None:
    """Measure all parts, and name those that failed at the end; exit where there is no GPU."""
    if DEVICE.type != "cuda":
        sys.exit("benchmarks gpu: PyTorch sees no GPU here; expected one. Run it on a machine that has one")
    end = time.monotonic() + ALL
    if failed := [name for part in PARTS if (name := attempt(part, min(LIMIT, end - time.monotonic())))]:
        sys.exit(f"benchmarks gpu: {', '.join(failed)} failed; all else was measured")
