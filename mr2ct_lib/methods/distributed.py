"""One process or many: the device, a lost process of a run, and starting a command under torchrun."""

import logging
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import distributed

from mr2ct_lib.files import InputError

DEVICES = ("auto", "cpu", "cuda")
TIMEOUT = timedelta(
    minutes=5
)  # for one process to wait for another: longer than any checkpoint takes, and a dead network ends the run


class LostProcess(InputError):
    """Another process of the run is lost. Each remaining one raises this, since any of them may be the visible one."""


def make_fabric(batch_size: int, device: str = "auto") -> Fabric:
    """Connect this process with the others that torchrun started, if any, each on its own device.

    Args:
        batch_size: of a whole step; a multiple of the number of processes.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises InputError for a batch that cannot be shared, a missing device, and a port that another program uses. Fabric
    itself computes in float32: the trainer sets the precision, so that it is the same for all processes.
    """
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if batch_size % world:
        raise InputError(
            f"batch_size={batch_size} cannot be shared by {world} processes; expected a multiple of {world}"
        )
    accelerator = choose_device(device, local)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would print its precision at each start
    strategy = DDPStrategy(timeout=TIMEOUT) if world > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator, strategy=strategy, devices=local, num_nodes=world // local, precision="32-true"
    )
    with _connecting():
        fabric.launch()
    return fabric


def choose_device(device: str, processes: int = 1) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises InputError for any other word and when this machine has fewer GPUs than `processes`.
    """
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; expected one of {', '.join(DEVICES)}")
    there = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not there):
        return "cpu"
    if not there:
        raise InputError(
            "device cuda: PyTorch sees no GPU here; take --device cpu, or install a driver and a CUDA build of torch"
        )
    if there < processes:
        raise InputError(
            f"device cuda: {processes} processes and {there} GPUs on this machine; start as many processes as GPUs"
        )
    return "cuda"


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except distributed.DistError as error:
        raise _not_connected(
            error, ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        ) from error


def _not_connected(error: Exception, where: str) -> InputError:
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return InputError(
            f"{where}: the port is in use by another program; choose another --master-port, or omit it on one machine"
        )
    return InputError(
        f"{where}: the processes of the run did not find each other ({str(error).splitlines()[0][:120]}); "
        "check the address"
    )


def check_on_first_process(fabric: Fabric, check: Callable[[], Any]) -> None:
    """Call `check` on the first process. All processes raise its InputError, so that none waits for the others."""
    refusal = None
    if fabric.is_global_zero:
        try:
            check()
        except InputError as error:
            refusal = error
    refusal = fabric.broadcast(refusal)
    if refusal is not None:
        raise refusal


@contextmanager
def report_lost_process(fabric: Fabric, state: Callable[[], str]) -> Iterator[None]:
    """Within this block a broken connection, or SIGTERM from torchrun, becomes LostProcess.

    state: says how far the run is, for the message.
    """
    if fabric.world_size == 1:
        yield
        return

    def raise_lost(*_: object) -> None:
        raise LostProcess(
            f"{state()}: this process was told to end, as torchrun does when another one was lost. {advice}"
        )

    advice = "The last checkpoint is kept; start the same command with --resume, with as many processes as you like"
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, raise_lost) if main else None
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "nccl", "connection")
        if not isinstance(error, distributed.DistError) and not any(word in str(error).lower() for word in words):
            raise
        raise LostProcess(f"{state()}: the connection to another process was lost. {advice}") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def is_launched() -> bool:
    """Whether torchrun, or another launcher with its environment variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this is the process that prints, logs and saves."""
    return os.environ.get("RANK", "0") == "0"


def launch(options: str, words: list[str]) -> None:
    """Run `mr2ct` under torchrun and wait for its end.

    Args:
        options: of torchrun, such as "--nproc-per-node 2".
        words: of the command `mr2ct`.

    Raises InputError for a port in use and when a process was killed; SystemExit when the processes have reported an
    error themselves.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        split = shlex.split(options)
    except ValueError as error:
        raise InputError(
            f"--torchrun {options}: cannot be read ({error}); expected options of torchrun, such as "
            "'--nproc-per-node 2'. Close each quotation mark"
        ) from error
    arguments = run.parse_args([*split, "-m", "mr2ct_lib.cli", *words])
    logging.disable(logging.ERROR)  # torchrun reports a failed process on a whole page
    try:
        run.run(arguments)
    except distributed.DistError as error:
        raise _not_connected(error, f"{arguments.master_addr}:{arguments.master_port}") from error
    except SignalException as error:
        raise InputError(
            f"stopped by {signal.Signals(error.sigval).name}; start the same command with --resume to go on"
        ) from error
    except ChildFailedError as error:
        killed = {rank: failure for rank, failure in error.failures.items() if failure.exitcode < 0}
        for rank, failure in killed.items():
            raise InputError(
                f"process {rank} of the run was ended by {failure.signal_name()}, for example because memory ran out, "
                "and the others with it; start the same command with --resume, with as many processes as you like"
            ) from None
        raise SystemExit(max(failure.exitcode for failure in error.failures.values())) from None
    finally:
        logging.disable(logging.NOTSET)
