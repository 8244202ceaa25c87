"""The set-up cell that every notebook begins with, made from the repository's address in pyproject.toml."""

import tomllib
from pathlib import Path

import nbformat

from tools import ROOT

TAG = "colab"
TEMPLATE = """\
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec

if find_spec("mr2ct_lib") is None:  # on Colab: fetch the project, install it beside Colab's own torch
    with open("torch.txt", "w") as keep:
        keep.write(f"torch=={version('torch')}")
    !git clone -q --depth 1 ADDRESS mr2ct
    %pip install -q -c torch.txt -e ./mr2ct
if os.path.isdir("mr2ct/notebooks"):
    os.chdir("mr2ct/notebooks")
    sys.path.insert(0, os.path.dirname(os.getcwd()))"""


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Return the repository's address, which stands in [project.urls] of pyproject.toml and nowhere else."""
    return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def source() -> str:
    """Return the text of the set-up cell.

    >>> "--depth 1 " + repository() in source()
    True
    """
    return TEMPLATE.replace("ADDRESS", repository())


def set_up(notebook: nbformat.NotebookNode) -> None:
    """Write the set-up cell into `notebook` (in place): over the cell tagged "colab", or after the title when there is
    none."""
    for cell in notebook.cells:
        if TAG in cell.metadata.get("tags", []):
            cell.source = source()
            return
    title = 1 if notebook.cells and notebook.cells[0].cell_type == "markdown" else 0
    cell = nbformat.v4.new_code_cell(source(), id="colab", metadata={"tags": [TAG]})
    notebook.cells.insert(title, cell)
