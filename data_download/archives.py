"""Archives unpacked safely: nothing lands outside the folder, no links, and the folder appears when all of it is there."""

import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import IO

from remotezip import RemoteZip, RemoteZipError
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError

from data_download.registry import Remote
from data_download.transfer import open_session, require_space
from mr2ct_lib.files import InputError, atomic, write_json

MARK = "download.json"  # written last: a folder that holds it is complete
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)


def unpack(archive: Path, remote: Remote, folder: Path) -> None:
    """Unpack `archive` to `folder`, which appears, or takes the place of the one there, only when all went well.

    Raises InputError for a damaged archive, a full disk, or a member that is a link or would land outside `folder`.
    """
    try:
        with atomic(folder) as temporary:
            temporary.mkdir()
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    members = opened.infolist()
                    require_space(temporary, sum(member.file_size for member in members), f"unpacking {archive.name}")
                    for member in tqdm(members, desc=f"unpacking {archive.name}"):
                        _write_zip_member(opened, member, temporary / _safe(member.filename, archive.name))
            else:
                _unpack_tar(archive, temporary)
            note = {"url": remote.url, "checksum": remote.checksum, "size": archive.stat().st_size}
            write_json(note, temporary / MARK)
    except (*UNREADABLE, OSError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({error}); delete it and run the command again") from error


def unpack_cases(remote: Remote, folder: Path, cases: list[str]) -> list[Path]:
    """Bring single cases out of a zip that stays on its server; return their places in `folder`.

    A case is a folder (or a file, by its name up to the first dot) anywhere in the zip; each appears whole or not at all,
    and those that are there are not fetched again. Every member is checked by the zip's own CRC-32.

    Raises InputError for unknown cases, or when the server does not send parts of files.
    """
    places: list[Path] = []
    try:
        with open_session(remote.url) as session, _open_remote_zip(remote.url, session) as opened:
            groups = {case: _group(opened, case) for case in cases}
            for case, group in groups.items():
                if not group:
                    raise InputError(f"--case {case}: not in {remote.filename}; expected {_examples(opened)}")
            for prefix, members in [item for group in groups.values() for item in group.items()]:
                place = folder / _safe(prefix, remote.filename)
                places.append(place)
                if place.exists():
                    continue
                require_space(place, sum(member.file_size for member in members), prefix)
                with atomic(place) as temporary:
                    for member in tqdm(members, desc=prefix):
                        _safe(member.filename, remote.filename)
                        _write_zip_member(opened, member, temporary / member.filename[len(prefix) :].lstrip("/"))
    except (RemoteZipError, HTTPError, *UNREADABLE, OSError) as error:
        raise InputError(
            f"{remote.url}: single cases cannot be read ({error}); try again later, or leave out --case to fetch it all"
        ) from error
    return places


def _open_remote_zip(url: str, session: object) -> RemoteZip:
    try:
        return RemoteZip(url, session=session)
    except (RemoteZipError, zipfile.BadZipFile):  # some servers don't know "the last n bytes": ask for the size first
        return RemoteZip(url, session=session, support_suffix_range=False)


def _group(opened: zipfile.ZipFile, case: str) -> dict[str, list[zipfile.ZipInfo]]:
    """Members of one case by the path down to it: {"Task1/pelvis/1PA001": [...]}."""
    groups: dict[str, list[zipfile.ZipInfo]] = {}
    for member in opened.infolist():
        parts = PurePosixPath(member.filename).parts
        depth = next((at for at, part in enumerate(parts, 1) if case in (part, part.split(".")[0])), None)
        if depth and not member.is_dir():
            groups.setdefault("/".join(parts[:depth]), []).append(member)
    return groups


def _examples(opened: zipfile.ZipFile) -> str:
    parents = sorted({PurePosixPath(name).parent.name for name in opened.namelist() if not name.endswith("/")} - {""})
    return f"a folder or file of it such as {', '.join(parents[:: max(1, len(parents) // 5)][:6])}"


def _safe(name: str, archive: str) -> PurePosixPath:
    """Return the member's relative path; raises InputError when it would leave the folder.

    >>> str(_safe("./a/b.nii", "x.zip"))
    'a/b.nii'
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
        raise InputError(f"{archive}: its member {name!r} would land outside the folder; expected a plain relative path. Do not trust it")
    return path


def _write_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> None:
    if S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{opened.filename}: its member {member.filename!r} is a link; expected files. Do not trust it")
    if member.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return
    with opened.open(member) as stream:
        _write(stream, place)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in tqdm(opened, desc=f"unpacking {archive.name}", unit=" files"):
            place = folder / _safe(member.name, archive.name)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif stream := opened.extractfile(member) if member.isfile() else None:
                _write(stream, place)
            else:
                raise InputError(f"{archive.name}: its member {member.name!r} is no plain file. Do not trust it")


def _write(stream: IO[bytes], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
