"""The command line itself: its groups, the options that several commands share, and the one place where errors end."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mr2ct_lib.cores import open_streams, sigterm_exits
from mr2ct_lib.files import InputError

app = typer.Typer(
    help="Unpaired MR-to-CT synthesis: virtual patients, training, synthesis, evaluation, segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
segmenting = typer.Typer(
    help="Train a two-channel U-Net on CT + synthetic MR, or segment an MR with it.", no_args_is_help=True
)
app.add_typer(segmenting, name="segment")

# in the RuntimeErrors of PyTorch and SimpleITK
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate memory")
Out = Annotated[Path, typer.Option(help="where the result goes")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an earlier result that lies at --out")]
Scheduler = Annotated[
    str | None, typer.Option(help="address or file of a Dask scheduler whose workers do the work (docs/cluster.md)")
]


def main() -> None:
    """Run the command line.

    An error that a person can act on becomes one sentence on stderr and exit code 2: InputError, a refusal of the
    operating system, too little memory, a name that cannot be encoded. Output that the terminal cannot show is escaped
    instead of ending the command. SIGTERM ends a command with no half-written file left behind.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        for word in sys.argv[1:]:
            check_encoding(word)
        with sigterm_exits(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except (InputError, OSError, MemoryError, UnicodeError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        # what was given is wrong for all processes of a training run: the first one reports it; all else is their own
        shared = isinstance(error, InputError) and type(error).__name__ != "LostProcess"
        if os.environ.get("LOCAL_RANK", "0") == "0" or not shared:
            print(f"mr2ct: {sentence}", file=sys.stderr)
        sys.exit(2)


def check_encoding(name: str | Path) -> None:
    """Raise InputError for a file name whose bytes are not UTF-8: such a name can be opened, but not recorded beside a
    result.

    >>> check_encoding("père.nii.gz")
    """
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{ascii(str(name))}: the name is not UTF-8; expected a name of readable characters. Rename it"
        ) from None


@contextmanager
def spoken_warnings(scan: Path) -> Iterator[None]:
    """Print the warnings of the block to stderr when it ends, each once, as one sentence that names the scan."""
    with kept_warnings() as messages:
        yield
    speak(scan, messages)


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """Yield a list that holds the block's warnings when it has ended, each once."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield messages
    messages += dict.fromkeys(str(warning.message) for warning in caught)


def speak(scan: Path, messages: list[str]) -> None:
    """Print what a scan was warned about to stderr, a sentence each."""
    for message in messages:
        named = message if message.startswith(str(scan)) else f"{scan}: {message}"
        print(f"mr2ct: WARNING: {named}", file=sys.stderr)


def _show_warning(message: Warning, category: type, *place) -> None:
    """A warning of this program as one sentence; others as Python prints them."""
    raw = warnings.formatwarning(message, category, *place[:2])
    print(f"mr2ct: WARNING: {message}" if category is UserWarning else raw, file=sys.stderr)


def _sentence(error: Exception) -> str | None:
    """What to tell the user about `error`; None for an error of the program itself."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'writing'}: {error.strerror}" if error.strerror else str(error)
    if isinstance(error, UnicodeError):
        return f"{error}; expected names of UTF-8 characters. Rename the file or folder"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        reason = " ".join(str(error).split())[:200] or "no memory is left"
        return (
            f"memory: {reason}; expected a scan and a batch that fit. Take a smaller one or a machine with more memory"
        )
    return None
