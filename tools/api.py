"""docs/api.md, every public name of the library with the first sentence of its docstring: python -m tools.api.

The website shows the whole docstrings: shapes, units, ranges and errors.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from mr2ct_lib.files import atomic
from tools import ROOT

PAGE = ROOT / "docs" / "api.md"
PACKAGES = ("images", "patients", "methods", "measures", "course")
HEAD = """# The library's public names

Written by `python -m tools.api` from the docstrings, where each function states its shapes, units, ranges and errors:
see `help(name)` in Python, or the website of `make site`. [architecture.md](architecture.md) says what lives where.
"""


def modules() -> Iterator[Path]:
    """Yield the library's modules: those outside of packages, then package by package."""
    library = ROOT / "mr2ct_lib"
    yield from (library / "files.py", library / "cores.py")
    for package in PACKAGES:
        yield from sorted(path for path in (library / package).glob("*.py") if path.stem != "__init__")


def public_names(path: Path) -> list[tuple[str, str]]:
    """Return (name, first paragraph of the docstring) of the public functions, classes and methods of a module."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append((node.name, _first_paragraph(node)))
            members = node.body if isinstance(node, ast.ClassDef) else []
            for member in members:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    names.append((f"{node.name}.{member.name}", _first_paragraph(member)))
    return names


def _first_paragraph(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def page() -> str:
    """Return the text of docs/api.md."""
    lines = [HEAD]
    for path in modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        lines.append(f"## `{module}`\n")
        lines.append(f"{_first_paragraph(ast.parse(path.read_text(encoding='utf-8')))}\n")
        lines += [f"- `{name}`: {sentence}" for name, sentence in public_names(path)]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write the page."""
    with atomic(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
