"""Laws of the transfer of one file, against a server on this machine that misbehaves."""

import hashlib
import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from hostile_server import PAGE, serving

from data_download import transfer
from data_download.registry import Remote
from mr2ct_lib.files import InputError

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "*")
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    with serving(BODY) as http:
        http.naps = naps
        yield http


def remote(server: SimpleNamespace, name: str = "set.zip", **changes: object) -> Remote:
    return Remote(**({"url": server.url + name, "size": len(BODY), "checksum": MD5, "archive": False} | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_there(folder: Path, server: SimpleNamespace, total: int | None = len(BODY)) -> Path:
    """A part file of an earlier run, with its note."""
    part = folder / "set.zip.part"
    part.write_bytes(BODY[: len(BODY) // 2])
    note = {"url": server.url + "set.zip", "validator": '"one"', "total": total}
    (folder / "set.zip.part.json").write_text(json.dumps(note))
    return part


def test_plain_download_is_the_body_and_second_call_asks_nothing(server, tmp_path):
    path = transfer.fetch(remote(server), tmp_path)
    assert path.read_bytes() == BODY
    assert server.requests[0]["User-Agent"].startswith("mr2ct/")
    transfer.fetch(remote(server), tmp_path)
    assert len(server.requests) == 1 and names(tmp_path) == ["set.zip"]


def test_fifty_random_cuts_need_one_start_and_lose_nothing(server, tmp_path):
    server.script = ["random cut"] * 50
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    asked = [int(r["Range"].removeprefix("bytes=").removesuffix("-")) for r in server.requests[1:]]
    assert len(asked) >= 40 and asked == sorted(set(asked))  # each went on behind the last one
    assert all(r["If-Range"] == '"one"' for r in server.requests[1:]) and names(tmp_path) == ["set.zip"]
    assert set(server.naps) == {transfer.PAUSE}


def test_cut_connection_goes_on_from_the_last_byte(server, tmp_path):
    server.script = ["cut", "cut"]
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert [r.get("Range") for r in server.requests] == [None, "bytes=150000-", "bytes=225000-"]


def test_next_run_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.script = ["cut", *["503"] * 6]
    with pytest.raises(InputError, match="503.*overloaded or under maintenance.*kept"):
        transfer.fetch(remote(server), tmp_path)
    assert names(tmp_path) == ["set.zip.part", "set.zip.part.json"]
    server.script, server.requests[:] = [], []
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.requests[0]["Range"] == "bytes=150000-"


def test_attempts_without_progress_are_bounded(server, tmp_path):
    server.tag = ""  # nothing to vouch for the file: each attempt starts anew
    server.script = ["cut"] * 100
    with pytest.raises(InputError, match="connection broke, 6 attempts in a row"):
        transfer.fetch(remote(server), tmp_path)
    assert len(server.requests) == 6 and not (tmp_path / "set.zip").exists()
    assert all("Range" not in r for r in server.requests)


@pytest.mark.parametrize("deed", ["whole", "shifted"])
def test_wrong_answer_to_a_range_is_not_glued(server, tmp_path, deed):
    server.script = ["cut", deed]
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("deed", ["portal", "portal untyped", "portal no-length", "portal untyped no-length", "other"])
@pytest.mark.parametrize("known", [True, False], ids=["size-known", "size-unknown"])
def test_a_wrong_200_keeps_what_has_arrived(server, tmp_path, deed, known):
    part = half_there(tmp_path, server)
    server.script = [deed]
    set_zip = remote(server) if known else remote(server, size=None)
    with pytest.raises(InputError, match=r"web page|offers \d+ bytes; expected 300000"):
        transfer.fetch(set_zip, tmp_path)
    assert part.read_bytes() == BODY[:150_000]
    assert transfer.fetch(set_zip, tmp_path).read_bytes() == BODY
    assert server.requests[-1]["Range"] == "bytes=150000-" and names(tmp_path) == ["set.zip"]


def test_a_server_that_begins_anew_does_not_cost_what_has_arrived_until_it_has_sent_more(server, tmp_path):
    part = half_there(tmp_path, server)
    server.script = ["whole random cut", "404"]
    with pytest.raises(InputError, match="404"):
        transfer.fetch(remote(server), tmp_path)
    assert part.read_bytes() == BODY[:150_000] and len(names(tmp_path)) == 2
    server.script = ["whole"]
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), None], ids=["size-known", "size-unknown"])
def test_another_file_of_any_length_is_checked_before_it_replaces_a_piece(server, tmp_path, size):
    part = half_there(tmp_path, server, total=size)
    server.tag, server.body = '"two"', BODY[::-1] if size else BODY[:200_000]
    server.script = ["no-length"]
    with pytest.raises(InputError, match="another file than the registry knows"):
        transfer.fetch(remote(server, size=size), tmp_path)
    assert part.read_bytes() == BODY[:150_000]
    server.tag, server.body = '"one"', BODY
    assert transfer.fetch(remote(server, size=size), tmp_path).read_bytes() == BODY


def test_a_changed_file_is_not_glued_to_the_old_piece(server, tmp_path):
    half_there(tmp_path, server)
    server.tag, server.body = '"two"', BODY[::-1]
    assert transfer.fetch(remote(server, checksum=None), tmp_path).read_bytes() == BODY[::-1]


def test_a_piece_without_a_note_is_gone_before_there_is_one(server, tmp_path, monkeypatch):
    """Killed between the two, the next start would glue new bytes to a piece of any version."""
    (tmp_path / "set.zip.part").write_bytes(BODY[: len(BODY) // 2])
    server.tag, server.body = '"two"', BODY[::-1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        transfer.fetch(remote(server, checksum=None), tmp_path)
    assert transfer.fetch(remote(server, checksum=None), tmp_path).read_bytes() == BODY[::-1]


def test_a_whole_part_file_needs_no_more_bytes(server, tmp_path):
    half_there(tmp_path, server).write_bytes(BODY)
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.requests[0]["Range"] == "bytes=300000-" and names(tmp_path) == ["set.zip"]


TYPES = ['{"url": "x", "validator": 5}', '{"url": "x", "validator": "v", "total": "all"}']


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"url": 1}', "null", *TYPES], ids=["empty", "cut", "list", "keys", "null", "tag", "total"]
)
def test_a_damaged_note_is_said_and_nothing_is_deleted(server, tmp_path, note):
    part = half_there(tmp_path, server)
    (tmp_path / "set.zip.part.json").write_text(note)
    with pytest.raises(InputError, match="set.zip.part.json: is damaged.*Delete both"):
        transfer.fetch(remote(server), tmp_path)
    assert part.exists() and server.requests == []


def test_retry_after_in_seconds_is_waited_for(server, tmp_path):
    server.script, server.wait = ["429", "503"], 7
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.naps == [7, 7]


def test_retry_after_as_a_date_is_waited_for(server, tmp_path):
    server.script, server.wait = ["429"], formatdate(time.time() + 30, usegmt=True)
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert len(server.naps) == 1 and 25 <= server.naps[0] <= 30


def test_retry_after_in_words_is_said_and_the_file_comes_all_the_same(server, tmp_path, capsys):
    server.script, server.wait = ["429", "429"], "in a moment"
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert "'in a moment', neither seconds nor a date" in capsys.readouterr().out
    server.script = ["429"] * 6
    with pytest.raises(InputError, match="answers 429 Too Many Requests"):
        transfer.fetch(remote(server), tmp_path / "again")


def test_a_very_long_retry_after_is_reported(server, tmp_path):
    server.script, server.wait = ["429"], 3600
    with pytest.raises(InputError, match=rf"^{server.url}set.zip: the server asks to wait 3600 s"):
        transfer.fetch(remote(server), tmp_path)
    assert server.naps == [] and len(server.requests) == 1


def test_no_length_is_fine_when_whole_and_noticed_when_not(server, tmp_path):
    server.script = ["no-length"]
    assert transfer.fetch(remote(server), tmp_path / "a").read_bytes() == BODY
    server.script = ["no-length cut", ""]
    assert transfer.fetch(remote(server), tmp_path / "b").read_bytes() == BODY


@pytest.mark.parametrize("tag", ['"one"', ""], ids=["versioned", "no-version"])
@pytest.mark.parametrize("known", [True, False], ids=["checksum", "nothing-known"])
def test_a_cut_of_unknown_size_is_gone_on_from_where_the_version_is_known(server, tmp_path, tag, known):
    server.tag, server.script = tag, ["no-length cut"]
    cut = remote(server, size=None, **({} if known else {"checksum": None}))
    if not tag and known:
        with pytest.raises(InputError, match=r"what arrived, 150.0 kB, has another checksum.*thrown away"):
            transfer.fetch(cut, tmp_path)
        assert names(tmp_path) == []
    if tag or known:
        assert transfer.fetch(cut, tmp_path).read_bytes() == BODY and names(tmp_path) == ["set.zip"]
    else:  # nothing tells that it is a piece; unpacking it will
        assert transfer.fetch(cut, tmp_path).read_bytes() == BODY[:150_000]


def test_a_whole_file_of_unknown_size_is_kept_from_servers_with_and_without_ranges(server, tmp_path):
    with_ranges, without = ["no-length"], ["no-length", "whole no-length"]
    for script in (with_ranges, without, ["no-length cut", "whole random cut no-length", "whole"]):
        server.script = list(script)
        path = transfer.fetch(remote(server, size=None, checksum=None), tmp_path / str(len(server.requests)))
        assert path.read_bytes() == BODY and server.script == []


@pytest.mark.parametrize("changes", [{"size": None}, {"size": None, "checksum": None}], ids=["checksum", "nothing"])
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "new"])
def test_an_empty_answer_is_asked_again_and_costs_nothing(server, tmp_path, changes, begun):
    before = names(half_there(tmp_path, server, total=None).parent) if begun else []
    server.script = ["empty"] * 6
    with pytest.raises(InputError, match=f"(empty answer 200|0 B) came from {server.url}set.zip.*6 attempts in a row"):
        transfer.fetch(remote(server, **changes), tmp_path)
    assert names(tmp_path) == before
    server.script = ["empty"] * 2
    assert transfer.fetch(remote(server, **changes), tmp_path).read_bytes() == BODY and names(tmp_path) == ["set.zip"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"checksum": "md5:" + "0" * 32}, "another checksum"), ({"size": 7}, "offers 300000 bytes; expected 7")],
    ids=["checksum", "size"],
)
def test_wrong_checksum_or_size_never_becomes_the_file(server, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        transfer.fetch(remote(server, **changes), tmp_path)
    assert not (tmp_path / "set.zip").exists() and not (tmp_path / "set.zip.part").exists()


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("404", "answers 404 Not Found; expected the file. The set may have moved"),
        ("403", "answers 403 Forbidden.*login"),
        ("500", "answers 500 Internal Server Error"),
        ("503 page", "answers 503 Service Unavailable.*with a maintenance page"),
        ("portal", "a web page instead of the file"),
    ],
    ids=["404", "403", "500", "maintenance", "portal"],
)
def test_messages_name_what_the_server_said(server, tmp_path, deed, words):
    server.script = [deed] * 6
    with pytest.raises(InputError, match=words):
        transfer.fetch(remote(server), tmp_path)
    assert PAGE[:9] not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/set.zip", "file:///etc/passwd", "http://[::1/x"], ids=["circle", "file", "broken"])
def test_a_redirection_that_leads_nowhere_is_said_at_once(server, tmp_path, place):
    server.script = [f"to {place}"] * 40
    with pytest.raises(InputError, match="sends on to other addresses in a circle, or to none that can be used"):
        transfer.fetch(remote(server), tmp_path)
    assert server.naps == []


def test_messages_name_why_a_server_was_not_reached(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free from here on
    for address, words in [
        ("http://no-such-host.invalid/set.zip", "host name is not known .DNS"),
        (f"http://127.0.0.1:{port}/set.zip", "refuses the connection"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            transfer.fetch(Remote(address, size=1), tmp_path)
        assert "\n" not in str(caught.value)
    assert server.naps == []  # said at once


def test_a_failing_network_in_the_middle_is_waited_for(server, tmp_path, monkeypatch):
    server.script = ["cut"]
    get, calls = requests.Session.get, []

    def flaky(self, url, **more):
        calls.append(url)
        return get(self, "http://no-such-host.invalid/" if len(calls) in (2, 3) else url, **more)

    monkeypatch.setattr(requests.Session, "get", flaky)
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.naps == [transfer.PAUSE, 2, 4]


def hold(place: Path, ready, done) -> None:
    with transfer.alone(place):
        ready.set()
        done.wait(30)


def test_a_second_download_of_one_file_is_refused_while_the_first_lives(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "set.zip", ready, done))
    first.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="another download of it is running"):
        transfer.fetch(remote(server), tmp_path)
    first.kill()  # as kill -9: the lock ends with its owner
    first.join()
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY


def test_full_disk_is_said_before_the_body(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="1.0 kB are free; expected 300.0 kB for set.zip"):
        transfer.fetch(remote(server), tmp_path)
    assert names(tmp_path) == []


def test_https_never_falls_back_to_http():
    with transfer.open_session("https://example.org/a.zip") as session, pytest.raises(InputError, match="plain http"):
        session.get("http://example.org/a.zip")
    with transfer.open_session("http://example.org/a.zip") as session:
        assert isinstance(session.get_adapter("http://x"), requests.adapters.HTTPAdapter)
