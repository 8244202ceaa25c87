"""Run the notebooks in a profile by papermill: python -m tools.tutorial [--profile quick] [notebooks...].

Two notebooks run at a time where there are two cores; what both need, one makes and the other waits for. Leaves
runs/<profile>/executed/ (notebooks and their HTML) and runs/<profile>/report.html (every table and figure).
"""

import argparse
import sys
import time
from pathlib import Path

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from mr2ct_lib import cores
from tools import NOTEBOOKS, ROOT, kernels, numbered_notebooks, quiet_kernels
from tools.report import write_html, write_report

AT_ONCE = 2  # notebooks; a training takes one core, so that one notebook alone leaves cores idle


def run_notebook(parameters: dict, path: Path, out: Path, title: str) -> tuple[float, str | None]:
    """Run the notebook at `path` in its own folder, write it to `out` and its HTML beside it.

    Return the minutes that it took and, when a cell fails, a sentence.
    """
    print(f"{title} ...", flush=True)
    begin, problem = time.perf_counter(), None
    options = {**kernels.OPTIONS, "language": "python", "cwd": path.parent}
    names = (
        shown(path),
        shown(out),
    )  # papermill notes them in the notebook: no folder of this machine in what is handed on
    out.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(*names, parameters=parameters, progress_bar=False, **options)
    except PapermillExecutionError as error:
        begins = (error.source.strip().splitlines() or [""])[0]
        problem = f"cell [{error.exec_count}], which begins {begins!r}, raised {error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that died, a file that is no notebook: the other notebooks still run
        problem = f"{type(error).__name__}: {error}"
    if out.exists():
        write_html(out, out.with_suffix(".html"))
    return (time.perf_counter() - begin) / 60, problem


def run_tutorial(paths: list[Path], parameters: dict, out: Path) -> int:
    """Run the notebooks at `paths` into `out`; a failing one does not stop the others. Return how many failed."""
    executed = out / "executed"
    executed.mkdir(parents=True, exist_ok=True)
    titles = [f"[{number}/{len(paths)}] {path.stem}" for number, path in enumerate(paths, start=1)]
    jobs = [(path, executed / path.name, title) for path, title in zip(paths, titles, strict=True)]
    failures = []
    start = time.perf_counter()
    for outcome in cores.run_jobs(run_notebook, jobs, min(AT_ONCE, cores.available()), common=(parameters,)):
        if outcome.error:
            raise outcome.error
        (minutes, problem), path = outcome.value, paths[outcome.number]
        print(f"{titles[outcome.number]} {'FAILED' if problem else 'done'} after {minutes:.1f} min", flush=True)
        if problem:
            failures.append(path.stem)
            print(f"    {problem}\n    the notebook up to there: {shown(executed / path.name)}", flush=True)
    write_report(
        executed, out / "report.html", f"mr2ct tutorial, profile {parameters.get('profile', out.name)}", failures
    )
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(paths)} notebooks in {minutes:.1f} min: {shown(out / 'report.html')}", flush=True)
    if failures:
        print(f"failed: {', '.join(failures)}; the results of the others are kept", flush=True)
    return len(failures)


def shown(path: Path) -> str:
    """Return `path` relative to where the user stands, when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> int:
    """Read the command line, run, and return the exit code: 0, or 1 when a notebook failed."""
    profiles = sorted(path.stem for path in (NOTEBOOKS / "params").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="names or numbers, such as 03 (default: all)")
    parser.add_argument("--profile", choices=profiles, default="quick")
    arguments = parser.parse_args()
    quiet_kernels()
    paths = numbered_notebooks(names=arguments.notebooks)
    parameters = yaml.safe_load((NOTEBOOKS / "params" / f"{arguments.profile}.yaml").read_text(encoding="utf-8"))
    return 1 if run_tutorial(paths, parameters, ROOT / "runs" / arguments.profile) else 0


if __name__ == "__main__":
    sys.exit(main())
