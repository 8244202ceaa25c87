"""Small notebooks that tests build: a good one, and what breaks it."""

from collections.abc import Callable
from pathlib import Path

import nbformat

from tools import colab, hygiene


def good_notebook() -> nbformat.NotebookNode:
    """Return a notebook that keeps every rule, with its outputs stored."""
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    stream = nbformat.v4.new_output("stream", name="stdout", text="4\n")
    cells = [
        text("# A scratch notebook"),
        code(colab.source(), metadata={"tags": ["colab"]}),
        text(colab.badges("01_scratch.ipynb"), metadata={"tags": ["badges"]}),
        code('profile: str = "quick"  # quick, full or paper', metadata={"tags": ["parameters"]}),
        text("## Sum"),
        code("print(2 + 2)", outputs=[stream]),
        text("## Product"),
        code("print(2 * 2)", outputs=[nbformat.from_dict(stream)]),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
    return nbformat.v4.new_notebook(cells=cells, metadata=hygiene.METADATA)


def write(
    folder: Path, change: Callable[[nbformat.NotebookNode], object] | None = None, name: str = "01_scratch.ipynb"
) -> Path:
    """Write the good notebook to `folder` after `change` had its way with it."""
    notebook = good_notebook()
    if change:
        change(notebook)
    nbformat.write(notebook, folder / name)
    return folder / name
