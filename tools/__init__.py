"""What keeps the tutorial in order: run it, refresh its stored outputs, check its notebooks, put reports together."""

import os
import time
from pathlib import Path
from queue import Empty

from jupyter_client.channels import AsyncZMQSocketChannel

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
KERNEL_ARGUMENTS = ["--log-level=40"]  # errors only: newer kernels warn at each start that they talk to this machine without encryption


def numbered_notebooks(folder: Path = NOTEBOOKS, names: list[str] | None = None) -> list[Path]:
    """Return the notebooks of `folder` that begin with two digits, in their order; only those that match `names` when given.

    A name may be a whole file name, a path or just the number ("03"). Raises SystemExit with a sentence when one matches nothing.
    """
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return every
    chosen = set()
    for name in names:
        found = [path for path in every if path.name.startswith(Path(name).name)]
        if not found:
            raise SystemExit(f"{name}: no such notebook in {folder.name}/; there are {', '.join(p.stem for p in every) or 'none'}")
        chosen.update(found)
    return sorted(chosen)


def quiet_kernels() -> None:
    """Set the environment in which notebooks run unattended: the kernel of this very environment, inline figures, little noise."""
    os.environ["TQDM_DISABLE"] = "1"  # in the processes that notebooks start; a bar in the notebook itself is a widget
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ.pop("MPLBACKEND", None)  # Agg would keep figures from being shown


_waits = AsyncZMQSocketChannel.get_msg


async def _looks_again(channel: AsyncZMQSocketChannel, timeout: float | None = None) -> dict:
    """As jupyter_client's get_msg, but looking again each second.

    A socket announces a message once. jupyter_client answers widgets through a second handle on the same socket, which can take that
    announcement away; a wait without end then never ends (seen once in some ten runs of a notebook with sliders).
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = 1.0 if end is None else min(1.0, max(0.0, end - time.monotonic()))
        try:
            return await _waits(channel, timeout=left)
        except Empty:
            if end is not None and time.monotonic() >= end:
                raise


AsyncZMQSocketChannel.get_msg = _looks_again  # type: ignore[method-assign]
