"""One file over HTTP, patiently: it resumes, waits when the server says so, and never takes a piece for the whole."""

import re
import shutil
import time
from pathlib import Path

import pooch
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from tqdm.auto import tqdm
from urllib3 import HTTPResponse
from urllib3.util.retry import Retry

from data_download.registry import Remote
from mr2ct_lib import __version__
from mr2ct_lib.files import InputError, read_json, write_json

LONGEST_WAIT = 600  # seconds of Retry-After that we sit out
ATTEMPTS = 6  # connections for one file in one run of the command
BROKEN = (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, requests.Timeout)

pooch.get_logger().setLevel("WARNING")


class _Patience(Retry):
    """urllib3's retries, which honour Retry-After; says so, and gives up beyond LONGEST_WAIT."""

    def get_retry_after(self, response: HTTPResponse) -> float | None:
        seconds = super().get_retry_after(response)
        if seconds and seconds > LONGEST_WAIT:
            raise InputError(
                f"{response.geturl() or 'server'}: asks to wait {seconds:.0f} s; "
                f"expected at most {LONGEST_WAIT} s. Try again later; what has arrived is kept"
            )
        if seconds:
            tqdm.write(f"the server asks to wait {seconds:.0f} s")
        return seconds


class _Refuse(BaseAdapter):
    """Takes no request: mounted for http:// where the address was https://, so that no redirect can lower the guard."""

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        raise InputError(f"{request.url}: the https address led to plain http; expected https. Report the address")

    def close(self) -> None:
        """Nothing to close."""


def open_session(url: str) -> requests.Session:
    """Return a session that tries again on 429 and 5xx, honours Retry-After, and never falls from https to http."""
    retry = _Patience(total=5, connect=0, read=0, status_forcelist=(429, 500, 502, 503, 504), backoff_factor=1)
    session = requests.Session()
    session.headers.update({"User-Agent": f"mr2ct/{__version__}", "Accept-Encoding": "identity"})
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", _Refuse() if url.startswith("https://") else HTTPAdapter(max_retries=retry))
    return session


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise InputError when the disk that holds `folder` (which need not exist yet) has less than `size` bytes free."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if free < size:
        raise InputError(f"{folder}: {free / 1e9:.2f} GB are free; expected {size / 1e9:.2f} GB for {what}. Make room or use --to")


def fetch(remote: Remote, folder: Path) -> Path:
    """Return the path of `remote`, complete and checked, in `folder`; downloads it when it is not there yet.

    pooch checks the checksum and moves the file into place at the very end; until then it is called `.part` and a next call
    goes on from it. Raises InputError when the file cannot be had or is not what the registry says.
    """
    part = folder / f"{remote.filename}.part"

    def download(url: str, output: str, pup: object) -> None:
        receive(remote, part)
        part.replace(output)
        _note(part).unlink(missing_ok=True)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(pooch.retrieve(remote.url, remote.checksum, remote.filename, folder, downloader=download))
    except InputError:
        raise
    except ValueError as error:  # pooch's word for a checksum that differs
        raise InputError(
            f"{remote.url}: what arrived has another checksum than {remote.checksum}; it was thrown away. "
            "Run the command again; if it stays so, the publisher has changed the file"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: writing failed ({error.strerror or error}); free some space or use --to") from error


def receive(remote: Remote, part: Path) -> None:
    """Bring all bytes of `remote` to `part`, going on from what `part` holds when the server vouches for the same file."""
    with open_session(remote.url) as session:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if _receive_once(session, remote, part):
                    return
            except BROKEN as error:
                if isinstance(error, requests.exceptions.SSLError):
                    raise InputError(f"{remote.url}: {error}; expected a valid certificate. Check the network") from error
            except requests.RequestException as error:
                raise InputError(f"{remote.url}: {error}; expected the file. Try again later") from error
            if attempt < ATTEMPTS:
                seconds = min(2**attempt, 30)
                tqdm.write(f"{remote.filename}: the connection broke; going on in {seconds} s")
                time.sleep(seconds)
    raise InputError(
        f"{remote.url}: no complete answer in {ATTEMPTS} attempts; expected the file. "
        "Check the network and run the same command again: it goes on from what has arrived"
    )


def _receive_once(session: requests.Session, remote: Remote, part: Path) -> bool:
    """One connection; True when `part` is whole, False when the bytes that came can't be gone on from or are too few."""
    have, validator = _held(part, remote.url)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with session.get(remote.url, headers=headers, stream=True, timeout=(15, 60)) as response:
        content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status_code == 416:  # nothing after what we have: whole, when the lengths agree
            if content_range and content_range[2] == str(have) == str(remote.size or have):
                return True
            part.unlink(missing_ok=True)
            return False
        if response.status_code == 206:
            changed = _validator(response) not in (None, validator)
            if not have or changed or not content_range or content_range[1] != str(have):
                part.unlink(missing_ok=True)
                return False
            total = int(content_range[2]) if content_range[2] != "*" else remote.size
        elif response.status_code == 200:
            have = 0
            total = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else remote.size
        else:
            raise InputError(
                f"{remote.url}: the server answers {response.status_code} {response.reason}; expected the file. "
                "The set may have moved: see its page in `python -m data_download list`"
            )
        if remote.size and total != remote.size:
            part.unlink(missing_ok=True)
            raise InputError(f"{remote.url}: offers {total} bytes; expected {remote.size}. The publisher has changed the file")
        require_space(part.parent, (total or 0) - have, remote.filename)
        write_json({"url": remote.url, "validator": _validator(response) or (validator if have else None)}, _note(part))
        with (
            part.open("r+b" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=remote.filename) as bar,
        ):
            file.seek(have)
            for chunk in response.iter_content(1 << 16):  # small, for a broken connection loses the chunk that it was in
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or part.stat().st_size == total


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(response: requests.Response) -> str | None:
    """What If-Range may hold: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _held(part: Path, url: str) -> tuple[int, str]:
    """Bytes that `part` holds and the validator of their file; (0, "") when nothing can be gone on from."""
    if not part.exists() or not _note(part).exists():
        return 0, ""
    note = read_json(_note(part))
    return (part.stat().st_size, note["validator"]) if note["url"] == url and note["validator"] else (0, "")
