"""The processor's cores: how many are ours, and processes that share them without fighting."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any


def available() -> int:
    """The cores that this process may use: a container or a cluster's scheduler may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int, threads: int = 1, **options: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes of `threads` threads each, started afresh; when the block ends by an error, work that still waits is dropped.

    options: of ProcessPoolExecutor. What is submitted is a module's function; a script that calls this needs `if __name__ == "__main__":`.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))  # read when a process starts
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **options) as processes:
            try:
                yield processes
            except BaseException:
                processes.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
