"""Build the website: python -m tools.site [--out site]

Puts the stored notebooks, README, docs, recorded results and a page per module of the library into one source tree and
lets Sphinx build it. Nothing is executed. MathJax, which draws the formulas here, and Mermaid, which draws the diagrams
in the reader's browser, are fetched once by npm into the build folder, so that the pages need no network. Where npm is
missing, the site is built without them and says so. `slim` makes the pages light; one above its limit fails the build,
as a dead link does. The extra `site` must be installed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from base64 import b64decode
from hashlib import sha256
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd

from mr2ct_lib.course.papers import MARKS, METHODS
from mr2ct_lib.files import InputError
from tools import ROOT, colab, numbered_notebooks, slim

LIBRARY = ROOT / "mr2ct_lib"
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PICTURES = (".png", ".jpg", ".svg")
SCRIPTS = {
    "mathjax": "mathjax@3.2.2",
    "mermaid": "mermaid@11.12.0",
}  # npm packages that the pages load from the site itself
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?(\))")
WEB_PICTURE = re.compile(r"!\[([^\]]*)\]\(https?:[^)]*\)")
ROOMS = {
    "images": "Scans as arrays with a place in the patient",
    "patients": "Virtual patients and their scanners",
    "methods": "The two papers",
    "measures": "Measures and statistics",
    "course": "What the notebooks use",
    "cli": "The command line",
}


def configuration() -> dict[str, object]:
    """The settings of Sphinx; see its documentation and those of myst-nb and sphinx-book-theme."""
    address = colab.repository()
    return {
        "project": "mr2ct",
        "author": "mr2ct",
        "language": "en",
        "html_title": "mr2ct",
        "root_doc": "index",
        "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"],
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_code_prompt_show": "Show this cell",
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "myst_heading_anchors": 4,
        "myst_dmath_double_inline": True,
        "default_role": "literal",
        "autodoc_member_order": "bysource",
        "autodoc_mock_imports": ["triton"],  # comes with PyTorch for GPUs alone
        "autodoc_typehints": "signature",
        "napoleon_google_docstring": True,
        "napoleon_numpy_docstring": False,
        "add_module_names": False,
        # docutils: docstrings are not quite reStructuredText; highlighting: Mermaid has no lexer
        "suppress_warnings": ["mystnb.unknown_mime_type", "docutils", "misc.highlighting_failure"],
        "mathjax_path": "vendor/mathjax.js",  # `slim` draws the formulas and removes this script
        "html_theme": "sphinx_book_theme",
        "html_static_path": ["_static"],
        "html_css_files": ["site.css"],
        "html_favicon": "_static/icon.svg",
        "html_context": {"default_mode": "auto"},
        "html_js_files": [("site.js", {"defer": "defer"})],
        "html_copy_source": False,
        "html_show_sourcelink": False,
        "html_theme_options": {
            "repository_url": address,
            "repository_branch": "main",
            "path_to_docs": "",
            "use_repository_button": True,
            "use_source_button": False,
            "use_download_button": False,
            "home_page_in_toc": True,
            "show_toc_level": 2,
            "navbar_persistent": [],
            "launch_buttons": {
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
            },
        },
    }


def build(out: Path) -> list[str]:
    """Write the site to `out`, its sources to `out`_build; return the warnings of Sphinx (a dead link is one)."""
    if out.exists() and not (out.is_dir() and ((out / ".nojekyll").exists() or not any(out.iterdir()))):
        raise InputError(f"{out}: is no site of ours; expected a new folder, as all in it is replaced. Choose another")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    work = out.with_name(out.name + "_build")
    source, html = work / "source", work / "html"  # myst-nb leaves pictures beside the folder that Sphinx writes to
    for folder in (source, html, out):
        shutil.rmtree(folder, ignore_errors=True)
    write_sources(source)
    mathjax = fetch_scripts(work / "npm", source / "_static" / "vendor")
    warnings, texts = work / "warnings.txt", alternative_texts(source)
    with docutils_namespace(), open(warnings, "w", encoding="utf-8") as file:
        app = Sphinx(source, None, html, work / "doctrees", "html", configuration(), status=None, warning=file)
        app.connect("autodoc-process-docstring", escape_docstring, priority=100)  # before Args lists are read
        app.connect("doctree-read", lambda _, page: describe_pictures(page, texts))
        app.build()
    shutil.move(html, out)
    slim.slim(out, mathjax)
    (out / ".nojekyll").touch()
    return warnings.read_text(encoding="utf-8").splitlines()


def alternative_texts(source: Path) -> dict[str, str]:
    """The alternative texts of the pictures in all notebooks below `source`, by the SHA-256 of each picture."""
    found = {}
    for path in source.rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    found[sha256(b64decode(output.data["image/png"])).hexdigest()] = alt
    return found


def describe_pictures(page, texts: dict[str, str]) -> None:
    """Give the pictures of a page (a docutils document) their alternative text; myst-nb names each by its SHA-256 and
    does not read `alt` from an output."""
    for node in page.findall(lambda node: node.tagname == "image"):
        if alt := texts.get(Path(node["uri"]).stem):
            node["alt"] = alt


def dead_links(out: Path) -> list[str]:
    """What the pages of the built site link to or show that is not there: files, and anchors of other pages."""
    paths = [path for path in out.rglob("*.html") if "_static" not in path.parts]  # there lie the theme's templates
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in paths}
    anchors = {path: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for link in sorted(set(re.findall(r'<[^>]+\b(?:href|src)="([^"]*)"', text))):
            name, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:|//", name):
                continue
            target = (page.parent / name.split("?")[0]).resolve() if name else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                dead.append(f"{page.relative_to(out.resolve())}: {link} leads nowhere")
    return dead


def escape_docstring(app, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Escape, in place, what reStructuredText would take for markup: our docstrings are plain text with `names`."""
    example = False
    for number, line in enumerate(lines):
        example = line.strip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = line.split("`")
            parts[::2] = [re.sub(r"([|*]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def write_sources(source: Path) -> None:
    """Write everything that Sphinx reads to the new folder `source`, which is laid out as the repository is."""
    shutil.copytree(DOCS, source / "docs", ignore=shutil.ignore_patterns("_static"))
    shutil.copytree(DOCS / "_static", source / "_static")
    for name in PAGES:
        shutil.copy(ROOT / name, source / name)
    (source / "README.md").rename(source / "index.md")
    (source / "notebooks").mkdir()
    for path in numbered_notebooks():
        shutil.copy(path, source / "notebooks")
    write_api(source / "api")
    (source / "results.md").write_text(results_page(), encoding="utf-8")
    for path in source.rglob("*.md"):
        path.write_text(with_site_links(path.read_text(encoding="utf-8"), path.relative_to(source)), encoding="utf-8")
    for path in (source / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        # the site has launch buttons of its own
        notebook.cells = [cell for cell in notebook.cells if colab.BADGES not in cell.metadata.get("tags", [])]
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_site_links(cell.source, path.relative_to(source))
            elif set(cell.metadata.get("tags", [])) & {colab.TAG}:
                cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
        notebook.metadata.language_info["pygments_lexer"] = "ipython3"  # knows % and !
        nbformat.write(notebook, path)
    index = source / "index.md"
    index.write_text(index.read_text(encoding="utf-8") + contents(), encoding="utf-8")


def contents() -> str:
    """The hidden lists of pages from which the theme makes its sidebar."""
    docs = sorted(path.stem for path in DOCS.glob("*.md"))
    lists = {
        "Notebooks": [f"notebooks/{path.stem}" for path in numbered_notebooks()],
        "Guides": [f"docs/{name}" for name in docs],
        "Reference": ["results", "api/index", "CONTRIBUTING", "CHANGELOG"],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{chr(10).join(pages)}\n```\n"
        for title, pages in lists.items()
    )


def with_site_links(text: str, page: Path) -> str:
    """`text` of the page at `page` (relative to the repository) with links that fit the site.

    A link to a page of the site stays, README becomes the first page; one to another file or folder of the repository
    leads to it on the web. Pictures from the web (badges) become their text, so that the site needs no network. Raises
    SystemExit for a link to nothing.
    """

    def moved(match: re.Match) -> str:
        before, target, anchor, after = match.groups()
        if not target or re.match(r"[a-z]+:", target):
            return match.group()
        path = (ROOT / page.parent / target).resolve()
        if not path.exists():
            raise SystemExit(f"{page}: links to {target}, which does not exist")
        inside = path.relative_to(ROOT)
        if inside == Path("README.md"):
            return f"{before}{'../' * len(page.parent.parts)}index.md{anchor or ''}{after}"
        on_site = inside.parts[0] in ("docs", "notebooks") and path.suffix in (".md", ".ipynb", *PICTURES)
        if on_site or str(inside) in PAGES:
            return match.group()
        kind = "tree" if path.is_dir() else "blob"
        return f"{before}{colab.repository()}/{kind}/main/{inside.as_posix()}{anchor or ''}{after}"

    return LINK.sub(moved, WEB_PICTURE.sub(r"\1", text))


def modules() -> list[str]:
    """The dotted names of the library's modules, packages first among their own."""
    names = []
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            names.append(".".join(parts))
    return names


def write_api(folder: Path) -> None:
    """Write a page per module of the library, from its docstrings, and an index by package."""
    folder.mkdir(parents=True)
    lines = [
        "# Library",
        "",
        "Every public name of `mr2ct_lib`, from its docstring. Packages import downwards only.",
        "",
    ]
    for room, title in {**ROOMS, "": "Shared by all"}.items():
        names = [name for name in modules() if (name.split(".")[1] if name.count(".") > 1 else "") == room]
        lines += [f"## {title}", "", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
        for name in names:
            short = name.removeprefix("mr2ct_lib.")
            options = "   :members:\n   :undoc-members:\n   :show-inheritance:\n"
            text = f"{short}\n{'=' * len(short)}\n\n.. automodule:: {name}\n{options}"
            (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def results_page(folder: Path = ROOT / "results") -> str:
    """Return recorded results and the papers' settings as a page: tables of each profile, and where they come from."""
    lines = [
        "# Recorded results",
        "",
        "Means and standard deviations over seeds; every patient has a row in the linked files.",
        "",
    ]
    for path in sorted(folder.glob("*/tables/*.csv")) + sorted(folder.glob("*.csv")):
        inside = path.relative_to(folder)
        title = path.stem if path.parent == folder else f"Profile {inside.parts[0]}: {path.stem}"
        link = f"[{path.name}]({folder.name}/{inside.as_posix()})"
        lines += [f"## {title}", "", f"{link}{_provenance(path, folder)}", "", _html(pd.read_csv(path)), ""]
    for method, settings in METHODS.items():
        rows = [
            {"setting": name, "value": known.value, "mark": known.mark, "meaning": known.meaning}
            for name, known in settings.items()
        ]
        lines += [
            f"## Settings of the paper: {method}",
            "",
            "; ".join(f"{mark}: {meaning}" for mark, meaning in MARKS.items()) + ".",
            "",
        ]
        lines += [_html(pd.DataFrame(rows)), ""]
    return "\n".join(lines)


def _provenance(path: Path, folder: Path) -> str:
    """Links to the rows behind a table and to what they were measured with, where they are recorded."""
    rows = path.parents[1] / path.name
    about = [rows, path.parents[1] / "provenance.json"] if path.parent != folder else [path.with_suffix(".json")]
    known = [file for file in about if file.exists()]
    return "".join(f", [{file.name}]({folder.name}/{file.relative_to(folder).as_posix()})" for file in known)


def _html(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, na_rep="", float_format=lambda value: f"{value:.4g}", classes="table")


def fetch_scripts(cache: Path, vendor: Path) -> Path | None:
    """Unpack MathJax and Mermaid from their npm packages in `cache` and copy what the pages load of them to the static
    folder `vendor`; say so where that fails. Return the folder of MathJax, or None."""
    vendor.mkdir(parents=True, exist_ok=True)
    mathjax = None
    for name, package in SCRIPTS.items():
        try:
            archive = _npm_package(package, cache)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            what = "formulas stay as TeX" if name == "mathjax" else "diagrams stay as text"
            print(
                f"{package} could not be fetched by npm ({str(reason).strip().splitlines()[-1]}); {what}. "
                f"Install Node.js, then repeat"
            )
            continue
        with tarfile.open(archive) as packed:
            packed.extractall(cache / name, filter="data")
        inside = cache / name / "package"
        if name == "mathjax":
            mathjax = inside
            shutil.copytree(inside / "es5" / "output" / "chtml" / "fonts" / "woff-v2", vendor / "mathjax")
        else:  # the modules, of which a page loads those of its diagrams
            maps = shutil.ignore_patterns("*.map")
            parts = Path("chunks", "mermaid.esm.min")
            shutil.copytree(inside / "dist" / parts, vendor / "mermaid" / parts, ignore=maps)
            shutil.copy(inside / "dist" / "mermaid.esm.min.mjs", vendor / "mermaid")
    return mathjax


def _npm_package(package: str, cache: Path) -> Path:
    """The archive of an npm package at an exact version, fetched unless it is there."""
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{package.replace('@', '-')}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True, capture_output=True, text=True)
    return archive


def main() -> int:
    """Build, print the warnings, dead links and pages that weigh too much, and return 1 when there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    warnings = build(out) + dead_links(out)
    sizes = slim.weights(out)
    warnings += slim.too_heavy(sizes)
    heaviest = max(sizes, key=sizes.__getitem__)
    print(*warnings, sep="\n", end="\n" if warnings else "")
    print(
        f"site: {arguments.out}/index.html loads {sizes['index.html'] / 1000:.0f} kB, the heaviest of {len(sizes)} "
        f"pages, {heaviest}, {sizes[heaviest] / 1000:.0f} kB; {len(warnings)} warnings"
    )
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
