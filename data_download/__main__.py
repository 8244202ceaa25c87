"""Real data sets: `python -m data_download list` says what there is, `python -m data_download get NAME` brings it."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_download.archives import MARK, sweep, unpack, unpack_cases
from data_download.layouts import arrange, expected
from data_download.names import as_json
from data_download.registry import DATASETS, DataSet, Remote, dataset
from data_download.transfer import alone, fetch, in_words, require_space
from mr2ct_lib.cores import open_streams, sigterm_exits
from mr2ct_lib.files import InputError, write_json

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command("list")
def list_sets() -> None:
    """Show all data sets: size, how they are checked, licence, and what they stand for.

    Example: python -m data_download list
    """
    row = "{:<26}{:<16}{:<13}{:<22}{}".format
    typer.echo(row("NAME", "SIZE", "CHECKED BY", "LICENCE", "WHAT IT IS (STANDS FOR)"))
    for name, data in DATASETS.items():
        licence = data.licence.split(":")[0]
        size = "" if data.by_hand else _size(data)
        typer.echo(row(name, size, data.checks, licence if len(licence) < 22 else "see below", data.stands_for))
        if len(licence) >= 22 or licence != data.licence:
            typer.echo(f"{'':<26}licence: {data.licence}")
        if data.by_hand:
            typer.echo(f"{'':<26}{data.page}: {_by_hand(name)}")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="The set, as `list` calls it.")],
    to: Annotated[Path, typer.Option(help="The folder for all data sets.")] = Path("data"),
    case: Annotated[list[str] | None, typer.Option(help="Only this case (again for more): its folder's name.")] = None,
) -> None:
    """Download a data set, check it, unpack it, and arrange it as a cohort where its layout is known.

    Run the same command again after an interruption: it goes on from what has arrived.

    Example: python -m data_download get synthrad2023 --case 1PA001 --case 1PA004
    """
    data = dataset(name)
    folder, downloads = to / name, to / "downloads" / name
    if data.by_hand:
        raise InputError(
            f"NAME: {name} comes by hand only; expected a set that can be fetched. {data.page}: {_by_hand(name)}"
        )
    typer.echo(f"{name}: {data.stands_for}\nlicence: {data.licence} ({data.page})")
    typer.echo(f"size: {_size(data)}; checked by: {'CRC-32 of each file' if case and _zipped(data) else data.checks}")
    with alone(folder):
        sweep(folder, downloads)
        if case and _zipped(data):
            for place in unpack_cases(data.remotes[0], folder, case):
                typer.echo(f"here: {place}")
        else:
            _get_files(data, downloads, folder, _chosen(data, case) if case else list(data.remotes))
            typer.echo(f"here: {folder}")
        if data.names:
            write_json(as_json(data.names), folder / "names.json")
        cohorts = arrange(data.layout, folder) if data.layout else []
    _say_next(cohorts, to)
    if not cohorts:
        typer.echo(f"next: {data.after.format(folder=shlex.quote(str(folder)))}")


@app.command("arrange")
def arrange_folder(
    name: Annotated[str, typer.Argument(help="The set, as `list` calls it.")],
    folder: Annotated[Path, typer.Argument(help="Where you unpacked what its publisher sent you.")],
) -> None:
    """Arrange a data set that came by hand as cohorts in FOLDER/cohort, with labels where it has them.

    Example: python -m data_download arrange mm-whs data/mm-whs
    """
    data = dataset(name)
    if not data.layout:
        why = data.by_hand or "it holds label maps, which `mr2ct cohort --labels` reads as they are"
        raise InputError(f"NAME: {name} has no layout that is known here; expected one that has. {data.page}: {why}")
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; expected the unpacked files of {name}. Check the path")
    with alone(folder.resolve()):
        sweep(folder / "cohort")
        cohorts = arrange(data.layout, folder)
    if not cohorts:
        raise InputError(f"{folder}: holds no scans of {name}; expected {expected(data.layout)} in it. Check the path")
    _say_next(cohorts, folder.parent)


def _say_next(cohorts: list[Path], root: Path) -> None:
    for cohort in cohorts:
        prepared = Path("prepared", *cohort.relative_to(root).parts)
        command = f"mr2ct prepare {shlex.quote(str(cohort))} --out {shlex.quote(str(prepared))}"
        empty = [domain for domain in ("source", "target") if not any((cohort / domain).iterdir())]
        if empty:
            what = {"source": "MR", "target": "CT"}[empty[0]]
            command = f"put {what} scans into {shlex.quote(str(cohort / empty[0]))}, which is empty, then: {command}"
        typer.echo(f"next: {command}")


def _by_hand(name: str) -> str:
    data = dataset(name)
    return f"{data.by_hand}" + (f"; then: python -m data_download arrange {name} FOLDER" if data.layout else "")


def _get_files(data: DataSet, downloads: Path, folder: Path, remotes: list[Remote]) -> None:
    missing = [remote for remote in remotes if not (remote.archive and (folder / remote.path / MARK).exists())]
    for remote in remotes:
        if remote not in missing:
            (downloads / remote.filename).unlink(missing_ok=True)  # of a run that ended just after unpacking
    need = sum((remote.size or 0) * (2 if remote.archive else 1) for remote in missing)  # the archive and what is in it
    have = sum(file.stat().st_size for file in downloads.glob("*") if file.is_file())
    require_space(folder, need - have, "the set and its archive" if data.remotes[0].archive else "the set")
    for remote in missing:
        if not remote.archive:
            fetch(remote, (folder / remote.path).parent)
            continue
        archive = fetch(remote, downloads)
        unpack(archive, remote, folder / remote.path)
        archive.unlink()  # what it held is there; unpacked sets are as large again


def _zipped(data: DataSet) -> bool:
    return len(data.remotes) == 1 and data.remotes[0].filename.endswith(".zip")


def _chosen(data: DataSet, cases: list[str]) -> list[Remote]:
    """The files of these cases in a set that is not one archive."""
    if data.remotes[0].archive:
        raise InputError("--case: this set's archive cannot be read in parts; expected a zip. Leave out --case")
    names = {case: [r for r in data.remotes if case in (p.split(".")[0] for p in Path(r.path).parts)] for case in cases}
    for case, remotes in names.items():
        if not remotes:
            known = sorted({Path(remote.path).parts[0].split(".")[0] for remote in data.remotes})
            raise InputError(f"--case: {case!r}; expected one of {', '.join(known)}. Choose one of them")
    return [remote for remotes in names.values() for remote in remotes]


def _size(data: DataSet) -> str:
    return in_words(data.size) if data.size else data.size_hint


def main() -> None:
    """Run the command; what a person can mend becomes one sentence and exit code 2.

    SIGTERM ends it with no half-made folder left behind.
    """
    open_streams()
    try:
        with sigterm_exits():
            app(prog_name="python -m data_download")
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
