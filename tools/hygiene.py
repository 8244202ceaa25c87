"""The rules that a stored notebook keeps: python -m tools.hygiene [notebooks...] prints what breaks them."""

import ast
import json
import re
import statistics
import sys
from pathlib import Path

import nbformat
import yaml

from tools import NOTEBOOKS, colab, numbered_notebooks

MEGABYTES = 1.5  # with figures as PNG, that still opens at once on GitHub
IGNORED_SHARE = 0.25  # of the code cells may keep their output from being compared
LINES, MEDIAN_LINES = 25, 8  # of a code cell
TEXT_TO_CODE = (0.6, 2.0)  # about one text cell to a code cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/>-])/(?:home|root|Users|work|tmp|mnt|content|opt|usr|var|private)/[\w.-]|\b[A-Z]:\\\\\w"
)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def is_ignored(cell: nbformat.NotebookNode) -> bool:
    """Say whether nbval runs the cell without comparing its output."""
    return "nbval-ignore-output" in tags(cell)


def parameters_of(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Return names and values of the parameters cell. Raises ValueError when there is not exactly one, or it holds more
    than literals."""
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells are tagged 'parameters'; there must be one")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise ValueError(
                f"parameters cell, line {statement.lineno}: must be an annotated literal like `seed: int = 1  # "
                f"what for`"
            )
        if "#" not in cells[0].source.splitlines()[statement.lineno - 1]:
            raise ValueError(f"parameters cell, line {statement.lineno}: has no comment that says what it is")
        try:
            found[statement.target.id] = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            where = f"parameters cell, line {statement.lineno}"
            message = f"{where}: is computed; derive it in the next cell (papermill would leave it stale)"
            raise ValueError(message) from None
    return found


def is_compared(cell: nbformat.NotebookNode) -> bool:
    """Say whether nbval compares something printed or shown by this cell; figures do not count, since nobody compares
    their pixels."""
    if cell.cell_type != "code" or is_ignored(cell) or "nbval-skip" in tags(cell):
        return False
    for output in cell.outputs:
        text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
        if output.get("name") != "stderr" and text.strip() and not text.startswith("<Figure"):
            return True
    return False


def sections(notebook: nbformat.NotebookNode) -> dict[str, list[nbformat.NotebookNode]]:
    """Return the code cells under each `## ` heading, without the set-up and parameters cells."""
    found: dict[str, list[nbformat.NotebookNode]] = {}
    heading = "(before the first section)"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^## +(.+)$", cell.source, flags=re.MULTILINE)
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code" and not {colab.TAG, "parameters"} & set(tags(cell)):
            found.setdefault(heading, []).append(cell)
    return found


def _problems_of_code(notebook: nbformat.NotebookNode) -> list[str]:
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for position, cell in enumerate(code, start=1):
        where = f"code cell {position} ({(cell.source.splitlines() or ['empty'])[0][:50]!r})"
        if cell.execution_count != position:
            found.append(f"{where}: execution count is {cell.execution_count}, not {position}; refresh the notebook")
        if not cell.source.strip():
            found.append(f"{where}: is empty")
        if len(cell.source.splitlines()) > LINES:
            found.append(f"{where}: has {len(cell.source.splitlines())} lines; at most {LINES}")
        if re.search(r"^\s*#\s*NBVAL_|^\s*#\s*PYTEST_VALIDATE", cell.source, flags=re.MULTILINE):
            found.append(f"{where}: steers nbval by a comment; use a tag")
        if "raises-exception" in tags(cell):
            found.append(f"{where}: is tagged raises-exception, at which papermill stops; use try and except")
        for output in cell.outputs:
            kinds = set(output.get("data", {}))
            if output.output_type == "error":
                found.append(f"{where}: stores an error")
            if output.get("name") == "stderr":
                found.append(f"{where}: stores stderr")
            if "image/png" in kinds and not output.metadata.get("image/png", {}).get("alt"):
                found.append(f"{where}: a picture without alternative text; use course.drawing.describe, then refresh")
            if kinds & {"image/svg+xml", WIDGET_VIEW}:
                found.append(f"{where}: stores {', '.join(kinds & {'image/svg+xml', WIDGET_VIEW})}")
    lengths = [len(cell.source.splitlines()) for cell in code if colab.TAG not in tags(cell)]
    if lengths and statistics.median(lengths) > MEDIAN_LINES:
        found.append(f"the median code cell has {statistics.median(lengths):g} lines; at most {MEDIAN_LINES}")
    ignored = sum(is_ignored(cell) for cell in code)
    if ignored > IGNORED_SHARE * len(code):
        found.append(f"{ignored} of {len(code)} code cells are tagged nbval-ignore-output; at most {IGNORED_SHARE:.0%}")
    if any("nbval-skip" in tags(cell) for cell in code):
        found.append("a cell is tagged nbval-skip; every cell is run")
    if not code or tags(code[0]) != [colab.TAG] or code[0].source != colab.source():
        found.append("the first code cell is not the set-up cell of tools/colab.py; run python -m tools.colab")
    return found


def problems(path: Path, parameter_files: list[Path] | None = None) -> list[str]:
    """Return one sentence for each rule that the notebook at `path` breaks; `parameter_files` are the YAML files of the
    profiles."""
    notebook = nbformat.read(path, as_version=4)
    found = _problems_of_code(notebook)
    if [cell.source for cell in notebook.cells if colab.BADGES in tags(cell)] != [colab.badges(path.name)]:
        found.append("does not hold the badges of tools/colab.py once; run python -m tools.colab")
    if path.stat().st_size > MEGABYTES * 1e6:
        found.append(f"is {path.stat().st_size / 1e6:.2f} MB; at most {MEGABYTES}")
    if notebook.metadata != METADATA:
        found.append(f"metadata are {json.dumps(notebook.metadata)[:200]}; refresh the notebook")
    for name, cells in sections(notebook).items():
        if not any(map(is_compared, cells)):
            found.append(f"section {name!r}: no cell whose printed output is compared")
    text = sum(cell.cell_type == "markdown" for cell in notebook.cells)
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    if code and not TEXT_TO_CODE[0] <= text / code <= TEXT_TO_CODE[1]:
        found.append(f"{text} text cells to {code} code cells; about one to one")
    for number, cell in enumerate(notebook.cells):
        outputs = [output.get("data", output) for output in cell.get("outputs", [])]
        texts = [text for output in outputs for kind, text in output.items() if "image" not in kind]
        if match := ABSOLUTE_PATH.search(json.dumps([cell.source, texts])):
            found.append(f"cell {number}: holds the absolute path {match.group()!r}...")
    try:
        parameters = parameters_of(notebook)
    except (ValueError, SyntaxError) as error:
        return [*found, str(error)]
    for file in parameter_files or []:
        for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            where = f"{file.name}: {key!r}"
            if key not in parameters:
                found.append(f"{where} is not in the parameters cell, so papermill would ignore it")
            elif type(value) is not type(parameters[key]):
                found.append(f"{where} is {value!r} and the notebook's default {parameters[key]!r}: another type")
            elif file.stem == "quick" and value != parameters[key]:
                found.append(f"{where} is {value!r} and the notebook's default {parameters[key]!r}; they must agree")
    return found


def main(names: list[str]) -> int:
    """Print the problems of the named notebooks (all without names); return 1 when there are any."""
    parameter_files = sorted((NOTEBOOKS / "params").glob("*.yaml"))
    bad = 0
    for path in numbered_notebooks(names=names):
        for problem in problems(path, parameter_files):
            print(f"{path.name}: {problem}")
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
