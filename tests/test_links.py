"""Links inside the project lead somewhere: files and headings that README, docs and notebooks point to."""

import json
import re
from pathlib import Path

import pytest

from tools import NOTEBOOKS, ROOT, numbered_notebooks

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *NOTEBOOKS.glob("*.ipynb")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """Return the Markdown of a page, or of a notebook's text cells, without blocks and snippets of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`\(", "(", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ +(.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Return the links of a page, except web addresses, that lead to no file or heading."""
    dead = []
    for link in LINK.findall(text_of(page)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        target = page.parent / name if name else page
        if not target.exists() or (anchor and target.suffix in {".md", ".ipynb"} and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.search(r"@[A-Z]+@|\bTODO\b|\bXXX\b", text_of(page))


def test_dead_link_and_dead_anchor_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Two words, here\n", encoding="utf-8")
    page = tmp_path / "page.md"
    links = "[a](other.md) [b](other.md#two-words-here) [c](https://example.org/x) [d](none.md) [e](other.md#three)"
    page.write_text(f"{links}\n```\n[f](code.md)\n```\n", encoding="utf-8")
    assert dead_links(page) == ["none.md", "other.md#three"]


def test_ten_questions_of_each_notebook_link_the_sections_that_answer_them() -> None:
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    for notebook in numbered_notebooks():
        section = re.search(rf"^## {notebook.stem[:2]} .*?(?=^## |\Z)", text, re.M | re.S).group()
        questions = re.findall(r"^\d+\. .*$", section, re.M)
        assert len(questions) == 10 and all(f"{notebook.name}#" in line for line in questions), notebook
