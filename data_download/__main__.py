"""Real data sets: `python -m data_download list` says what there is, `python -m data_download get NAME` brings it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from data_download.archives import MARK, unpack, unpack_cases
from data_download.layouts import arrange
from data_download.registry import DATASETS, DataSet, Remote, dataset
from data_download.transfer import fetch, require_space
from mr2ct_lib.files import InputError

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
            typer.echo(f"{'':<26}{data.page}: {data.by_hand}")


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
    folder = to / name
    if data.by_hand:
        raise InputError(f"NAME: {name} comes by hand only; expected a set that can be fetched. {data.page}: {data.by_hand}")
    typer.echo(f"{name}: {data.stands_for}\nlicence: {data.licence} ({data.page})")
    typer.echo(f"size: {_size(data)}; checked by: {'CRC-32 of each file' if case and _zipped(data) else data.checks}")
    if case and _zipped(data):
        for place in unpack_cases(data.remotes[0], folder, case):
            typer.echo(f"here: {place}")
    else:
        _get_files(data, to / "downloads" / name, folder, _chosen(data, case) if case else list(data.remotes))
        typer.echo(f"here: {folder}")
    cohorts = arrange(data.layout, folder) if data.layout else []
    for cohort in cohorts:
        prepared = Path("prepared", *cohort.relative_to(to).parts)
        typer.echo(f"next: mr2ct prepare {cohort} --out {prepared}")
    if not cohorts:
        typer.echo(f"next: {data.after.format(folder=folder)}")


def _get_files(data: DataSet, downloads: Path, folder: Path, remotes: list[Remote]) -> None:
    missing = [remote for remote in remotes if not (remote.archive and (folder / remote.path / MARK).exists())]
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
    if not data.size:
        return data.size_hint
    return f"{data.size / 1e9:.1f} GB" if data.size > 1e9 else f"{data.size / 1e6:.0f} MB"


def main() -> None:
    """Run the command; what a person can mend becomes one sentence and exit code 2."""
    try:
        app(prog_name="python -m data_download")
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
