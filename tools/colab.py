"""Where a notebook can be opened, and its set-up cell there: python -m tools.colab [notebooks...] writes both.

Nothing is run, and no output changes. Both are made from the repository's address in pyproject.toml.
"""

import sys
import tomllib

import nbformat

from mr2ct_lib.files import atomic
from tools import ROOT, numbered_notebooks

TAG, BADGES = "colab", "badges"  # tags of the two cells
TEMPLATE = """\
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec

if find_spec("mr2ct_lib") is None:  # on Colab: fetch the project, install it beside Colab's own torch
    with open("torch.txt", "w") as keep:
        keep.write(f"torch=={version('torch')}" if find_spec("torch") else "")
    !git clone -q --depth 1 ADDRESS mr2ct
    %pip install -q -c torch.txt -e "./mr2ct[widgets]"
if os.path.isdir("mr2ct/notebooks"):
    os.chdir("mr2ct/notebooks")
    sys.path.insert(0, os.path.dirname(os.getcwd()))"""


def repository() -> str:
    """Return the repository's address, which stands in [project.urls] of pyproject.toml and nowhere else."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def source() -> str:
    """Return the text of the set-up cell.

    >>> "--depth 1 " + repository() in source()
    True
    """
    return TEMPLATE.replace("ADDRESS", repository())


def badges(name: str) -> str:
    """Return the text of the cell that opens the notebook of this file name on Colab or Binder, as Markdown."""
    place = repository().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{place}/main?urlpath=lab/tree/notebooks/{name}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open on Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def set_up(notebook: nbformat.NotebookNode, name: str) -> None:
    """Write badges and set-up cell into `notebook` (in place), whose file name is `name`.

    Each goes over the cell with its tag; where there is none, both come after the title.
    """
    after_title = 1 if notebook.cells and notebook.cells[0].cell_type == "markdown" else 0
    for tag, text in ((TAG, source()), (BADGES, badges(name))):
        cells = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
        if cells:
            cells[0].source = text
            continue
        kind = nbformat.v4.new_code_cell if tag == TAG else nbformat.v4.new_markdown_cell
        notebook.cells.insert(after_title, kind(text, id=tag, metadata={"tags": [tag]}))


def main(names: list[str]) -> None:
    """Write both cells into the named notebooks (all without names)."""
    for path in numbered_notebooks(names=names):
        notebook = nbformat.read(path, as_version=4)
        set_up(notebook, path.name)
        with atomic(path) as temporary:
            nbformat.write(notebook, temporary)


if __name__ == "__main__":
    main(sys.argv[1:])
