"""Checks of `--out` before any work is done, and paths as a shell wants them."""

import os
import shlex
from pathlib import Path

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import NIFTI


def quoted(path: str | Path) -> str:
    """A path as one word of a shell command.

    >>> quoted("my scans/a.nii.gz")
    "'my scans/a.nii.gz'"
    """
    return shlex.quote(str(path))


def is_nifti_name(path: Path) -> bool:
    """Say whether a file of this name is a NIfTI image."""
    return path.name.lower().endswith(NIFTI)


def with_ending(path: Path, ending: str) -> Path:
    """`path` without .nii or .nii.gz, and with `ending` instead.

    >>> with_ending(Path("a/ct.nii.gz"), "_names.json").name
    'ct_names.json'
    """
    name = path.name
    for known in (".gz", ".nii"):
        name = name[: -len(known)] if name.lower().endswith(known) else name
    return path.with_name(name + ending)


def check_file(out: Path, inputs: list[Path], overwrite: bool = False, also: str = "") -> None:
    """Raise InputError unless `out` can be written as a NIfTI file without losing anything.

    It must have a NIfTI name in a folder that may be written to, be neither a link nor one of the `inputs` (files or
    folders), and exist only where `overwrite` is set. `also` tells in the message what else would be accepted.
    """
    if not is_nifti_name(out):
        raise InputError(
            f"{out}: the name ends with {out.suffix or 'nothing'!r}; expected .nii or .nii.gz{also}. Rename the output"
        )
    if out.is_dir():
        raise InputError(f"{out}: is a folder; expected the name of a NIfTI file. Choose another name")
    check_place(out, inputs)
    if out.exists() and not overwrite:
        raise InputError(
            f"{out}: exists already; expected a new name. Choose another one, or add --overwrite to replace it"
        )


def check_folder(out: Path, inputs: list[Path], marker: str, overwrite: bool = False) -> None:
    """Raise InputError unless `out` is a folder that may be created or, with `overwrite`, replaced.

    A folder that holds something is replaced only when it holds `marker` (a file name or a pattern such as *.dcm),
    which an earlier result of the same command has.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; expected the name of a folder. Choose another name")
    check_place(out, inputs)
    if not out.exists() or not any(out.iterdir()):
        return
    if not any(out.glob(marker)):
        raise InputError(
            f"{out}: holds other things; expected a new folder, or an earlier result of this command. Choose "
            "another name"
        )
    if not overwrite:
        raise InputError(
            f"{out}: holds an earlier result; expected a new folder. Choose another name, or add --overwrite to "
            "replace it"
        )


def check_series(out: Path, inputs: list[Path], overwrite: bool = False) -> None:
    """As `check_folder`, for the folder of a DICOM series, which may hold nothing but an earlier synthetic CT."""
    from mr2ct_lib.images.dicom import check_series_folder

    check_folder(out, inputs, "*.dcm", overwrite)
    check_series_folder(out)


def check_place(out: Path, inputs: list[Path]) -> None:
    """Raise InputError for a link, for an input, a folder around or inside it, and for a folder that takes no files."""
    if out.is_symlink():
        raise InputError(
            f"{out}: is a link to {os.readlink(out)}; expected no link. Give another name, or the place that it "
            "leads to"
        )
    folder = next(parent for parent in out.absolute().parents if parent.exists() or parent.is_symlink())
    if not folder.is_dir() or not os.access(folder, os.W_OK):  # a link to nothing or to itself is no folder
        raise InputError(f"{out}: {folder} takes no files; expected a folder that you may write to. Choose another one")
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"{out}: is the input {path} or holds it; expected another place. Choose another name for the output"
            )
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"{out}: lies inside the input {path}, which could not be read again; expected another place. Choose "
                "another folder for the output"
            )
