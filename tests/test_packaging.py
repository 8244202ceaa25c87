"""Versions, files and imports agree with one another."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mr2ct_lib
from tools import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIBRARY = ROOT / "mr2ct_lib"
MODULES = sorted(LIBRARY.rglob("*.py"))

# What each package, or module outside of packages, may import of the library besides itself.
MAY_IMPORT = {
    "files": set(),
    "cores": {"files"},
    "images": {"files", "cores"},
    "patients": {"files", "cores", "images"},
    "methods": {"files", "cores", "images"},
    "measures": {"files", "cores", "images"},
    "course": {"files", "cores", "images", "patients", "methods", "measures"},
    "cli": {"files", "cores", "images", "patients", "methods", "measures", "course"},
}
BANNED = {
    "torchvision",
    "torchio",
    "kornia",
    "hydra",
    "itk",
    "pickle",
    "dill",
}  # break installations, or load code with data
MONAI = {"slices", "segmentation", "label_metrics"}  # import it inside functions: it takes seconds
LONGEST_MODULE, LONGEST_FUNCTION = 350, 60  # lines; more is two ideas
WITHOUT_TORCH = {"files", "cores", "patients"}


def constraints() -> dict[str, str]:
    """Return the exact version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for, with all extras."""
    project = PYPROJECT["project"]
    return [Requirement(line) for line in sum(project["optional-dependencies"].values(), project["dependencies"])]


def tracked_texts() -> list[Path]:
    """Return the text files of the project: those that git tracks, or all of a source archive."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path
            for path in ROOT.rglob("*")
            if not {".venv", "runs", "cohorts", "prepared", "data", "site"} & set(path.parts)
        ]
    texts = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".cff", ".json", ".ipynb", ""}
    return [path for path in paths if path.is_file() and path.suffix in texts and path.stat().st_size < 3e6]


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(filter(None, ["mr2ct_lib" if node.level else "", node.module]))
            found |= {parent, *(f"{parent}.{alias.name}" for alias in node.names)}
    return found


def room(path: Path) -> str:
    """Return the package of the library that a module lies in, or its own name outside of packages."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def own_imports(path: Path) -> set[str]:
    """Return the packages and outside modules of the library that a module imports."""
    return {
        parts[1] for name in imports_of(path) if (parts := name.split("."))[0] == "mr2ct_lib" and len(parts) > 1
    } & set(MAY_IMPORT)


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "mr2ct_lib.__version__"
    assert mr2ct_lib.__version__ == str(citation["version"]) == newest.group(1)


def test_citation_names_both_papers_and_the_repository() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    numbers = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    assert numbers == {"arXiv:1803.06629", "arXiv:1808.03944"}
    assert citation["repository-code"] == PYPROJECT["project"]["urls"]["Repository"]
    assert citation["license"] == PYPROJECT["project"]["license"] == "Apache-2.0"


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = constraints()
    for requirement in requirements():
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{requirement} does not allow {version}"
    assert all(not Version(version).local for version in pins.values())  # a "+cpu" would shut out other builds


def test_environment_gives_conda_users_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    pins = [Requirement(line) for line in pip if not line.startswith("-")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert versions == {name: constraints()[name] for name in (canonicalize_name(item.name) for item in requirements())}
    assert "-c constraints.txt" in pip and "-e .[notebooks,test]" in pip
    (python,) = (item for item in environment["dependencies"] if str(item).startswith("python="))
    assert PYPROJECT["project"]["requires-python"] == ">=3.11" and python == "python=3.11"


def test_address_of_the_repository_is_the_same_everywhere() -> None:
    address = PYPROJECT["project"]["urls"]["Repository"]
    pattern = re.compile(r"https://github\.com/[\w-]+/mr2ct\b")
    for path in tracked_texts():
        assert set(pattern.findall(path.read_text(encoding="utf-8"))) <= {address}, path


def test_ci_runs_the_tutorial_and_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert "for target in tutorial test" in script and "set -euo pipefail" in script
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert job["strategy"]["matrix"]["python"][0] == "3.11"


def test_make_lists_every_target() -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("tutorial", "test", "lab", "refresh", "bench", "site", "check"):
        assert re.search(rf"^  {target}\b", said, flags=re.MULTILINE)


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for python, found in ((old, "Python 3.9.1"), (tmp_path / "none", "")):
        result = subprocess.run(
            ["make", "test", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0 and found in result.stderr and "needs Python 3.11 or newer" in result.stderr
        assert not (tmp_path / ".venv").exists()


def name_of(path: Path) -> str:
    """Return the test id of a module."""
    return str(path.relative_to(LIBRARY).with_suffix(""))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != LIBRARY or path.stem != "__init__"], ids=name_of
)
def test_packages_import_downwards_only(path: Path) -> None:
    assert room(path) in MAY_IMPORT, f"say in MAY_IMPORT of this file where {path.name} stands"
    assert own_imports(path) <= MAY_IMPORT[room(path)] | {room(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short_and_need_no_more_than_they_may(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports_of(path)}
    assert not packages & BANNED
    assert "monai" not in packages or path.stem in MONAI
    assert "torch" not in packages or room(path) not in WITHOUT_TORCH
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documentation = len((ast.get_docstring(node) or "").splitlines())
            length = node.end_lineno - node.lineno + 1 - documentation
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines without its docstring"
    assert text.count("torch.load(") == text.count("weights_only=True")  # loading never runs code


def test_package_is_importable_without_its_heavy_parts() -> None:
    assert own_imports(ROOT / "mr2ct_lib" / "__init__.py") == set()


MACHINE = re.compile(r"(?<![\w.:/>-])/(?:home|root|Users|work|mnt|media|scratch)/\w")
SECRET = re.compile(
    r"gh[pousr]_\w{30}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|https?://[^/\s:\"']+:[^/\s@\"'{]+@"
)


def test_no_file_holds_paths_of_a_machine_or_secrets() -> None:
    own = {"test_notebooks.py", "test_packaging.py"}  # hold such paths to show that they are found
    for path in tracked_texts():
        text = path.read_text(encoding="utf-8")
        assert path.name in own or not MACHINE.search(text), f"{path}: {MACHINE.search(text)}"
        assert not SECRET.search(text), f"{path}: {SECRET.search(text)}"


@pytest.mark.parametrize("text", ["open('/home/anna/x')", " /root/x"])
def test_paths_of_a_machine_are_found(text: str) -> None:
    assert MACHINE.search(text)


@pytest.mark.parametrize(
    "text", ["https://anna" + ":word@host.org/x", "ghp_" + "a" * 36, "-----BEGIN RSA PRIVATE" + " KEY-----"]
)
def test_secrets_are_found(text: str) -> None:
    assert SECRET.search(text)
