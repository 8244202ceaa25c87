"""The website holds every page, its links fit it, what is folded stays folded, and it needs no network."""

import json
import re
import shutil
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from PIL import Image

from mr2ct_lib.files import InputError
from tools import NOTEBOOKS, ROOT, colab, hygiene, slim
from tools import site as website


def test_links_of_the_site_lead_to_its_pages_or_to_the_repository() -> None:
    def changed(text: str, page: str = "docs/engine.md") -> str:
        return website.with_site_links(text, Path(page))

    assert changed("[x](own_data.md#a)") == "[x](own_data.md#a)"
    assert changed("[x](../README.md#install)") == "[x](../index.md#install)"
    assert changed("[x](../LICENSE)") == f"[x]({colab.repository()}/blob/main/LICENSE)"
    assert changed("[x](notebooks/)", "README.md") == f"[x]({colab.repository()}/tree/main/notebooks)"
    assert changed("[![x](https://a.org/b.svg)](https://c.org)") == "[x](https://c.org)"
    assert changed("![x](overview.jpg)") == "![x](overview.jpg)"
    assert changed("[x](https://example.org) [y](#here)") == "[x](https://example.org) [y](#here)"
    with pytest.raises(SystemExit, match="does not exist"):
        changed("[x](none.md)")


def test_docstrings_are_plain_text_with_names_and_examples() -> None:
    lines = ["|P and T| of *.dcm and discriminator_, `a_ * b`", ">>> 2 * 3", "6 * 1", "", "a_b * c"]
    website.escape_docstring(None, "", "", None, None, lines)
    assert lines[0] == r"\|P and T\| of \*.dcm and discriminator\_, `a_ * b`"
    assert lines[1:] == [">>> 2 * 3", "6 * 1", "", r"a_b \* c"]


def test_every_module_of_the_library_has_a_page(tmp_path: Path) -> None:
    website.write_api(tmp_path / "api")
    index = (tmp_path / "api/index.md").read_text()
    assert len(website.modules()) > 30
    for name in website.modules():
        assert f"automodule:: {name}\n" in (tmp_path / f"api/{name}.rst").read_text() and f"\n{name}\n" in index


def test_the_page_of_results_shows_every_table_and_links_its_rows(tmp_path: Path) -> None:
    (tmp_path / "full/tables").mkdir(parents=True)
    (tmp_path / "full/tables/hip.csv").write_text("run,MAE,seeds\na,24.5 ± 0.3,3\nb,,1\n", encoding="utf-8")
    (tmp_path / "full/hip.csv").write_text("run,seed,patient,MAE\na,1,p1,24.2\n")
    (tmp_path / "full/provenance.json").write_text("{}")
    page = website.results_page(tmp_path)
    assert re.findall(r"<td>(.*?)</td>", page)[:6] == ["a", "24.5 ± 0.3", "3", "b", "", "1"]
    name = tmp_path.name
    assert f"[hip.csv]({name}/full/tables/hip.csv), [hip.csv]({name}/full/hip.csv), [provenance.json](" in page


def png(size: int) -> str:
    """A black picture, in base64."""
    stored = BytesIO()
    Image.new("RGB", (size, size)).save(stored, "PNG")
    return b64encode(stored.getvalue()).decode()


def test_a_site_of_two_pages_is_built_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("sphinx_book_theme", reason="needs the extra `site`")
    pytest.importorskip("myst_nb", reason="needs the extra `site`")
    pytest.importorskip("brotli", reason="needs the extra `site`")
    from fontTools.ttLib import TTFont

    pictures = [
        nbformat.v4.new_output(
            "display_data", {"image/png": png(size)}, metadata={"image/png": {"width": 9, "alt": f'{size} & "dark"'}}
        )
        for size in (1, 2)
    ]

    def write(source: Path) -> None:
        source.mkdir(parents=True)
        shutil.copytree(website.DOCS / "_static", source / "_static")
        body = "# Home\n\n$a^2$\n\n<details>\n<summary>Solution</summary>\n\nIt is **4**.\n\n</details>\n\n"
        (source / "index.md").write_text(body + "```{toctree}\nother\n```\n")
        cells = [
            nbformat.v4.new_markdown_cell("# Other\n[home](index.md)"),
            nbformat.v4.new_code_cell("1 / 0  # never run", outputs=pictures),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=hygiene.METADATA), source / "other.ipynb")

    def offline(package: str, cache: Path) -> Path:
        raise OSError("npm: not found")

    monkeypatch.setattr(website, "write_sources", write)
    monkeypatch.setattr(website, "_npm_package", offline)
    assert website.build(tmp_path / "site") == []
    assert "formulas stay as TeX" in capsys.readouterr().out
    assert website.dead_links(tmp_path / "site") == []
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert r"\(a^2\)" in home and "MathJax" not in home
    assert "<details>" in home and "<strong>4</strong>" in home and "other.html" in home
    images = re.findall(r"<img[^>]*_images[^>]*>", (tmp_path / "site/other.html").read_text(encoding="utf-8"))
    assert [re.search('alt="([^"]*)"', image).group(1) for image in images] == [
        "1 &amp; &quot;dark&quot;",
        "2 &amp; &quot;dark&quot;",
    ]
    # a phone may shrink them
    assert all('width="9"' in image and "height" not in image for image in images)
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', home)
    assert loaded == []  # nothing comes from the network
    styles = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site/_static/styles").glob("*.css"))
    assert "fontawesome.js" not in home and ".fa-magnifying-glass" in styles and ".fa-dragon" not in styles
    icons = next((tmp_path / "site").rglob("fa-solid-900.woff2"))
    assert {0xF002} <= set(TTFont(icons).getBestCmap()) and icons.stat().st_size < 10_000  # a magnifying glass
    assert "searchindex.js" not in home and "searchindex.js" in (tmp_path / "site/search.html").read_text()


def test_a_folder_that_is_no_site_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="no site of ours"):
        website.build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_weight_of_a_page_counts_what_it_loads(tmp_path: Path) -> None:
    files = {"a.css": '@import "b.css";', "b.css": "x {src: url(c.woff)} y {z: url('data:d')}", "c.woff": "12345"}
    page = '<link href="a.css?v=1" rel="stylesheet" /><script src="no.js"></script><a href="big.png"></a>'
    for name, text in {**files, "big.png": "x" * 99, "index.html": page}.items():
        (tmp_path / name).write_text(text)
    assert slim.weights(tmp_path) == {"index.html": len(page) + sum(map(len, files.values()))}


def test_formulas_are_drawn_once_and_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def node(command: list[str], input: str, **_) -> SimpleNamespace:
        drawn = [f"<b>{'block' if display else 'inline'} {tex}</b>" for display, tex in json.loads(input)]
        return SimpleNamespace(stdout=json.dumps([drawn, "sheet"]))

    monkeypatch.setattr(slim.subprocess, "run", node)
    text = '<span class="math x">\\(a &lt; b\\)</span> <div class="math x">\n\\[c\\]</div> \\(d\\)'
    pages, sheet = slim.draw_formulas({tmp_path: text, tmp_path / "2": text}, tmp_path)
    drawn = '<span class="math x"><b>inline a < b</b></span> <div class="math x"><b>block c</b></div> \\(d\\)'
    assert list(pages.values()) == [drawn, drawn] and sheet == "sheet"
    assert slim.draw_formulas({tmp_path: text}, None) == ({tmp_path: text}, "")


def test_dead_links_of_the_built_site_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "index.html").write_text('<h1 id="top"></h1><a href="docs/a.html#b%20c">x</a><img src="no.png">')
    links = [*("../index.html#top", "../index.html#none", "https://example.org", "#b%20c", "?a=1"), "none.html"]
    text = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "docs/a.html").write_text(f'<p id="b c">{text}</p>')
    found = sorted(website.dead_links(tmp_path))
    assert [line.split()[1] for line in found] == ["../index.html#none", "none.html", "no.png"]


def test_the_site_is_published_by_a_workflow() -> None:
    workflow = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    assert "make site" in workflow and "actions/deploy-pages" in workflow
    assert NOTEBOOKS.name in website.contents()
