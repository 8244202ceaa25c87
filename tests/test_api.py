"""Every public name of the library has a docstring, and docs/api.md lists them all."""

from pathlib import Path

import pytest

from tools import ROOT, api


@pytest.mark.parametrize("path", list(api.modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    lacking = [name for name, sentence in api.public_names(path) if not sentence]
    assert not lacking


def test_the_page_lists_the_library_of_today() -> None:
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run python -m tools.api"


def test_methods_are_listed_and_private_names_are_not(tmp_path: Path) -> None:
    module = tmp_path / "one.py"
    text = [
        "class A:",
        '    """An A.',
        "",
        '    More."""',
        "    def b(self):",
        '        """Does',
        '        b."""',
        "    def _c(self): ...",
    ]
    module.write_text("\n".join(text))
    assert api.public_names(module) == [("A", "An A."), ("A.b", "Does b.")]
