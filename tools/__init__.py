"""What keeps the tutorial in order: run it, refresh its stored outputs, check its notebooks, put reports together."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def numbered_notebooks(folder: Path = NOTEBOOKS, names: list[str] | None = None) -> list[Path]:
    """Return the notebooks of `folder` that begin with two digits, in their order; only those that match `names` when
    given.

    A name may be a whole file name, a path or just the number ("03"). Raises SystemExit with a sentence when one
    matches nothing.
    """
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return every
    chosen = set()
    for name in names:
        found = [path for path in every if path.name.startswith(Path(name).name)]
        if not found:
            raise SystemExit(
                f"{name}: no such notebook in {folder.name}/; there are {', '.join(p.stem for p in every) or 'none'}"
            )
        chosen.update(found)
    return sorted(chosen)


def quiet_kernels() -> None:
    """Set the environment in which notebooks run unattended: the kernel of this very environment, inline figures,
    little noise."""
    os.environ["TQDM_DISABLE"] = "1"  # in the processes that notebooks start; a bar in the notebook itself is a widget
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ.pop("MPLBACKEND", None)  # Agg would keep figures from being shown
