"""Executed notebooks as HTML, and one page with every table and figure of all of them."""

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from mr2ct_lib.files import atomic
from tools.hygiene import WIDGET_VIEW

NO_ALT = 'alt="No description has been provided for this image"'  # what nbconvert writes
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 2px solid #ddd; padding-bottom: .3rem; }
h3 { margin-top: 2rem; color: #444; }
nav { background: #f6f6f6; padding: 1rem 1.5rem; border-radius: .5rem; }
nav ul { margin: .2rem 0; }
nav ol > li { margin: .6rem 0; }
.minutes { color: #777; font-weight: normal; font-size: .85rem; }
.failed { color: #b00020; }
figure { margin: 1rem 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #666; font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; }
thead th { border-bottom: 2px solid #999; }
tbody tr:nth-child(even) { background: #f6f6f6; }
"""


@dataclass(frozen=True)
class Item:
    """A figure ("figure": PNG in base64) or a table ("table": HTML), the section that it stands in, and in words what
    the figure shows."""

    kind: str
    section: str
    content: str
    alt: str = ""


def title_of(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """Return the first `# ` heading of the notebook."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^# +(.+)$", cell.source, flags=re.MULTILINE)):
            return match.group(1).strip()
    return otherwise


def items_of(notebook: nbformat.NotebookNode) -> list[Item]:
    """Return the figures and tables among the outputs of `notebook`, in their order."""
    items, section = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{2,4} +(.+)$", cell.source, flags=re.MULTILINE)
            section = headings[-1].strip() if headings else section
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                alt = output.metadata.get("image/png", {}).get("alt", "")
                items.append(Item("figure", section, data["image/png"].replace("\n", ""), alt))
            elif "<table" in data.get("text/html", ""):
                items.append(Item("table", section, data["text/html"]))
    return items


def write_html(notebook_path: Path, out: Path) -> None:
    """Write the notebook at `notebook_path` as one HTML file to `out`, its pictures inside, its widgets left out (they
    need a kernel)."""
    notebook = nbformat.read(notebook_path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
    exporter = HTMLExporter(embed_images=True)
    resources = {"metadata": {"name": notebook_path.stem, "path": str(notebook_path.parent)}}
    body, _ = exporter.from_notebook_node(notebook, resources)
    for item in items_of(notebook):  # nbconvert's page does not carry the alternative text of outputs
        if item.kind == "figure":
            body = body.replace(NO_ALT, f'alt="{html.escape(item.alt or "not described")}"', 1)
    with atomic(out) as temporary:
        temporary.write_text(body, encoding="utf-8")


def _minutes(notebook: nbformat.NotebookNode) -> float:
    return (notebook.metadata.get("papermill", {}).get("duration") or 0.0) / 60


def write_report(executed: Path, out: Path, title: str, failures: Collection[str] = ()) -> None:
    """Write every table and figure of the notebooks in the folder `executed` to the page `out`, with contents and
    minutes.

    `failures` names notebooks that failed where papermill could not note it in them (their kernel died).
    """
    contents, chapters, total = [], [], 0.0
    for path in sorted(executed.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        minutes, name = _minutes(notebook), html.escape(title_of(notebook, path.stem))
        total += minutes
        failed = path.stem in failures or bool(notebook.metadata.get("papermill", {}).get("exception"))
        note = f'<span class="minutes">{minutes:.1f} min</span>' + (
            ' <strong class="failed">failed</strong>' if failed else ""
        )
        link = f"{executed.name}/{path.stem}.html"
        chapters.append(f'<h2 id="{path.stem}">{name} {note}</h2>\n<p><a href="{link}">the whole notebook</a></p>')
        lines, last = [], None
        for number, item in enumerate(items_of(notebook), start=1):
            anchor, section = f"{path.stem}-{number}", html.escape(item.section or "Beginning")
            if section != last:
                chapters.append(f'<h3 id="{anchor}">{section}</h3>')
                lines.append(f'<li><a href="#{anchor}">{section}</a></li>')
                last = section
            alt = html.escape(item.alt) or f"{name}: {section}"
            image = f'<img alt="{alt}" src="data:image/png;base64,{item.content}">'
            shown = image if item.kind == "figure" else item.content
            chapters.append(f"<figure>{shown}<figcaption>{path.stem}, {item.kind}, item {number}</figcaption></figure>")
        contents.append(f'<li><a href="#{path.stem}">{name}</a> {note}<ul>{"".join(lines)}</ul></li>')
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>Every table and figure of {len(contents)} notebooks, which ran for {total:.1f} minutes.</p>\n"
        f"<nav><ol>{''.join(contents)}</ol></nav>\n" + "\n".join(chapters) + "\n</body></html>\n"
    )
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
