"""Training on a GPU without waiting for Python: updates recorded as CUDA graphs, and slices that lie on the device.

An update launches some thousand kernels. Launched one by one from Python, they take longer to start than to run. A CUDA
graph records all of them once and launches them at once. It works on the same memory each time: inputs are copied into
the recorded ones, and outputs are overwritten by the next call.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mr2ct_lib.images.slices import DOMAINS, PreparedSlices, augment, epoch_indices, unpaired_batch
from mr2ct_lib.methods.settings import Settings

WARM_UP = 3  # calls before recording, in which libraries choose their kernels and optimisers make their state
SHARE_OF_MEMORY = 0.25  # of the GPU's free memory that the prepared slices may fill

MPS, MPS_FOLDER = "nvidia-cuda-mps-control", "CUDA_MPS_PIPE_DIRECTORY"  # NVIDIA's Multi-Process Service
USE_GPU = "import torch; torch.zeros(1, device='cuda')"

Slices = dict[str, Tensor]


class CudaRecorder:
    """Records functions as CUDA graphs that share their memory, so they must be replayed in the order of recording."""

    def __init__(self, device: torch.device):
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call `function` on the stream of the recording, as CUDA graphs demand before it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Return the outputs, not computed yet, and what computes them. RuntimeError where it cannot be recorded."""
        gc.collect()  # an earlier run whose memory is given back while this one is recorded could break it off
        graph = torch.cuda.CUDAGraph()
        # the outer block leaves the stream even where the inner one breaks off
        with torch.cuda.stream(self.stream), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            outputs = function()
        return outputs, graph.replay


class CapturedUpdate:
    """An update that is called as it is WARM_UP times, then recorded, then replayed.

    Args:
        update: takes dictionaries of tensors whose shapes never change, and returns tensors.
        recorder: of a GPU; None calls the update as it is, always.
        on_failure: called when recording failed; one sentence says so and every later call is made as it is. It sees to
            it that no other update is recorded either, since PyTorch may still take the broken recording for open.
    """

    def __init__(self, update: Callable[..., Any], recorder: Any, on_failure: Callable[[], None]):
        self.update, self.recorder, self.on_failure = update, recorder, on_failure
        self.calls, self.inputs, self.outputs, self.replay = 0, (), None, None

    def __call__(self, *inputs: Slices) -> Any:
        """The outputs of the update for these inputs; the next call overwrites them."""
        if self.recorder is None:
            return self.update(*inputs)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.recorder.warm_up(lambda: self.update(*inputs))
        if self.replay is None and not self._record(inputs):
            return self.update(*inputs)
        for recorded, given in zip(self.inputs, inputs, strict=True):
            for name, x in given.items():
                recorded[name].copy_(x, non_blocking=True)
        self.replay()
        return self.outputs

    def _record(self, inputs: tuple[Slices, ...]) -> bool:
        """Record the update on copies of these inputs; False when it cannot be recorded."""
        self.inputs = tuple({name: x.clone() for name, x in given.items()} for given in inputs)
        try:
            self.outputs, self.replay = self.recorder.record(lambda: self.update(*self.inputs))
        except RuntimeError as error:
            first = error.__context__ or error  # what came first, not how it ended
            reason = (str(first).splitlines() or [type(first).__name__])[0][:120]
            print(
                f"CUDA graph: not recorded ({reason}); steps are launched one by one, which is slower", file=sys.stderr
            )
            self.recorder = None
            self.on_failure()
            return False
        return True


class Batches:
    """The real slices of every step on the run's device, augmented where the settings say so.

    On a CPU they are read from disk. On a GPU all slices lie there where a quarter of its free memory holds them;
    otherwise each batch is copied while the GPU works on the one before. All three give the same slices.
    """

    def __init__(self, data: PreparedSlices, settings: Settings, device: torch.device, fits: bool | None = None):
        self.data, self.s, self.device = data, settings, device
        self.counts = {domain: data.count(domain, settings.patients) for domain in DOMAINS}
        arrays = {domain: getattr(data, domain)[: self.counts[domain]] for domain in DOMAINS}
        if fits is None:
            fits = device.type == "cuda" and fits_on_gpu(sum(array.nbytes for array in arrays.values()), device)
        self.resident = (
            {domain: torch.tensor(array, device=device) for domain, array in arrays.items()} if fits else None
        )

    def of_step(self, step: int) -> Slices:
        """The whole batch of each domain, float32 (batch_size, 1, h, w): a pure function of the seed and the step."""
        if self.resident is None:
            s = self.s
            slices = unpaired_batch(self.data, step, s.batch_size, s.seed, s.patients)
            slices = [without_waiting(x, self.device) for x in slices]
        else:
            slices = [self._resident_batch(domain, step, i) for i, domain in enumerate(DOMAINS)]
        if self.s.augment:
            slices = [augment(x, seed=(self.s.seed, step, i)) for i, x in enumerate(slices)]
        return dict(zip(DOMAINS, slices, strict=True))

    def _resident_batch(self, domain: str, step: int, number: int) -> Tensor:
        """A batch put together on the device; the indices never go there, so nothing waits."""
        chosen = epoch_indices(self.counts[domain], step, self.s.batch_size, self.s.seed, number)
        return torch.stack([self.resident[domain][int(i)] for i in chosen])[:, None]

    def describe(self, step: int) -> str:
        """Name the slices of a step: domain, patient and number of the slice within the patient.

        Where some of them are constant, only those are named, since a blank slice is the likeliest cause of trouble.
        """
        named, blank = [], []
        for i, domain in enumerate(DOMAINS):
            for index in epoch_indices(self.counts[domain], step, self.s.batch_size, self.s.seed, i).tolist():
                patients = self.data.patients(domain)
                patient, where = next(row for row in patients if row[1].start <= index < row[1].stop)
                named.append(f"{domain} {patient} slice {index - where.start}")
                image = getattr(self.data, domain)[index]
                blank += [f"{named[-1]} (blank)"] if image.min() == image.max() else []
        return ", ".join(blank or named)


def without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; a GPU fetches it from pinned memory when it comes to it, and nobody waits."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def fits_on_gpu(size: int, device: torch.device) -> bool:
    """Whether `size` bytes are less than a quarter of the GPU's free memory."""
    return size < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]


def memory_of_run(s: Settings, shape: tuple[int, int]) -> int:
    """About how many bytes of a GPU one run takes on slices of `shape` pixels: context, feature maps, graphs."""
    feature_map = 4 * s.batch_size * s.filters * shape[0] * shape[1]  # of the first convolution, float32
    maps = (12 + 5 * s.blocks) * (
        10 if s.method == "dicyclegan" else 4
    )  # kept for the gradient in all passes of a step
    return 2 * 2**30 + maps * feature_map


def runs_at_once(jobs: int, cores: int, memory: int | None = None, per_run: int = 1) -> int:
    """How many runs to train side by side: one per core, and on a GPU no more than its memory holds.

    Args:
        jobs: runs to be trained.
        cores: of the CPU; each run's process needs one, on a GPU too, to launch its work.
        memory: free bytes of the GPU; None on a machine without one.
        per_run: bytes that the largest run takes there, see `memory_of_run`.

    >>> runs_at_once(4, cores=8), runs_at_once(4, cores=8, memory=15 * 2**30, per_run=6 * 2**30)
    (4, 2)
    """
    at_once = min(jobs, cores)
    return max(1, at_once if memory is None else min(at_once, memory // per_run))


@contextmanager
def shared_gpu() -> Iterator[bool]:
    """Let processes that start inside the block compute on the GPU at the same time; yield whether they do.

    Without NVIDIA's MPS, processes take turns on a GPU. On an H200, a step of the full profile took 4 times as long in
    each of four trainings side by side; with MPS, 2.2 times as long in each of ten. It is started here where it is
    installed and works, and ended with the block. An MPS that runs already (CUDA_MPS_PIPE_DIRECTORY is set) is used.
    """
    if MPS_FOLDER in os.environ or not torch.cuda.device_count() or not shutil.which(MPS):
        yield MPS_FOLDER in os.environ
        return
    torch.cuda.init()  # a process belongs to the service that it finds here; this one goes on when MPS has ended
    with tempfile.TemporaryDirectory(prefix="mps", ignore_cleanup_errors=True) as folder:  # it may still write there
        variables = {MPS_FOLDER: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(variables)
        try:
            works = _succeeds([MPS, "-d"]) and _succeeds([sys.executable, "-c", USE_GPU])
            if not works:
                _forget(variables)
            yield works
        finally:
            _succeeds([MPS], input="quit\n", env=os.environ | variables)
            _forget(variables)


def _succeeds(command: list[str], **options: Any) -> bool:
    """Whether a command ends well within a minute; it says nothing."""
    quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    try:
        return subprocess.run(command, timeout=60, text=True, **quiet, **options).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _forget(variables: dict[str, str]) -> None:
    for name in variables:
        os.environ.pop(name, None)
