"""Work on several cores or machines: process pools, and one function that runs a list of jobs on either."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mr2ct_lib.files import InputError, read_json

TERMINATED = 128 + signal.SIGTERM  # the exit code that shells report for a process ended by SIGTERM


def available() -> int:
    """Return how many cores this process may use: a container or batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_streams() -> None:
    """Lead closed standard streams nowhere, so that neither print nor a progress bar fails for want of them.

    Their numbers, 0 to 2, would also go to the next files that are opened, and a library's message into an image.
    """
    for number in range(3):  # in, out, err
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if nowhere == number:
                os.set_inheritable(nowhere, True)
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, it stays open to the end


def make_once(path: Path, what: str, is_there: Callable[[], bool], make: Callable[[], object]) -> None:
    """Make what belongs at `path` unless it is there, and say on stderr what is made and how long it took.

    Of several processes that want it, two notebooks for example, one makes it and the others wait; when that one dies,
    the next takes over. Raises InputError where nothing can be written.
    """
    if is_there():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / f".{path.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{what}: another process is at it, waiting for it ...", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); expected a folder for new files") from error
    try:
        if not is_there():
            print(f"{what} ...", file=sys.stderr, flush=True)
            started = time.perf_counter()
            make()
            print(f"{what} took {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        lock.release()


@dataclass(frozen=True)
class Outcome:
    """The end of one job of `run_jobs`: its `number` in the list, and its `value` or the `error` that stopped it."""

    number: int
    value: Any = None
    error: Exception | None = None


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple],
    workers: int | None = None,
    scheduler: str | None = None,
    common: tuple = (),
) -> Iterator[Outcome]:
    """Call `function(*common, *job)` for each job and yield an `Outcome` as each one ends, in any order.

    An error of a job does not stop the others: it comes back in its Outcome. Usage:

        for outcome in run_jobs(make_one, [("a", 1), ("b", 2)], workers=2, common=(folder,)):
            if outcome.error:
                failures[names[outcome.number]] = outcome.error
        raise_failures(failures, total=2)

    Args:
        function: a module's function, so that other processes can import it. It writes large results to files.
        jobs: the arguments of each call, as tuples that can be pickled.
        workers: local processes of one thread each (None: one per core). One worker, or one job, runs in this process.
        scheduler: address of a Dask scheduler ("tcp://host:8786", or the path of its scheduler file). Its workers then
            run the jobs instead of local processes. They need this library and the same folders under the same paths.
            A job whose worker dies is given to another worker; after four deaths its Outcome holds the error, as those
            of all jobs that are not done when the scheduler itself is lost.
        common: first arguments of every call, sent once per worker and not once per job.

    SIGTERM, or leaving the loop early, ends the local processes; half-written files leave nothing behind.

    Raises InputError when a local process is killed, the scheduler cannot be reached, or Dask is not installed.

    >>> sorted((outcome.number, outcome.value) for outcome in run_jobs(pow, [(2,), (3,)], workers=1, common=(10,)))
    [(0, 100), (1, 1000)]
    """
    with sigterm_exits():
        if scheduler is not None:
            yield from _run_on_cluster(function, jobs, scheduler, common)
        elif (workers := min(workers or available(), len(jobs))) < 2:
            for number, job in enumerate(jobs):
                yield _outcome(number, partial(function, *common, *job))
        else:
            yield from _run_in_pool(function, jobs, workers, common)


def raise_failures(failures: dict[str, Exception], total: int) -> None:
    """Raise one InputError that lists failed jobs (name -> error) of `total` with their reasons, if there are any.

    >>> raise_failures({"s0004": ValueError("too thin")}, 20)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mr2ct_lib.files.InputError: 1 of 20 patients failed; the others are finished and kept. Start again ...
      s0004: ValueError: too thin
    """
    if failures:
        reasons = [
            f"  {name}: {error}" if isinstance(error, InputError) else f"  {name}: {type(error).__name__}: {error}"
            for name, error in sorted(failures.items())
        ]
        raise InputError(
            f"{len(failures)} of {total} patients failed; the others are finished and kept. "
            "Start again to repeat these:\n" + "\n".join(reasons)
        ) from next(iter(failures.values()))


def _outcome(number: int, result: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(number, result())
    except BrokenProcessPool:
        raise
    except Exception as error:
        return Outcome(number, error=error)


def _run_in_pool(function: Callable[..., Any], jobs: Sequence[tuple], workers: int, common: tuple) -> Iterator[Outcome]:
    try:
        with pool(workers, common=common) as processes:
            numbers = {processes.submit(_call, function, job): number for number, job in enumerate(jobs)}
            for future in as_completed(numbers):
                yield _outcome(numbers[future], future.result)
    except BrokenProcessPool as error:
        raise InputError(
            f"workers: one of {workers} processes was ended from outside (no memory left, or a script that does not "
            "start under `if __name__ == '__main__':`); expected all to go on. Try workers=1; what is finished is kept"
        ) from error


def _run_on_cluster(
    function: Callable[..., Any], jobs: Sequence[tuple], scheduler: str, common: tuple
) -> Iterator[Outcome]:
    try:
        import distributed
    except ImportError as error:
        raise InputError("scheduler: Dask is not installed; expected its package. pip install -e '.[dask]'") from error
    for name in ("distributed", "distributed.client"):  # a lost connection is said in one sentence, not as a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = scheduler
    if os.path.isfile(scheduler):
        content = read_json(scheduler)
        address = content.get("address") if isinstance(content, dict) else None
        if not isinstance(address, str):
            raise InputError(f"{scheduler}: names no address; expected what `dask scheduler --scheduler-file` writes")
    try:
        client = distributed.Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"scheduler: no Dask scheduler answers at {scheduler} ({error}); expected an address such "
            "as tcp://host:8786. Check the address and that `dask scheduler` is running"
        ) from error
    with client:
        # tasks, not scattered data: the scheduler can make them again when the worker that holds them dies
        shared = [client.submit(_itself, value, pure=False) for value in common]
        numbers = {client.submit(function, *shared, *job, pure=False): number for number, job in enumerate(jobs)}
        for future in distributed.as_completed(numbers, loop=client.loop):
            outcome = _outcome(numbers[future], future.result)
            if isinstance(outcome.error, CancelledError):  # Dask's says nothing
                lost = InputError(f"the scheduler at {address} was lost before this was done. Start it and try again")
                outcome = Outcome(outcome.number, error=lost)
            yield outcome


def _itself(value: Any) -> Any:
    return value


@contextmanager
def pool(workers: int, threads: int = 1, common: tuple = ()) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of fresh processes of `threads` threads each; `run_jobs` suffices where all jobs call one function.

    Submit functions of a module; a script that calls this needs `if __name__ == "__main__":`. When the block ends by an
    error, waiting jobs are dropped; after SIGTERM, Ctrl-C or an early end of the loop, running ones are stopped, too.
    A worker never outlives this process.
    """
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, str(threads)))  # read when a process starts
    others = set(active_children())
    try:
        with (
            sigterm_exits(),
            ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(common,)
            ) as processes,
        ):
            try:
                yield processes
            except BaseException as error:
                if not isinstance(error, Exception):
                    for process in set(active_children()) - others:
                        process.terminate()
                processes.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_common: tuple = ()  # in a worker: the first arguments of every call


def _start_worker(common: tuple) -> None:
    global _common
    _common = common
    signal.signal(signal.SIGTERM, _exit_by_signal)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent has died without a word (SIGKILL)."""
    parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _call(function: Callable[..., Any], job: tuple) -> Any:
    try:
        return function(*_common, *job)
    except SystemExit:  # by SIGTERM, temporary files are removed; the pool would take it for the job's error and go on
        os._exit(TERMINATED)


def _exit_by_signal(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal of temporary files
    sys.exit(TERMINATED)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that temporary files are removed; a handler set by somebody else stays."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _exit_by_signal)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
