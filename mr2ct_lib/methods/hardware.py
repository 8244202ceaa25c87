"""The precision that a machine is faster in, measured and not guessed from its name, and memory that is kept."""

import ctypes
import sys
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn import functional as F

# A 16-bit type rounds, so it must be worth it: bf16 is slower than float32 where a CPU emulates it, 1.7 to 2.1 times as
# fast where it is built in, more with matrix units.
GAIN = 1.2
TYPES = {"bf16": torch.bfloat16, "float16": torch.float16}


def choose_precision(wanted: str, device: torch.device, channels: int = 64) -> str:
    """Return "bf16", "float16" or "float32": the wanted one, or for "auto" the faster one as measured by `gain`.

    channels: width of the network's widest convolutions, those of the residual blocks. float16 is taken only on GPUs
    without bf16, such as the T4; training in it needs loss scaling.
    """
    if wanted != "auto":
        return wanted
    lower = lower_precision(device)
    return lower if gain(device, lower, channels) >= GAIN else "float32"


def lower_precision(device: torch.device) -> str:
    """The 16-bit type of a device: "bf16", or "float16" on a GPU that has no bf16."""
    return "bf16" if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Run networks in `precision`; weights, losses and optimisers stay float32.

    Each weight is converted once per block. A block may be captured as a whole, since what it converts ends with it.
    """
    return torch.autocast(device.type, TYPES.get(precision, torch.bfloat16), enabled=precision != "float32")


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The layout of the networks: channels-last, or contiguous in float32 on a GPU, where it is faster."""
    return torch.contiguous_format if device.type == "cuda" and precision == "float32" else torch.channels_last


@lru_cache
def gain(device: torch.device, precision: str = "bf16", channels: int = 64) -> float:
    """How many times as fast a 3x3 convolution and its gradient are in `precision` as in float32, on this machine.

    On a CPU: 64 channels, timed as the work of one thread, which other programs on the machine hardly change; it takes
    about 50 ms. On a GPU: `channels` channels and so many images that its work takes longer than launching it, timed by
    the device's own events.
    The best of seven turns each, measured once per process.
    """
    gpu, threads = device.type == "cuda", torch.get_num_threads()
    shape = (2**14 // channels, channels, 64, 64) if gpu else (2, 64, 32, 32)
    seconds = {torch.float32: float("inf"), TYPES[precision]: float("inf")}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for dtype in list(seconds) * 7:
                layout = torch.channels_last if gpu and dtype != torch.float32 else torch.contiguous_format
                x = torch.ones(shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
                weight = torch.ones(shape[1], shape[1], 3, 3, device=device, dtype=dtype, requires_grad=True)
                work = lambda x=x, weight=weight: F.conv2d(x, weight, padding=1).sum().backward()  # noqa: E731
                seconds[dtype] = min(seconds[dtype], (_device_seconds if gpu else _thread_seconds)(work))
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[TYPES[precision]]


def _thread_seconds(work: Callable[[], None]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _device_seconds(work: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@lru_cache
def keep_memory() -> None:
    """Keep freed memory for the next step instead of returning it to the system, which clears every page again.

    Only with glibc. At paper size it saves 5 % of a step. It changes neither results nor the peak of memory in use.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
        for parameter, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**26), (mmap_max, 0)):
            libc.mallopt(parameter, value)
