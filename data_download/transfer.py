"""One file over HTTP: goes on after a cut, waits when the server asks for it, takes no wrong answer for the file."""

import hashlib
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import requests
from filelock import FileLock, Timeout
from requests.adapters import BaseAdapter, HTTPAdapter
from tqdm.auto import tqdm
from urllib3 import HTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidHeader, ProxyError, ReadTimeoutError, SSLError
from urllib3.util.retry import Retry

from data_download.registry import Remote
from mr2ct_lib import __version__
from mr2ct_lib.files import InputError, read_json, write_json

LONGEST_WAIT = 600  # seconds of Retry-After that we sit out
ATTEMPTS = 6  # connections in a row that bring nothing new; one that brings bytes starts the count anew
PAUSE = 0.5  # seconds before going on after a cut that came with new bytes
CHUNK = 1 << 16
WEB_PAGE = "a web page instead of the file (a network's login page, or maintenance)"
BROKEN = (requests.RequestException, HTTPError, ConnectionError)  # HTTPError: urllib3's base class
Result = TypeVar("Result")


class Broken(ConnectionError):
    """An answer that ended early or cannot be used, so that the same question is worth another attempt."""


class _Patience(Retry):
    """urllib3's retries: they honour Retry-After, with a message, but not beyond LONGEST_WAIT."""

    where = "the server"  # and its file; the answer itself knows no host

    def increment(self, method: str | None = None, url: str | None = None, *more: object, **named: object) -> Retry:
        left = super().increment(method, url, *more, **named)
        pool = named.get("_pool")
        left.where = f"{pool.scheme}://{pool.host}:{pool.port}{url}" if pool else self.where
        return left

    def get_retry_after(self, response: HTTPResponse) -> float | None:
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            found = response.headers["Retry-After"]
            tqdm.write(f"the server's Retry-After is {found!r}, neither seconds nor a date; trying again in a while")
            return None
        if seconds and seconds > LONGEST_WAIT:
            raise InputError(
                f"{self.where}: the server asks to wait {seconds:.0f} s; "
                f"expected at most {LONGEST_WAIT} s. Try again later; what has arrived is kept"
            )
        if seconds:
            tqdm.write(f"the server asks to wait {seconds:.0f} s")
        return seconds


class _Refuse(BaseAdapter):
    """Mounted for http:// where the address was https://, so that no redirect leads to an unprotected connection."""

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        raise InputError(f"{request.url}: the https address led to plain http; expected https. Report the address")

    def close(self) -> None:
        """Nothing to close."""


def open_session(url: str) -> requests.Session:
    """Return a session that tries again on 429 and 5xx, honours Retry-After, and never falls from https to http."""
    retry = _Patience(
        total=5,
        connect=0,
        read=0,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=1,
        raise_on_status=False,  # the last answer comes back, and `refuse` says what it is
    )
    session = requests.Session()
    session.headers.update({"User-Agent": f"mr2ct/{__version__}", "Accept-Encoding": "identity"})
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", _Refuse() if url.startswith("https://") else HTTPAdapter(max_retries=retry))
    return session


def in_words(size: int) -> str:
    """A number of bytes in the largest unit of which there is one.

    >>> in_words(23_581_218_285), in_words(4_700), in_words(12)
    ('23.6 GB', '4.7 kB', '12 B')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise InputError when the disk that holds `folder` (which need not exist yet) has less than `size` bytes free."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if free < size:
        raise InputError(
            f"{folder}: {in_words(free)} are free; expected {in_words(size)} for {what}. Make room or use --to"
        )


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Keep other processes away from `place`. The system gives the lock back when a process dies, however it dies.

    Raises InputError when another process holds the lock.
    """
    lock = FileLock(place.parent / f".{place.name}.lock", timeout=0)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{place}: another download of it is running; expected only one. Wait until it has ended, or stop it"
        ) from error
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror or error}); use another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file: then the empty lock file stays
            Path(lock.lock_file).unlink()
        lock.release()


def cause(error: BaseException) -> tuple[str, bool]:
    """Return in words what went wrong with a connection, and whether the server could be reached at all."""
    kinds = _chain(error)
    if any(isinstance(kind, socket.gaierror) for kind in kinds):
        return "its host name is not known (DNS lookup failed)", False
    if any(isinstance(kind, ConnectionRefusedError) for kind in kinds):
        return "the server refuses the connection", False
    if any(isinstance(kind, ProxyError) for kind in kinds):
        return "the proxy does not let the request through", False
    if any(isinstance(kind, SSLError) for kind in kinds):
        return "the server shows no valid certificate", False
    if any(isinstance(kind, ConnectTimeoutError) for kind in kinds):
        return "the server does not answer", True
    if any(isinstance(kind, ReadTimeoutError) for kind in kinds):
        return "the server stopped sending", True
    if isinstance(error, Broken):
        return str(error), True
    return "the connection broke", True


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all errors that led to it, through `raise from`, urllib3's `reason` and wrapped arguments."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return found


def ask(session: requests.Session, url: str, **options: object) -> requests.Response:
    """Return the answer of `url`, its body not read yet. Raises InputError when it is not (a part of) the file."""
    try:
        response = session.get(url, stream=True, **options)
    except InputError:
        raise
    except (requests.TooManyRedirects, ValueError) as error:  # ValueError: an address that cannot be one
        raise InputError(
            f"{url}: the server sends on to other addresses in a circle, or to none that can be used; expected the "
            "file. Open the address in a browser. What has arrived is kept"
        ) from error
    refuse(response)
    return response


def refuse(response: requests.Response) -> None:
    """Raise InputError for an answer that is not (a part of) the file: an error status or a web page."""
    code, where = response.status_code, response.url
    page = response.headers.get("Content-Type", "").lower().startswith("text/html")
    kept = "What has arrived is kept"
    if code in (200, 206) and page:
        raise InputError(f"{where}: {WEB_PAGE} came; expected the file. Open the address in a browser. {kept}")
    if code in (200, 206, 416):
        return
    what = f"{where}: the server answers {code} {response.reason}; expected the file"
    if code in (401, 403, 407, 511):
        raise InputError(f"{what}. It asks for a login or forbids the download: open the address in a browser. {kept}")
    if code == 429 or code >= 500:
        page_too = " with a maintenance page" if page else ""
        raise InputError(f"{what}. It is overloaded or under maintenance{page_too}: try again later. {kept}")
    raise InputError(f"{what}. The set may have moved: see its page in `python -m data_download list`")


def patiently(attempt: Callable[[], Result], held: Callable[[], int], url: str) -> Result:
    """Return what `attempt` returns; it is called again after a broken connection.

    Gives up after ATTEMPTS calls in a row that did not raise `held()`, the number of bytes that are safe. A server that
    was never reached is reported at once. Raises InputError that names the cause.
    """
    failures, reached, start = 0, False, held()
    while True:
        before = held()
        try:
            return attempt()
        except BROKEN as error:
            words, there = cause(error)
            reached = reached or there or held() > start
            failures = 0 if held() > before else failures + 1
            if failures >= ATTEMPTS or not reached:
                tried = "" if not reached else f", {ATTEMPTS} attempts in a row without progress"
                raise InputError(
                    f"{url}: {words}{tried}; expected the file. Check the network and run the same command again: "
                    "it goes on from what has arrived"
                ) from error
        pause = min(2**failures, 30) if failures else PAUSE
        tqdm.write(f"{url.rsplit('/', 1)[-1]}: {words}; going on in {pause:g} s")
        time.sleep(pause)


def pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives, so that a cut loses nothing of what came before it."""
    while piece := answer.read1(CHUNK, decode_content=False):
        yield piece


def fetch(remote: Remote, folder: Path) -> Path:
    """Return the path of `remote`, complete and checked, in `folder`; downloads it when it is not there yet.

    Until it is checked the file is called `.part`, and the next call goes on from it. Raises InputError when the file
    cannot be had, is not what the registry says, or is being downloaded by another process.
    """
    place = folder / remote.filename
    part = folder / f"{remote.filename}.part"
    with alone(place):
        if place.exists() and _is_right(place, remote):
            return place
        try:
            receive(remote, part)
            if not _is_right(part, remote):
                size = in_words(part.stat().st_size)
                part.unlink()
                _note(part).unlink(missing_ok=True)
                raise InputError(
                    f"{remote.url}: what arrived, {size}, has another checksum than {remote.checksum}; it was thrown "
                    "away. Run the command again; if the same happens, the publisher has changed the file"
                )
            part.replace(place)
            _note(part).unlink(missing_ok=True)
            _new(part).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: writing failed ({error.strerror or error}); free some space or use --to"
            ) from error
    return place


def _is_right(path: Path, remote: Remote) -> bool:
    if remote.size not in (None, path.stat().st_size):
        return False
    if not remote.checksum:
        return True
    algorithm, digest = remote.checksum.split(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == digest


def receive(remote: Remote, part: Path) -> None:
    """Bring all bytes of `remote` to `part`, going on from what it holds where the server vouches for the same file."""
    with open_session(remote.url) as session:
        patiently(lambda: _receive_once(session, remote, part), lambda: _held(part, remote.url)[0], remote.url)


def _receive_once(session: requests.Session, remote: Remote, part: Path) -> None:
    """One connection. Returns when `part` is whole; raises Broken when the answer ended early or cannot be used."""
    have, note = _held(part, remote.url)
    headers = {"Range": f"bytes={have}-", "If-Range": note["validator"]} if have else {}
    with ask(session, remote.url, headers=headers, timeout=(15, 60)) as response:
        answer = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        validator = _validator(response)
        length = response.headers.get("Content-Length", "") if response.status_code == 200 else answer and answer[2]
        total = int(length) if length and length.isdecimal() else None
        expected = remote.size or (note["total"] if have else None)
        if expected and total not in (None, expected):
            advice = f": then delete {part} and run the command again" if have else ""
            raise InputError(
                f"{response.url}: offers {total} bytes; expected {expected}. Try again later, since a network's login "
                f"page may have come instead; or the publisher has changed the file{advice}"
            )
        total = total or expected
        if response.status_code == 416:  # there is nothing after what we have
            if have and total in (None, have):
                return
            raise InputError(
                f"{part}: holds {have} bytes, more than the file on the server; expected a piece of it. "
                "Delete it and try again"
            )
        if response.status_code == 206 and (not have or not answer or answer[1] != str(have)):
            raise Broken("the server sends another part than was asked for")
        if response.status_code == 206 and validator not in (None, note["validator"]):
            raise Broken(f"the server has another version of the file than {part} (delete it if this lasts)")
        start = have if response.status_code == 206 else 0
        require_space(part.parent, (total or 0) - start, remote.filename)
        about = {"url": remote.url, "validator": validator or (note["validator"] if start else None), "total": total}
        if have and not start:  # the server begins anew: what is here stays until the new bytes are worth more
            _begin_anew(response, remote, part, about, have)
        else:
            if not start:
                part.unlink(missing_ok=True)  # what lay here without a note may be another version
            write_json(about, _note(part))
            _append(response, part, start, total)
            _require_end(response, remote, part, about)
    _require_whole(part, total)


def _begin_anew(response: requests.Response, remote: Remote, part: Path, about: dict[str, object], have: int) -> None:
    """Receive the whole file beside `part`, and replace `part` only by what is worth more."""
    new, right = _new(part), False
    try:
        _append(response, new, 0, about["total"])
        _require_whole(new, about["total"])
        size = new.stat().st_size
        if size == 0 or (about["total"] is None and not remote.checksum and size < have):
            raise Broken(f"{in_words(size)} came from {response.url}, less than before")
        right = _is_right(new, remote)
        if not right:
            raise InputError(
                f"{response.url}: another file than the registry knows came, or a piece; expected {remote.checksum}. "
                "Try again later; what had arrived before is kept"
            )
    finally:
        larger_piece = new.exists() and have < new.stat().st_size < (about["total"] or 0)
        if right or (larger_piece and about["validator"]):
            _note(part).unlink()  # never a note beside bytes that it does not describe
            new.replace(part)
            write_json(about, _note(part))
        else:
            new.unlink(missing_ok=True)


def _append(response: requests.Response, part: Path, start: int, total: int | None) -> None:
    with (
        part.open("r+b" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.name.removesuffix(".part")) as bar,
    ):
        file.seek(start)
        for piece in pieces(response.raw):
            if file.tell() == 0 and piece.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                raise InputError(f"{response.url}: {WEB_PAGE} came; expected the file. Open the address in a browser")
            file.write(piece)
            bar.update(len(piece))


def _require_whole(part: Path, total: int | None) -> None:
    if total is not None and part.stat().st_size != total:
        raise Broken("the connection ended early")


def _require_end(response: requests.Response, remote: Remote, part: Path, about: dict[str, object]) -> None:
    """Raise Broken where an answer without a length may have been cut: empty, or not vouched for.

    Chunks have an end of their own. Otherwise the next question is for the bytes behind what has arrived; where nothing
    tells the version of the file, they cannot be asked for.
    """
    size = part.stat().st_size
    if size == 0:
        part.unlink()
        _note(part).unlink()
        raise Broken(f"an empty answer {response.status_code} came from {response.url}")
    ends = about["total"] is not None or response.raw.chunked
    if not ends and about["validator"] and not (remote.checksum and _is_right(part, remote)):
        raise Broken(f"the server does not say how long the file is; {in_words(size)} came, asking for what follows")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _new(part: Path) -> Path:
    return part.with_name(part.name + ".new")


def _validator(response: requests.Response) -> str | None:
    """What If-Range may hold: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _held(part: Path, url: str) -> tuple[int, dict[str, object]]:
    """Bytes that `part` holds and what its note says of them; (0, {}) when nothing can be gone on from.

    Raises InputError for a damaged note.
    """
    if not part.exists() or not _note(part).exists():
        return 0, {}
    try:
        note = read_json(_note(part))
        url_then, validator, total = note["url"], note["validator"], note.get("total")
        if not (isinstance(validator, str | None) and isinstance(total, int | None) and "\n" not in (validator or "")):
            raise TypeError("neither what the server called the version, nor bytes")
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{_note(part)}: is damaged; expected the address and version of {part.name}. Delete both to download anew"
        ) from error
    if url_then != url or not validator:
        return 0, {}
    return part.stat().st_size, {"validator": validator, "total": total}
