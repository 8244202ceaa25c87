"""What suits this machine: the precision that it convolves faster in, measured and not guessed from its name, and memory that is kept."""

import ctypes
import sys
import time
from functools import lru_cache

import torch
from torch.nn import functional as F

# bf16 rounds, so it has to be worth it: slower where it is emulated, 1.7 to 2.1 times as fast where built in, more with matrix units
GAIN = 1.2
ROUNDS = 7


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "bf16" or "float32": the wanted one, or for "auto" the one that `gain` speaks for."""
    return ("bf16" if gain(device) >= GAIN else "float32") if wanted == "auto" else wanted


@lru_cache
def gain(device: torch.device) -> float:
    """How many times as fast a 3x3 convolution of 64 channels and its gradient are in bf16 as in float32, on this machine.

    The best of seven turns each, about 50 ms in all, once a process; on a processor as the time that one thread worked, which other
    work on the machine hardly changes. 0 on a GPU without bf16.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for dtype in [torch.float32, torch.bfloat16] * ROUNDS:
            x = torch.ones(2, 64, 32, 32, device=device, dtype=dtype, requires_grad=True)
            weight = torch.ones(64, 64, 3, 3, device=device, dtype=dtype, requires_grad=True)
            started = _now(device)
            F.conv2d(x, weight, padding=1).sum().backward()
            seconds[dtype] = min(seconds[dtype], _now(device) - started)
    torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _now(device: torch.device) -> float:
    """Seconds; a GPU's work counts until it is done, a processor's as long as this thread works."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.thread_time()


@lru_cache
def keep_memory() -> None:
    """Keep what is freed for the next step instead of giving it back to the system, which clears every page again (glibc; else nothing).

    At paper size this is 5 % of a step. It does not change what is computed, nor the largest amount of memory in use at once.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
        for parameter, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**26), (mmap_max, 0)):
            libc.mallopt(parameter, value)
