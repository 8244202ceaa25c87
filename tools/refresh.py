"""Write the stored outputs of the notebooks: python -m tools.refresh [notebooks...]. Nothing else may write them.

Each notebook runs from top to bottom in its own folder in the default profile. What is stored does not depend on who
ran it: counts 1..n, no timings, no stderr, no widget state, only the metadata that a viewer needs. A cell whose new
output agrees with the stored one under the rules of the strict test keeps the stored one, so a second run changes
nothing but what truly changed.
"""

import json
import re
import sys
import time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal
from PIL import Image

from mr2ct_lib.files import atomic
from tools import NOTEBOOKS, colab, hygiene, kernels, numbered_notebooks, quiet_kernels

SANITIZE = NOTEBOOKS / "sanitize.cfg"
ROUNDING = (1, 3, 5)  # divisors of 255, so that black stays black and white white


def sanitize_rules() -> list[tuple[str, str]]:
    """Return the (regular expression, replacement) pairs of the sanitize file, read as nbval reads it."""
    return re.findall("^regex: (.*)$\n^replace: (.*)$", SANITIZE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def sanitized(outputs: list[nbformat.NotebookNode]) -> str:
    """Return `outputs` as text with what may change from run to run replaced by words."""
    rules = sanitize_rules()

    def clean(item: object) -> object:
        if isinstance(item, dict):
            return {key: clean(value) for key, value in item.items() if key != "execution_count"}
        if isinstance(item, list):
            return [clean(value) for value in item]
        if isinstance(item, str):
            for pattern, replacement in rules:
                item = re.sub(pattern, replacement, item)
        return item

    return json.dumps(clean(outputs), sort_keys=True)


def smaller(picture: str) -> str:
    """Return a PNG (base64) as small as it gets while no channel of a pixel changes by more than 2 of 255.

    A palette is chosen only where it holds every colour, if need be after rounding to multiples of 3 or 5; it never
    merges colours that a reader must tell apart. Pictures with more colours stay without one.
    """
    original = Image.open(BytesIO(b64decode(picture))).convert("RGB")
    for step in ROUNDING:
        rounded = original.point([round(value / step) * step for value in range(256)] * 3)
        if rounded.getcolors(256):
            chosen = rounded.quantize(256, dither=Image.Dither.NONE)
            break
    else:
        chosen = original.point([round(value / 3) * 3 for value in range(256)] * 3)
    stored = BytesIO()
    chosen.save(stored, "PNG", optimize=True)
    return b64encode(stored.getvalue()).decode() + "\n"


def clean_outputs(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return `outputs` as they are stored: neighbouring prints joined, without stderr and without widgets (their static
    twin stays)."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("name") == "stderr" or hygiene.WIDGET_VIEW in output.get("data", {}):
            continue
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = smaller(output.data["image/png"])
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def refresh(path: Path) -> float:
    """Run the notebook at `path` in its folder and store its outputs; return the seconds that it took.

    Raises nbclient's CellExecutionError when a cell fails and DeadKernelError when the kernel dies; the notebook then
    stays as it was.
    """
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    colab.set_up(notebook, path.name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [cell.outputs for cell in code]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(path.parent)}}
    options = {**kernels.OPTIONS, "timeout": None, "record_timing": False}
    # Without its state a widget that captures output fails; the state goes when the metadata are replaced below.
    NotebookClient(notebook, store_widget_state=True, resources=where, **options).execute()
    for cell, before in zip(code, stored, strict=True):
        after = clean_outputs(cell.outputs)
        cell.outputs = before if sanitized(before) == sanitized(after) else after
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({"tags": sorted(hygiene.tags(cell))} if hygiene.tags(cell) else {})
        cell.setdefault("id", f"cell-{number}")
    notebook.nbformat_minor = 5  # the first version whose cells have ids
    notebook.metadata = nbformat.from_dict(hygiene.METADATA)
    nbformat.validate(notebook)
    with atomic(path) as temporary:
        nbformat.write(notebook, temporary)
    return time.perf_counter() - start


def main(names: list[str]) -> int:
    """Refresh the named notebooks (all without names); return 1 when a cell failed or a rule is broken."""
    quiet_kernels()
    status = 0
    paths = numbered_notebooks(names=names)
    for number, path in enumerate(paths, start=1):
        print(f"{number}/{len(paths)} {path.name} ...", end=" ", flush=True)
        try:
            print(f"{refresh(path) / 60:.1f} min")
        except (CellControlSignal, RuntimeError) as error:  # a cell failed, or its kernel died
            print(f"failed, and stays as it was\n{error}")
            status = 1
            continue
        for problem in hygiene.problems(path, sorted((NOTEBOOKS / "params").glob("*.yaml"))):
            print(f"  {problem}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
