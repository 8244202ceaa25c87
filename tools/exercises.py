"""Write the exercises into the notebooks: python -m tools.exercises [notebooks...]. Nothing else may write their cells.

`notebooks/exercises/NN.py` holds the exercises of notebook NN as cells. A text cell (`# %% [markdown] 1`) sets the
task. The code cell below it holds the stub, the solution and one plausible wrong answer at once. A last text cell
(`# %% [markdown] solution`) explains. A line of code that ends in `#| stub`, `#| solution` or `#| wrong` belongs to
that version (`#| solution wrong` to both); a line without a tag belongs to all three. So they cannot drift apart.
What precedes the first cell is for the tests: the names that a reader's notebook has by then.

In the notebook, exercise 1 is two cells: `exercise-1-text`, the task with the folded solution, and `exercise-1`, the
stub. They are placed by hand once, empty; this tool fills them.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from mr2ct_lib.files import atomic
from tools import NOTEBOOKS, numbered_notebooks

SOURCES = NOTEBOOKS / "exercises"
VERSIONS = ("stub", "solution", "wrong")
TAG = re.compile(r"  #\| ([a-z ]+)$")


@dataclass(frozen=True)
class Exercise:
    """An exercise: number ("01.1"), task and explanation in Markdown, code with tags, and the prelude of the tests."""

    number: str
    task: str
    code: str
    explanation: str
    prelude: str

    def version(self, name: str) -> str:
        """Return the code of a version: "stub", "solution" or "wrong"."""
        lines = []
        for line in self.code.splitlines():
            tag = TAG.search(line)
            if not tag or name in tag.group(1).split():
                lines.append(TAG.sub("", line))
        return "\n".join(lines)

    def text(self) -> str:
        """Return the task with the folded solution, as the notebook shows it."""
        lines = self.version("solution").splitlines()
        code = "\n".join(line for line in lines if not re.match(r"(from \S+ import )?check\b", line)).strip()
        fold = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n{self.explanation}\n\n</details>"
        return f"{self.task}\n\n{fold}"


def _markdown(lines: list[str]) -> str:
    """Return commented lines without their comment signs."""
    return "\n".join(line[2:] if line.startswith("# ") else line.removeprefix("#") for line in lines).strip()


def read(path: Path) -> list[Exercise]:
    """Return the exercises of a source. Raises ValueError for a cell or a tag that does not belong there."""
    prelude, *parts = re.split(r"^# %%(.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    heads, bodies = [head.strip() for head in parts[::2]], parts[1::2]
    exercises = []
    for i in range(0, len(heads), 3):
        number = i // 3 + 1
        if heads[i : i + 3] != [f"[markdown] {number}", "", "[markdown] solution"]:
            raise ValueError(
                f"{path.name}: cells {heads[i : i + 3]}; expected '[markdown] {number}', '', '[markdown] solution'"
            )
        code = bodies[i + 1].rstrip()
        for tag in re.findall(r"#\|(.*)$", code, flags=re.MULTILINE):
            if not set(tag.split()) <= set(VERSIONS) or not tag.split():
                raise ValueError(f"{path.name}: exercise {number} has the tag {tag!r}; expected {', '.join(VERSIONS)}")
        task, explanation = (_markdown(bodies[j].splitlines()) for j in (i, i + 2))
        exercises.append(Exercise(f"{path.stem}.{number}", task, code, explanation, prelude))
    return exercises


def exercises_of(notebook: Path) -> list[Exercise]:
    """Return the exercises that belong to a notebook; none when it has no source."""
    source = SOURCES / f"{notebook.name[:2]}.py"
    return read(source) if source.exists() else []


def sources(exercise: Exercise) -> dict[str, str]:
    """Return the text of both cells of an exercise by the cells' ids."""
    name = f"exercise-{exercise.number[-1]}"
    return {f"{name}-text": exercise.text(), name: exercise.version("stub")}


def write(notebook: Path) -> list[str]:
    """Fill a notebook's exercise cells; return the ids of those that changed. ValueError when a cell is missing.

    Outputs and all other cells stay as they are; after a change, refresh the notebook.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = {cell.get("id"): cell for cell in content["cells"]}
    changed = []
    for exercise in exercises_of(notebook):
        for name, text in sources(exercise).items():
            if name not in cells:
                raise ValueError(
                    f"{notebook.name}: has no cell with the id {name!r}; add an empty one where it belongs"
                )
            if "".join(cells[name]["source"]) != text:
                cells[name]["source"] = text.splitlines(keepends=True)
                changed.append(name)
    if changed:
        with atomic(notebook) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return changed


def main(names: list[str]) -> int:
    """Fill the exercise cells of the named notebooks (all without names); return 1 when a cell is missing."""
    status = 0
    for notebook in numbered_notebooks(names=names):
        try:
            changed = write(notebook)
        except ValueError as error:
            print(error)
            status = 1
            continue
        print(f"{notebook.name}: {', '.join(changed) or 'up to date'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
