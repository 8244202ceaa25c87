"""The stored notebooks keep the rules, the rules bite, and what runs notebooks does what it says."""

import html
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image
from scratch_notebooks import good_notebook, write

from mr2ct_lib.course import drawing
from tools import NOTEBOOKS, ROOT, colab, hygiene, numbered_notebooks
from tools.lab import LAB, working_copies
from tools.refresh import SANITIZE, clean_outputs, refresh, sanitize_rules, sanitized, smaller
from tools.report import items_of, write_html, write_report
from tools.tutorial import run_tutorial

PARAMETER_FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", numbered_notebooks(), ids=lambda path: path.stem)
def test_stored_notebook_keeps_the_rules(path: Path) -> None:
    assert hygiene.problems(path, PARAMETER_FILES) == []


def test_profiles_are_the_three_and_name_themselves() -> None:
    assert {path.stem for path in PARAMETER_FILES} == {"quick", "full", "paper"}
    assert all(yaml.safe_load(path.read_text())["profile"] == path.stem for path in PARAMETER_FILES)


def test_good_notebook_has_no_problem(tmp_path: Path) -> None:
    assert hygiene.problems(write(tmp_path), PARAMETER_FILES) == []


def _add(notebook: nbformat.NotebookNode, source: str, tag: str | None = None, outputs: list | None = None) -> None:
    count = sum(cell.cell_type == "code" for cell in notebook.cells) + 1
    metadata = {"tags": [tag]} if tag else {}
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            source, id=f"more-{count}", execution_count=count, metadata=metadata, outputs=outputs or []
        )
    )


def _show(kind: str, content: str) -> list:
    return [nbformat.v4.new_output("display_data", data={kind: content})]


BAD = {
    "execution count is 9, not 3": lambda n: n.cells[5].update(execution_count=9),
    "execution count is None": lambda n: n.cells[5].update(execution_count=None),
    "stores an error": lambda n: _add(
        n, "1 / 0", outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    ),
    "stores stderr": lambda n: _add(n, "x", outputs=[nbformat.v4.new_output("stream", name="stderr", text="warned")]),
    "stores image/svg": lambda n: _add(n, "x", outputs=_show("image/svg+xml", "<svg/>")),
    "stores application/vnd.jupyter.widget": lambda n: _add(n, "x", outputs=_show(hygiene.WIDGET_VIEW, "")),
    "a picture without alternative text": lambda n: _add(n, "x", outputs=_show("image/png", "QUJD")),
    "absolute path '/home/a": lambda n: n.cells[5].outputs[0].update(text="saved in /home/anna/runs"),
    "absolute path 'C:": lambda n: n.cells[5].outputs[0].update(text="saved in C:\\Users"),
    "is empty": lambda n: _add(n, ""),
    "has 26 lines": lambda n: _add(n, "\n".join(["a = 1"] * 26)),
    "the median code cell has 9 lines": lambda n: [
        cell.update(source="\n".join(["a = 1"] * 9)) for cell in n.cells[5:8:2]
    ],
    "use a tag": lambda n: _add(n, "# NBVAL_IGNORE_OUTPUT\nx"),
    "use try and except": lambda n: _add(n, "1 / 0", "raises-exception"),
    "every cell is run": lambda n: _add(n, "x", "nbval-skip"),
    "of 6 code cells are tagged nbval-ignore-output": lambda n: [_add(n, "x", "nbval-ignore-output") for _ in "ab"],
    "does not hold the badges": lambda n: n.cells[2].update(source="[badge](https://example.org)"),
    "not the set-up cell": lambda n: n.cells[1].update(source="!git clone elsewhere"),
    "metadata are": lambda n: n.metadata.update(widgets={}),
    "section 'Sum': no cell whose": lambda n: n.cells[5].update(outputs=[]),
    "section 'Product': no cell whose": lambda n: n.cells[7].update(
        outputs=_show("text/plain", "<Figure size 640x480 with 1 Axes>")
    ),
    "text cells to": lambda n: n.cells.extend(nbformat.v4.new_markdown_cell("more") for _ in range(6)),
    "0 cells are tagged 'parameters'": lambda n: n.cells[3].metadata.update(tags=[]),
    "2 cells are tagged 'parameters'": lambda n: _add(n, "b: int = 1  # b", "parameters"),
    "must be an annotated literal": lambda n: n.cells[3].update(source='profile = "quick"  # profile'),
    "has no comment": lambda n: n.cells[3].update(source='profile: str = "quick"'),
    "is computed": lambda n: n.cells[3].update(source='profile: str = "quick".lower()  # profile'),
    "'profile' is not in the parameters cell": lambda n: n.cells[3].update(source="seed: int = 1  # seed"),
    "another type": lambda n: n.cells[3].update(source="profile: int = 1  # profile"),
    "they must agree": lambda n: n.cells[3].update(source='profile: str = "full"  # profile'),
    "MB; at most": lambda n: n.cells[7].outputs.extend(_show("image/png", "A" * 1_600_000)),
}


@pytest.mark.parametrize("message", BAD)
def test_rule_bites(message: str, tmp_path: Path) -> None:
    assert any(message in problem for problem in hygiene.problems(write(tmp_path, BAD[message]), PARAMETER_FILES))


@pytest.mark.parametrize("text", ["https://example.org/home/x", "runs/quick/tmp/x", "a</var>", "1/2", "mm/s"])
def test_relative_paths_and_addresses_are_no_absolute_paths(text: str) -> None:
    assert not hygiene.ABSOLUTE_PATH.search(text)


SAMPLES = {
    "ADDRESS": ("<object at 0x7f00aa11bb22>", "<object at 0x55d0c1a2b3c4>"),
    "took TIME": ("training took 3.2 s", "training took 1.5 min"),
    "T_TABLE": ('<td id="T_0a1b2_row0_col1">', '<td id="T_fffff_row0_col1">'),
}


def test_every_sanitize_rule_parses_and_bites() -> None:
    lines = SANITIZE.read_text(encoding="utf-8").splitlines()
    rules = sanitize_rules()
    assert (
        len(rules)
        == sum(line.startswith("regex:") for line in lines)
        == sum(line.startswith("replace:") for line in lines)
    )
    assert {replacement for _, replacement in rules} == set(SAMPLES)
    for pattern, replacement in rules:
        first, second = (re.sub(pattern, replacement, sample) for sample in SAMPLES[replacement])
        assert first == second != SAMPLES[replacement][0]


def test_sanitizing_leaves_results_alone() -> None:
    for text in ("MAE 18.5", "TE 3.08 ms", "24 s of scanning", "T_1 is 0.8 s", "0x10"):
        assert text in sanitized([nbformat.v4.new_output("stream", text=text)])


def test_set_up_cell_comes_after_the_title_and_is_kept_up_to_date() -> None:
    notebook = good_notebook()
    notebook.cells[1].source = notebook.cells[2].source = "old"
    colab.set_up(notebook, "01_scratch.ipynb")
    assert [cell.source for cell in notebook.cells[1:3]] == [colab.source(), colab.badges("01_scratch.ipynb")]
    del notebook.cells[1:3]
    colab.set_up(notebook, "01_scratch.ipynb")
    assert [hygiene.tags(cell) for cell in notebook.cells[:3]] == [[], ["badges"], ["colab"]]


def test_badges_open_this_notebook_of_this_repository() -> None:
    addresses = re.findall(r"\)\]\((https://[^)]+)\)", colab.badges("03_cyclegan.ipynb"))
    place = colab.repository().removeprefix("https://github.com/")
    assert addresses[0] == f"https://colab.research.google.com/github/{place}/blob/main/notebooks/03_cyclegan.ipynb"
    assert addresses[1].startswith(f"https://mybinder.org/v2/gh/{place}/main")
    assert addresses[1].endswith("03_cyclegan.ipynb")


def test_set_up_cell_keeps_the_torch_that_is_there_and_runs_nowhere_else() -> None:
    source = colab.source()
    assert colab.repository() in source and "ADDRESS" not in source
    assert "-c torch.txt" in source
    magic_free = re.sub(r"^( +)[!%].*$", r"\1raise SystemExit('fetching')", source, flags=re.MULTILINE)
    subprocess.run(
        [sys.executable, "-c", magic_free], cwd=NOTEBOOKS, check=True
    )  # with mr2ct_lib here, nothing is fetched


def test_stored_outputs_have_no_stderr_no_widgets_and_prints_joined() -> None:
    def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
        return nbformat.v4.new_output("stream", name=name, text=text)

    outputs = [
        stream("a\n"),
        stream("!", "stderr"),
        stream("b\n"),
        *_show(hygiene.WIDGET_VIEW, "7"),
        *_show("image/png", _png(Image.new("RGB", (2, 2)))),
    ]
    kept = clean_outputs(outputs)
    assert [output.output_type for output in kept] == ["stream", "display_data"]
    assert kept[0].text == "a\nb\n"


def _png(image: Image.Image) -> str:
    stored = BytesIO()
    image.save(stored, "PNG")
    return b64encode(stored.getvalue()).decode()


def _stored(image: Image.Image) -> Image.Image:
    return Image.open(BytesIO(b64decode(smaller(_png(image)))))


def test_a_stored_picture_is_smaller_and_no_pixel_of_it_has_moved_much() -> None:
    rng = np.random.default_rng(0)
    grey = Image.effect_noise((200, 200), 50).convert("RGB")
    thousands = Image.fromarray(rng.integers(0, 256, (100, 100, 3), dtype=np.uint8))
    smooth = Image.merge("RGB", [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.new("L", (256, 256))])
    for image, most in ((grey, 0), (thousands, 2), (smooth, 2)):
        moved = np.asarray(_stored(image).convert("RGB")).astype(int) - np.asarray(image)
        assert np.abs(moved).max() <= most and len(smaller(_png(image))) < len(_png(image))
    assert _stored(grey).mode == "P" and _stored(thousands).mode == "RGB"


def test_a_rare_label_colour_stays_among_thousands_of_others() -> None:
    """The palette that was chosen by how often a colour occurs made pelvis and tensor fasciae latae one colour."""
    pixels = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    colours = np.round(255 * np.array(drawing.palette(22))).astype(int)
    pixels[0, :22] = colours
    kept = np.asarray(_stored(Image.fromarray(pixels)).convert("RGB")).astype(int)[0, :22]
    assert np.abs(kept - colours).max() <= 2 and len({tuple(colour) for colour in kept}) == 22


def test_a_figure_is_stored_at_twice_its_size_with_what_it_shows_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the kernel

    def change(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[5].source = (
            "from mr2ct_lib.course import charts, drawing\nimport matplotlib.pyplot as plt\n"
            "charts.landscape([-1, 0, 1], {'L1': [1, 0, 1]})\nplt.show()\nprint(1)"
        )
        notebook.cells[7].source = (
            "with plt.rc_context(drawing.style()):\n    fig, ax = plt.subplots(figsize=(4, 2))\n    ax.plot([1, 2])\n"
            "drawing.describe(fig, 'A <line> & \"more\"')\nplt.show()\nprint(2)"
        )

    path = write(tmp_path, change)
    refresh(path)
    assert hygiene.problems(path, PARAMETER_FILES) == []
    outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", []) if "data" in out]
    first, second = (output.metadata["image/png"] for output in outputs)
    assert "lowest 0 at 0" in first["alt"] and second["alt"] == 'A <line> & "more"'
    size = Image.open(BytesIO(b64decode(outputs[1].data["image/png"]))).width
    assert size // 2 == second["width"] and 380 < second["width"] < 440  # 4 inches at 100 dots
    write_html(path, tmp_path / "page.html")
    write_report(tmp_path, tmp_path / "report.html", "title")
    for page in ("page.html", "report.html"):
        images = re.findall("<img[^>]*base64[^>]*>", (tmp_path / page).read_text(encoding="utf-8"))
        alts = [re.search('alt="([^"]*)"', image).group(1) for image in images]
        assert [html.unescape(alt) for alt in alts] == [first["alt"], second["alt"]]
    notebook = nbformat.read(path, 4)  # a picture without one does not take that of the next
    next(o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o).metadata["image/png"].pop("alt")
    nbformat.write(notebook, path)
    write_html(path, tmp_path / "page.html")
    images = re.findall("<img[^>]*base64[^>]*>", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "A &lt;line" in images[1] and "A &lt;line" not in images[0]


def test_refreshing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    def change(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[5].source = "import sys; print(object()); print('oh', file=sys.stderr); print('took 0.1 s'); 3"
        notebook.cells[5].execution_count = 77
        notebook.cells[5].metadata.update(execution={"began": "today"}, tags=["b", "a"])
        notebook.metadata.update(authors=["me"])
        del notebook.cells[1]

    path = write(tmp_path, change)
    refresh(path)
    first = path.read_bytes()
    refresh(path)
    assert path.read_bytes() == first
    assert hygiene.problems(path, PARAMETER_FILES) == []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_strict_comparison_passes_after_refresh_and_fails_on_another_number(tmp_path: Path) -> None:
    def change(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[5].source = "import warnings; warnings.warn('now'); print(object()); print(2 + 2)\n"
        notebook.cells[
            5
        ].source += "from tqdm.auto import tqdm; from ipywidgets import IntSlider\nlist(tqdm(range(2))); IntSlider()"
        notebook.cells[5].outputs[0].text = "<object object at 0x7f0000000000>\n4\n"
        notebook.cells[7].outputs[0].text = "5\n"

    write(tmp_path, change)
    (tmp_path / "conftest.py").write_text((NOTEBOOKS / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    options = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(SANITIZE), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), *options]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "1 failed, 3 passed" in result.stdout, result.stdout + result.stderr
    assert "01_scratch.ipynb::Cell 3" in result.stdout


def test_tutorial_reports_a_failing_notebook_and_keeps_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[5].source = "raise ValueError('no such scan')"

    def shows(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[
            5
        ].source = "from IPython.display import HTML, Image; HTML('<table><tr><td>18.5</td></tr></table>')"
        notebook.cells[7].source = "print(profile); Image(bytes.fromhex('89504e470d0a1a0a'), format='png')"

    paths = [write(tmp_path, fails, "01_fails.ipynb"), write(tmp_path, shows, "02_shows.ipynb")]
    out = tmp_path / "runs" / "full"
    assert run_tutorial(paths, {"profile": "full"}, out) == 1
    said = capsys.readouterr().out
    assert "[1/2] 01_fails FAILED" in said and "ValueError: no such scan" in said and "[2/2] 02_shows done" in said
    assert sorted(path.name for path in (out / "executed").iterdir()) == [
        "01_fails.html", "01_fails.ipynb", "02_shows.html", "02_shows.ipynb",
    ]  # fmt: skip
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "<td>18.5</td>" in report and "data:image/png;base64,iVBORw0KGgo" in report and "failed" in report
    assert (
        report.index("Sum</h3>")
        < report.index("<td>18.5")
        < report.index("Product</h3>")
        < report.index("data:image/png")
    )
    executed = out / "executed" / "02_shows.ipynb"
    assert "full\n" in nbformat.read(executed, as_version=4).cells[8].outputs[0].text
    assert str(tmp_path) not in executed.read_text(encoding="utf-8")  # it may be handed on


def test_report_takes_tables_and_figures_and_escapes_titles(tmp_path: Path) -> None:
    notebook = good_notebook()
    notebook.cells[0].source = "# MR & CT <i>"
    notebook.cells[5].outputs = _show("image/png", "QUJD\n") + _show("text/html", "<b>no table</b>")
    assert [(item.kind, item.section, item.content) for item in items_of(notebook)] == [("figure", "Sum", "QUJD")]
    (tmp_path / "executed").mkdir()
    nbformat.write(notebook, tmp_path / "executed" / "01_x.ipynb")
    write_report(tmp_path / "executed", tmp_path / "report.html", "title")
    assert "MR &amp; CT &lt;i&gt;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_jupyterlab_opens_copies_and_keeps_what_the_reader_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, lab = tmp_path / "notebooks", tmp_path / "lab"
    source.mkdir()
    stored = write(source)
    (copy,) = working_copies(source=source, lab=lab)
    assert copy.parent == lab and copy.read_bytes() == stored.read_bytes()
    copy.write_text("changed by the reader")
    os.utime(copy, (1, 1))
    assert working_copies(["01"], source, lab) == [copy] and copy.read_text() == "changed by the reader"
    assert "is newer than your copy" in capsys.readouterr().out
    assert LAB.parent == NOTEBOOKS.parent  # else links to ../docs would break
