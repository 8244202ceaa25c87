"""Open working copies of the notebooks in JupyterLab: python -m tools.lab [notebooks...]

JupyterLab saves a notebook while it runs; in notebooks/ that would change the stored outputs that the tests compare. So
lab/ holds copies, which git ignores. A copy that is there is kept, with your changes; delete it to get the stored
notebook again.
"""

import os
import shutil
import sys
from pathlib import Path

from tools import NOTEBOOKS, ROOT, numbered_notebooks

LAB = ROOT / "lab"  # beside notebooks/, so that links to ../docs and to other notebooks lead to the same places


def working_copies(names: list[str] | None = None, source: Path = NOTEBOOKS, lab: Path = LAB) -> list[Path]:
    """Copy the notebooks that `lab` lacks (those that match `names`, else all); return the paths of all copies asked
    for."""
    lab.mkdir(exist_ok=True)
    copies = []
    for path in numbered_notebooks(source, names):
        copy = lab / path.name
        if not copy.exists():
            shutil.copyfile(path, copy)
        elif path.stat().st_mtime > copy.stat().st_mtime:
            print(
                f"{path.parent.name}/{path.name} is newer than your copy {lab.name}/{path.name}; delete the "
                f"copy to get it"
            )
        copies.append(copy)
    return copies


def main(names: list[str]) -> None:
    """Make the copies and hand over to JupyterLab, which serves the whole repository and opens the first copy."""
    os.chdir(ROOT)
    first = working_copies(names)[:1]
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--ServerApp.root_dir=.",
        *(str(path.relative_to(ROOT)) for path in first),
    ]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1:])
