"""Durations as ratios: what is compared takes turns within one run, so that a busy machine slows all alike."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.ndimage import gaussian_filter

from mr2ct_lib.images.intensity import MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods import captured, hardware
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.training import Trainer
from tools.record import processor

Work = Callable[[], object]
DEVICE = torch.device("cuda" if torch.cuda.device_count() else "cpu")  # what is measured
SIZES = {"quick": 128, "paper": 256}


def describe() -> str:
    """The machine, in a line or two."""
    lower = hardware.lower_precision(DEVICE)
    return (
        f"{processor()}, {torch.get_num_threads()} threads; measured on {DEVICE}, where {lower} convolves "
        f"{hardware.gain(DEVICE, lower):.2f} times as fast; torch {torch.__version__}"
    )


def now() -> float:
    """Seconds; a GPU's work counts until it is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """The median seconds of each, over `rounds` rounds in each of which every one has a turn.

    Two more go before: in the second of them memory still grows. On a GPU it is as many as a run takes until its
    updates are recorded, the one that records included.
    """
    before = captured.WARM_UP + 1 if DEVICE.type == "cuda" else 2
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + before):
        for name, work in works.items():
            started = now()
            work()
            if turn >= before:
                taken[name].append(now() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(name: str, ratio: float, target: str, detail: str) -> None:
    """One line: what, the ratio, what was aimed for, absolute figures for scale."""
    print(f"  {name:<62}{ratio:8.2f}   ({target})   {detail}", flush=True)


@lru_cache
def prepared(size: int, count: int = 40) -> PreparedSlices:
    """Smooth random slices of `size` in a temporary folder."""
    room = tempfile.TemporaryDirectory(prefix="mr2ct_bench_")
    folder, rng = Path(room.name), np.random.default_rng(0)
    for domain in ("source", "target"):
        images = [np.clip(gaussian_filter(rng.normal(size=(size, size)), 2) * 5, -1, 1) for _ in range(count)]
        np.save(folder / f"{domain}.npy", np.stack(images).astype(np.float32))
    patients, domains = [{"id": "one", "first": 0, "count": count}], ("source", "target")
    preparation = Preparation("axial", 1.0, (size, size), 1.0, dict.fromkeys(domains, MR_WINDOW))
    write_record(folder, preparation, dict.fromkeys(domains, patients))
    slices = PreparedSlices(folder)
    slices.room = room  # removed with them
    return slices


def trainer(method: str, profile: str, **changes: object) -> Trainer:
    """A run of the library's own at its first step."""
    fabric = Fabric(accelerator=DEVICE.type, devices=1, precision="32-true")
    return Trainer(make_settings(method, profile, **changes), prepared(SIZES[profile]), fabric)
