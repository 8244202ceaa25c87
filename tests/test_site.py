"""Links lead somewhere, and the website holds every page, folds what is folded and needs no network."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from tools import NOTEBOOKS, ROOT, colab, hygiene, numbered_notebooks
from tools import site as website

PAGES = [ROOT / name for name in website.PAGES] + sorted((ROOT / "docs").glob("*.md")) + numbered_notebooks()


def texts(path: Path) -> str:
    """The Markdown of a page or a notebook, without code blocks."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    text = (
        texts(path)
        if path.suffix == ".ipynb"
        else re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    slugs: dict[str, int] = {}
    made = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        made.add(slug if slug not in slugs else f"{slug}-{slugs[slug]}")
        slugs[slug] = slugs.get(slug, 0) + 1
    return made


def dead_links(path: Path) -> list[str]:
    """The links of a page to files or headings of the project that are not there."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", texts(path)) + re.findall(r'(?:src|href)="([^"]+)"', texts(path)):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or anchor and other.suffix in (".md", ".ipynb") and anchor not in anchors(other):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_local_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    assert dead_links(path) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing: first\n[a](#one-thing-first) [b](#two) [c](none.md) [d](page.md#one-thing-first) [e](https://x.org/none)\n"
    )
    assert dead_links(page) == ["#two", "none.md"]


def test_links_of_the_site_lead_to_its_pages_or_to_the_repository() -> None:
    def changed(text: str, page: str = "docs/engine.md") -> str:
        return website.with_site_links(text, Path(page))

    assert changed("[x](own_data.md#a)") == "[x](own_data.md#a)"
    assert changed("[x](../README.md#install)") == "[x](../index.md#install)"
    assert changed("[x](../LICENSE)") == f"[x]({colab.repository()}/blob/main/LICENSE)"
    assert changed("[x](notebooks/)", "README.md") == f"[x]({colab.repository()}/tree/main/notebooks)"
    assert changed("[x](https://example.org) [y](#here)") == "[x](https://example.org) [y](#here)"
    with pytest.raises(SystemExit, match="does not exist"):
        changed("[x](none.md)")


def test_every_module_of_the_library_has_a_page(tmp_path: Path) -> None:
    website.write_api(tmp_path / "api")
    index = (tmp_path / "api/index.md").read_text()
    assert len(website.modules()) > 30
    for name in website.modules():
        assert f"automodule:: {name}\n" in (tmp_path / f"api/{name}.rst").read_text() and f"\n{name}\n" in index


def test_the_page_of_results_shows_every_table_and_links_its_rows(tmp_path: Path) -> None:
    (tmp_path / "full/tables").mkdir(parents=True)
    (tmp_path / "full/tables/hip.csv").write_text("run,MAE,seeds\na,24.5 ± 0.3,3\nb,,1\n")
    (tmp_path / "full/hip.csv").write_text("run,seed,patient,MAE\na,1,p1,24.2\n")
    (tmp_path / "full/provenance.json").write_text("{}")
    page = website.results_page(tmp_path)
    assert re.findall(r"<td>(.*?)</td>", page)[:6] == ["a", "24.5 ± 0.3", "3", "b", "", "1"]
    name = tmp_path.name
    assert f"[hip.csv]({name}/full/tables/hip.csv), [hip.csv]({name}/full/hip.csv), [provenance.json](" in page


def test_a_site_of_two_pages_is_built_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("sphinx_book_theme", reason="needs the extra `site`")
    pytest.importorskip("myst_nb", reason="needs the extra `site`")

    def write(source: Path) -> None:
        source.mkdir(parents=True)
        shutil.copytree(website.DOCS / "_static", source / "_static")
        body = "# Home\n\n$a^2$\n\n<details>\n<summary>Solution</summary>\n\nIt is **4**.\n\n</details>\n\n"
        (source / "index.md").write_text(body + "```{toctree}\nother\n```\n")
        cells = [
            nbformat.v4.new_markdown_cell("# Other\n[home](index.md)"),
            nbformat.v4.new_code_cell("1 / 0  # never run"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=hygiene.METADATA), source / "other.ipynb")

    def offline(package: str, cache: Path) -> Path:
        raise OSError("npm: not found")

    monkeypatch.setattr(website, "write_sources", write)
    monkeypatch.setattr(website, "_npm_package", offline)
    assert website.build(tmp_path / "site") == []
    assert "formulas stay as TeX" in capsys.readouterr().out
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "<details>" in home and "<strong>4</strong>" in home and "other.html" in home
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', home)
    assert loaded == []  # nothing comes from the network
    assert "fontawesome" not in home and ".fa-magnifying-glass" in (tmp_path / "site/_static/icons.css").read_text()


def test_the_site_is_published_by_a_workflow() -> None:
    workflow = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    assert "make site" in workflow and "actions/deploy-pages" in workflow
    assert NOTEBOOKS.name in website.contents()
