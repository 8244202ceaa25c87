"""Errors that a person can act on, and writes that are whole or not there at all."""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # in a temporary folder: held by the process that writes there


class InputError(ValueError):
    """What the user gave cannot be used.

    The message says which file or argument, what was found, what was expected and what to do.
    """


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder; it replaces `path` only when the block succeeds.

    The temporary name ends like `path`, so that writers that look at the suffix (NIfTI, PNG) work. An error leaves
    nothing behind; what a killed process left is removed when the same `path` is written the next time.

    Raises InputError when the disk refuses (no space, no permission, read-only).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name[:40]}."
        remove_left(path.parent, prefix)
        room, lock = _make_room(path.parent, prefix)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error
    try:
        with lock:
            yield room / path.name
            _replace(path, room)
    except OSError as error:  # NumPy's has no strerror, only how much was written
        raise InputError(
            f"{path}: writing failed ({error.strerror or error}); free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _make_room(folder: Path, prefix: str) -> tuple[Path, IO]:
    """A temporary folder and its lock, held. Where another writer took it for left over before, a new one is made."""
    while True:
        room = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        try:
            lock = open(room / LOCK, "w")  # noqa: SIM115
            _locked(lock, wait=True)  # until it is removed, where another writer holds the lock
            if (room / LOCK).exists():
                return room, lock
            lock.close()
        except BaseException:
            shutil.rmtree(room, ignore_errors=True)
            raise


def _replace(path: Path, room: Path) -> None:
    """Move what was written in `room` to `path`; where that fails, the folder that was there is there again."""
    previous = room / ".previous"
    try:
        if path.is_dir():
            path.rename(previous)
        os.replace(room / path.name, path)
    finally:
        if previous.exists() and not path.exists():
            previous.rename(path)


def remove_left(folder: Path, prefix: str) -> None:
    """Remove temporary folders of `atomic` whose process is gone: nobody holds their lock."""
    for room in folder.glob(f"{glob.escape(prefix)}*") if fcntl else ():
        with suppress(OSError), open(room / LOCK, "r+") as lock:
            if _locked(lock):
                shutil.rmtree(room, ignore_errors=True)


def _locked(file: IO, wait: bool = False) -> bool:
    """Lock an open file for this process; say whether it was free. Some network disks know no locks: then it is not."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):
        return False
    return True


def counted(count: int, what: str) -> str:
    """A number with its noun in the right form.

    >>> counted(1, "scan"), counted(0, "source slice")
    ('1 scan', '0 source slices')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def read_json(path: str | Path) -> Any:
    """Return what the JSON file at `path` holds. Raises InputError when it is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); write it again or choose another file") from error


def write_json(content: Any, path: str | Path) -> None:
    """Write `content` to `path` as JSON, atomically. Raises InputError when it cannot be written."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
