"""Archives unpacked safely: nothing lands outside the folder, no links, and a folder appears only when it is whole."""

import io
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import IO

import requests
from remotezip import PartialBuffer, RemoteFetcher, RemoteIOError, RemoteZip, RemoteZipError
from tqdm.auto import tqdm
from urllib3 import HTTPResponse

from data_download.registry import Remote
from data_download.transfer import BROKEN, Broken, ask, in_words, open_session, patiently, require_space
from mr2ct_lib.files import InputError, atomic, remove_left, write_json

MARK = "download.json"  # written last: a folder that holds it is complete
ROOM = re.compile(r"\..+\.[a-z0-9_]{8}")  # the hidden folders of `atomic`


def unpack(archive: Path, remote: Remote, folder: Path) -> None:
    """Unpack `archive` to `folder`, which appears, or takes the place of the one there, only when all went well.

    Raises InputError for a damaged archive, a full disk, or a member that is a link, clashes with another or would land
    outside `folder`.
    """
    try:
        with atomic(folder) as temporary:
            temporary.mkdir()
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    members = opened.infolist()
                    require_space(temporary, sum(member.file_size for member in members), f"unpacking {archive.name}")
                    for member in tqdm(members, desc=f"unpacking {archive.name}"):
                        place = temporary / _safe(member.filename, archive.name)
                        _write_zip_member(opened, member, place, archive.name)
            else:
                _unpack_tar(archive, temporary)
            note = {"url": remote.url, "checksum": remote.checksum, "size": archive.stat().st_size}
            write_json(note, temporary / MARK)
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and tarfile raise errors of many kinds
        why = str(error).partition("\n")[0].removesuffix(":") or type(error).__name__
        advice = "delete it and run the command again"
        if remote.size is None and remote.checksum is None:  # nothing vouched for it: it may be a piece
            size = in_words(archive.stat().st_size)
            archive.unlink()
            advice = f"{size} came from {remote.url}, which is no whole archive; it was removed. Run the command again"
        raise InputError(f"{archive}: cannot be unpacked ({why}); {advice}") from error


def unpack_cases(remote: Remote, folder: Path, cases: list[str]) -> list[Path]:
    """Bring single cases out of a zip that stays on its server; return their places in `folder`.

    A case is a folder (or a file, by its name up to the first dot) anywhere in the zip; each appears whole or not at
    all, and those that are there are not fetched again. After a cut, reading goes on where the connection broke. Every
    member is checked by the zip's own CRC-32.

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
                missing = [one for one in members if not _is_there(one, folder / _safe(one.filename, remote.filename))]
                require_space(place, sum(member.file_size for member in missing), prefix)
                if place.is_dir():  # other cases of it came before
                    for member in tqdm(missing, desc=prefix, disable=not missing):
                        with atomic(folder / _safe(member.filename, remote.filename)) as temporary:
                            _write_zip_member(opened, member, temporary, remote.filename)
                elif missing:
                    with atomic(place) as temporary:
                        for member in tqdm(members, desc=prefix):
                            inside = temporary / _safe(member.filename, remote.filename).relative_to(prefix)
                            _write_zip_member(opened, member, inside, remote.filename)
    except InputError:
        raise
    except Exception as error:  # as above, and what remotezip raises
        raise InputError(
            f"{remote.url}: single cases cannot be read ({error}); try again later, or leave out --case to fetch it all"
        ) from error
    return places


class _Fetcher(RemoteFetcher):
    """Asks for parts of a file; what a broken connection leaves out is asked for again."""

    def fetch(self, data_range: tuple[int, int | None], stream: bool = False) -> PartialBuffer:
        answer = patiently(lambda: self.ask(data_range), lambda: 0, self._url)
        return PartialBuffer(_Stretch(self, answer), answer.tell(), len(answer), stream)

    def ask(self, data_range: tuple[int, int | None]) -> PartialBuffer:
        """One connection for these bytes."""
        first, last = data_range
        try:
            answer = super().fetch(data_range, stream=True)
        except RemoteIOError as error:
            raise Broken("the connection broke") from error
        if last is not None and (answer.tell(), len(answer)) != (first, last - first + 1):
            answer.close()
            raise Broken("the server sends another part than was asked for")
        return answer

    def _request(self, kwargs: dict[str, object]) -> tuple[HTTPResponse, str]:
        answer = ask(self._session, self._url, **kwargs)
        if "Content-Range" not in answer.headers:
            raise RemoteZipError("the server does not send parts of files")
        return answer.raw, answer.headers["Content-Range"]


class _Stretch(io.RawIOBase):
    """Bytes `first` to `first + size` of a remote file, read once from front to end."""

    def __init__(self, fetcher: _Fetcher, answer: PartialBuffer) -> None:
        self.fetcher, self.answer = fetcher, answer
        self.first, self.size, self.at = answer.tell(), len(answer), 0

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        left = self.size - self.at
        wanted = self.at + (left if size < 0 else min(size, left))
        found: list[bytes] = []
        patiently(lambda: self._read_to(wanted, found), self.tell, self.fetcher._url)
        return b"".join(found)

    def _read_to(self, end: int, found: list[bytes]) -> None:
        if self.answer is None:
            self.answer = self.fetcher.ask((self.first + self.at, self.first + self.size - 1))
        try:
            while self.at < end:
                piece = self.answer.buffer.read1(end - self.at, decode_content=False)
                if not piece:
                    raise Broken("the connection ended early")
                found.append(piece)
                self.at += len(piece)
        except BROKEN:
            self.answer.close()
            self.answer = None
            raise

    def tell(self) -> int:
        """How many bytes have been read."""
        return self.at

    def close(self) -> None:
        """Give the connection back."""
        if self.answer is not None:
            self.answer.close()
            self.answer = None
        super().close()


def _open_remote_zip(url: str, session: requests.Session) -> RemoteZip:
    more = {"session": session, "fetcher": _Fetcher, "timeout": (15, 60)}
    try:
        return RemoteZip(url, **more)
    except (RemoteZipError, zipfile.BadZipFile):  # some servers don't know "the last n bytes": ask for the size first
        return RemoteZip(url, support_suffix_range=False, **more)


def _is_there(member: zipfile.ZipInfo, place: Path) -> bool:
    return place.is_file() and place.stat().st_size == member.file_size


def _group(opened: zipfile.ZipFile, case: str) -> dict[str, list[zipfile.ZipInfo]]:
    """Members of one case by the path down to it: {"Task1/pelvis/1PA001": [...]}."""
    groups: dict[str, list[zipfile.ZipInfo]] = {}
    for member in opened.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts  # as `_safe` reads it
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
        raise InputError(
            f"{archive}: its member {name!r} would land outside the folder; expected a plain relative path. "
            "Do not trust it"
        )
    return path


def _write_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, archive: str) -> None:
    if S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{archive}: its member {member.filename!r} is a link; expected files. Do not trust it")
    with _clashes_named(member.filename, archive):
        if member.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            return
        with opened.open(member) as stream:
            _write(stream, place)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in tqdm(opened, desc=f"unpacking {archive.name}", unit=" files"):
            place = folder / _safe(member.name, archive.name)
            with _clashes_named(member.name, archive.name):
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif stream := opened.extractfile(member) if member.isfile() else None:
                    _write(stream, place)
                else:
                    raise InputError(
                        f"{archive.name}: its member {member.name!r} is no plain file; expected files and folders. "
                        "Do not trust it"
                    )


@contextmanager
def _clashes_named(member: str, archive: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"{archive}: its member {member!r} clashes with another one; expected one file or folder of each name. "
            "Delete the archive and download it again; if the same happens, report it to the publisher"
        ) from error


def _write(stream: IO[bytes], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def sweep(*folders: Path) -> None:
    """Remove the hidden folders that a killed run left beside, in or below `folders` while it wrote them."""
    for folder in folders:
        remove_left(folder.parent, f".{folder.name[:40]}.")
        for place, inside, _ in os.walk(folder):
            for name in filter(ROOM.fullmatch, inside):
                remove_left(Path(place), name)
