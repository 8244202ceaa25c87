"""Laws of the downloader, against a server on this machine that misbehaves in every way that has been seen to happen."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import requests
from typer.testing import CliRunner

from data_download import __main__ as command
from data_download import archives, layouts, registry, transfer
from data_download.registry import DataSet, Remote
from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import read_cohort

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body` with ranges; `server.script` holds one misbehaviour a request, used up in order."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        deed = server.script.pop(0) if server.script else ""
        body, self.close_connection = server.body, True
        if deed.isdigit():
            self.send_response(int(deed))
            if server.wait:
                self.send_header("Retry-After", str(server.wait))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        first, last = 0, len(body) - 1
        same = self.headers.get("If-Range") in (None, server.tag)
        partial = bool(wanted) and same and "whole" not in deed
        if partial:
            low, high = wanted.split("-")
            first, last = (int(low), int(high or last)) if low else (max(0, len(body) - int(high)), last)
            if first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if partial else 200)
        if partial:
            start = first + 1 if "shifted" in deed else first
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
        if "no-length" not in deed:
            self.send_header("Content-Length", str(last - first + 1))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        piece = body[first : last + 1]
        if self.command == "GET":
            self.wfile.write(piece[: len(piece) // 2] if "cut" in deed else piece)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.body, http.script, http.requests, http.wait, http.tag, http.naps = BODY, [], [], 0, '"one"', naps
    http.url = f"http://127.0.0.1:{http.server_port}/"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def remote(server: SimpleNamespace, name: str = "set.zip", **changes: object) -> Remote:
    return Remote(**({"url": server.url + name, "size": len(BODY), "checksum": MD5, "archive": False} | changes))


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def make_tar(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            opened.addfile(info)
    return buffer.getvalue()


def whole_files(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and ".part" not in p.name]


def test_plain_download_is_the_body_and_second_call_asks_nothing(server, tmp_path):
    path = transfer.fetch(remote(server), tmp_path)
    assert path.read_bytes() == BODY
    assert server.requests[0]["User-Agent"].startswith("mr2ct/")
    transfer.fetch(remote(server), tmp_path)
    assert len(server.requests) == 1
    assert whole_files(tmp_path) == ["set.zip"] and len(list(tmp_path.iterdir())) == 1


def test_cut_connection_goes_on_from_what_arrived(server, tmp_path):
    server.script = ["cut", "cut", ""]
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert [r.get("Range") for r in server.requests] == [None, "bytes=131072-", "bytes=196608-"]  # in whole chunks of 64 kB
    assert server.requests[1]["If-Range"] == '"one"'


def test_next_run_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.script = ["cut", *["503"] * 6]
    with pytest.raises(InputError, match="503"):
        transfer.fetch(remote(server), tmp_path)
    assert whole_files(tmp_path) == []
    server.script, server.requests[:] = [], []
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.requests[0]["Range"] == "bytes=131072-"


def test_attempts_are_bounded_and_leave_nothing_whole(server, tmp_path):
    server.tag = ""  # nothing to vouch for the file: each attempt starts anew
    server.script = ["cut"] * 100
    with pytest.raises(InputError, match="6 attempts"):
        transfer.fetch(remote(server), tmp_path)
    assert len(server.requests) == 6 and whole_files(tmp_path) == []
    assert all("Range" not in r for r in server.requests)


@pytest.mark.parametrize("deed", ["whole", "shifted"])
def test_wrong_answer_to_a_range_starts_anew(server, tmp_path, deed):
    server.script = ["cut", deed]
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY


def test_a_changed_file_is_not_glued_to_the_old_piece(server, tmp_path):
    server.script = ["cut", *["503"] * 6]
    with pytest.raises(InputError):
        transfer.fetch(remote(server, checksum=None), tmp_path)
    server.script, server.tag, server.body = [], '"two"', BODY[::-1]
    assert transfer.fetch(remote(server, checksum=None), tmp_path).read_bytes() == BODY[::-1]


def test_a_whole_part_file_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(BODY)
    (tmp_path / "set.zip.part.json").write_text(f'{{"url": "{server.url}set.zip", "validator": "\\"one\\""}}')
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.requests[0]["Range"] == "bytes=300000-"


def test_retry_after_is_waited_for(server, tmp_path):
    server.script, server.wait = ["429", "503"], 7
    assert transfer.fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.naps == [7, 7]


def test_a_very_long_retry_after_is_reported(server, tmp_path):
    server.script, server.wait = ["429"], 3600
    with pytest.raises(InputError, match="3600 s"):
        transfer.fetch(remote(server), tmp_path)
    assert server.naps == [] and len(server.requests) == 1


def test_no_length_is_fine_when_whole_and_noticed_when_not(server, tmp_path):
    server.script = ["no-length"]
    assert transfer.fetch(remote(server), tmp_path / "a").read_bytes() == BODY
    server.script = ["no-length cut", ""]
    assert transfer.fetch(remote(server), tmp_path / "b").read_bytes() == BODY


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"checksum": "md5:" + "0" * 32}, "another checksum"), ({"size": 7}, "offers 300000 bytes; expected 7")],
)
def test_wrong_checksum_or_size_leaves_nothing(server, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        transfer.fetch(remote(server, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_said_at_once(server, tmp_path):
    server.script = ["404"]
    with pytest.raises(InputError, match="404"):
        transfer.fetch(remote(server), tmp_path)
    assert len(server.requests) == 1 and whole_files(tmp_path) == []


def test_full_disk_is_said_before_the_body(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="are free"):
        transfer.fetch(remote(server), tmp_path)
    assert whole_files(tmp_path) == []


def test_https_never_falls_back_to_http():
    with transfer.open_session("https://example.org/a.zip") as session, pytest.raises(InputError, match="plain http"):
        session.get("http://example.org/a.zip")
    with transfer.open_session("http://example.org/a.zip") as session:
        assert isinstance(session.get_adapter("http://x"), requests.adapters.HTTPAdapter)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpacking_gives_the_members_and_a_mark(tmp_path, make: Callable[..., bytes]):
    archive = tmp_path / "x"
    archive.write_bytes(make({"a/b.txt": b"one", "./c.txt": b"two"}))
    archives.unpack(archive, Remote("http://x/x"), tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"
    assert sorted(whole_files(tmp_path / "out")) == ["b.txt", "c.txt", archives.MARK]


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(make({"good": b"1", bad: b"2"}) for make in (make_zip, make_tar) for bad in ("../evil", "a/../../evil", "/evil")),
        make_zip({"..\\evil": b""}),
        make_zip({"C:/evil": b""}),
        make_tar({"good": b"1"}, link="../outside"),
        make_tar({"good": b"1"}, link="good"),
        linked_zip(),
        make_tar({"good": BODY})[:-1000],
        make_zip({"good": BODY})[:-1000],
        make_zip({"good": BODY}).replace(BODY[:50], bytes(50)),
        b"no archive",
    ],
)
def test_unsafe_or_damaged_archives_leave_nothing(tmp_path, content):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "x"
    archive.write_bytes(content)
    with pytest.raises(InputError):
        archives.unpack(archive, Remote("http://x/x"), inside / "out")
    assert [p.name for p in inside.iterdir()] == ["x"] and [p.name for p in tmp_path.iterdir()] == ["inside"]


def scan(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 100, (4, 4, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)


def synthrad_zip(cases: int) -> bytes:
    names = [f"Task1/pelvis/1PA{i:03d}/{kind}.nii.gz" for i in range(1, cases + 1) for kind in ("mr", "ct", "mask")]
    return make_zip({name: name.encode() + BODY[:20_000] for name in names})


@pytest.fixture
def synthrad(server, monkeypatch) -> DataSet:
    server.body = synthrad_zip(12)
    md5 = "md5:" + hashlib.md5(server.body).hexdigest()
    files = (Remote(server.url + "Task1.zip", "", len(server.body), md5),)
    data = DataSet("test", "none", "nowhere", files, layout="synthrad2023")
    monkeypatch.setitem(registry.DATASETS, "synthrad2023", data)
    return data


def test_single_cases_come_without_the_whole_zip(server, synthrad, tmp_path):
    (place,) = archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    assert place == tmp_path / "Task1/pelvis/1PA002"
    assert sorted(whole_files(tmp_path)) == ["ct.nii.gz", "mask.nii.gz", "mr.nii.gz"]
    assert (place / "ct.nii.gz").read_bytes() == b"Task1/pelvis/1PA002/ct.nii.gz" + BODY[:20_000]
    assert all("Range" in r for r in server.requests)
    with pytest.raises(InputError, match=r"1PA9.*1PA001"):
        archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA9"])


def test_single_cases_need_ranges_and_are_whole_or_absent(server, synthrad, tmp_path):
    server.script = ["whole"] * 3
    with pytest.raises(InputError, match="single cases"):
        archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    server.script = ["", "", "cut"]
    with pytest.raises(InputError, match="single cases"):
        archives.unpack_cases(synthrad.remotes[0], tmp_path, ["1PA002"])
    assert whole_files(tmp_path) == []


def test_get_brings_unpacks_arranges_and_does_not_come_twice(server, synthrad, tmp_path):
    run = CliRunner().invoke(command.app, ["get", "synthrad2023", "--to", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert f"next: mr2ct prepare {tmp_path}/synthrad2023/cohort/pelvis/unpaired" in run.output
    cohort = tmp_path / "synthrad2023/cohort/pelvis"
    names = {side: sorted(p.name for p in (cohort / side).iterdir()) for side in ("paired/source", "paired/target")}
    assert names["paired/source"] == names["paired/target"] == ["1PA001.nii.gz", "1PA011.nii.gz"]
    unpaired = [{p.name for p in (cohort / "unpaired" / side).iterdir()} for side in ("source", "target")]
    assert [len(side) for side in unpaired] == [5, 5] and not unpaired[0] & unpaired[1]
    assert b"1PA002/mr" in (cohort / "unpaired/source/1PA002.nii.gz").read_bytes()
    assert b"1PA003/ct" in (cohort / "unpaired/target/1PA003.nii.gz").read_bytes()
    assert not list((tmp_path / "downloads").rglob("*.zip"))
    before = len(server.requests)
    assert CliRunner().invoke(command.app, ["get", "synthrad2023", "--to", str(tmp_path)]).exit_code == 0
    assert len(server.requests) == before


def test_cases_that_are_there_do_not_pass_for_the_whole_set(server, synthrad, tmp_path):
    arguments = ["get", "synthrad2023", "--to", str(tmp_path)]
    assert CliRunner().invoke(command.app, [*arguments, "--case", "1PA001"]).exit_code == 0
    assert CliRunner().invoke(command.app, arguments).exit_code == 0
    assert len(list((tmp_path / "synthrad2023/Task1/pelvis").iterdir())) == 12


def test_ixi_pairs_by_person(tmp_path):
    for person in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212"):
        scan(tmp_path / f"PD/{person}-PD.nii.gz")
        if person != "IXI012-HH-1211":
            scan(tmp_path / f"T2/{person}-T2.nii.gz")
    pairs = layouts.ixi_pairs(tmp_path)
    assert list(pairs) == ["IXI002-Guys-0828", "IXI013-HH-1212"]
    assert layouts.arrange("ixi", tmp_path) == [tmp_path / "cohort/paired"]  # two people are too few for both cohorts
    assert sorted(whole_files(tmp_path / "cohort")) == ["IXI002-Guys-0828.nii.gz"] * 2 + ["cohort.json"]


def test_synthrad_cohorts_read_back_as_what_they_are(real_data, tmp_path):
    for case in ("a", "b", "c"):
        folder = tmp_path / "Task1/pelvis" / case
        folder.mkdir(parents=True)
        (folder / "mr.nii.gz").symlink_to((real_data / "mr/abdomen_mr.nii.gz").resolve())
        (folder / "ct.nii.gz").symlink_to((real_data / "ct/abdomen_ct_small.nii.gz").resolve())
    paired, unpaired = (read_cohort(place) for place in layouts.arrange("synthrad2023", tmp_path))
    assert paired.paired and not unpaired.paired
    assert (list(paired.source), list(unpaired.source), list(unpaired.target)) == (["a"], ["b"], ["c"])


def test_chaos_dicom_becomes_nifti(real_data, tmp_path):
    for place in ("CT/1/DICOM_anon", "MR/1/T1DUAL/DICOM_anon/InPhase"):  # a CT stands in for the MR: only the path counts
        folder = tmp_path / "Train_Sets" / place
        folder.parent.mkdir(parents=True)
        folder.symlink_to((real_data / "dicom_ct").resolve())
    assert layouts.arrange("chaos", tmp_path) == [tmp_path / "cohort/unpaired"]
    image = nib.load(tmp_path / "cohort/unpaired/target/ct1.nii.gz")
    assert image.shape[2] == 20 and np.asarray(image.dataobj).min() < -900
    assert (tmp_path / "cohort/unpaired/source/mr1.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "nonsense"], "synthrad2023"),
        (["get", "gold-atlas"], "by hand only"),
        (["get", "ixi", "--case", "IXI002"], "--case"),
        (["get", "hip-labels", "--case", "Pelvic-Ref-003"], "Pelvic-Ref-001"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.setattr("sys.argv", ["data_download", *arguments, "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_said(server, synthrad, tmp_path):
    (tmp_path / "file").write_text("")
    for case in ([], ["--case", "1PA001"]):
        run = CliRunner().invoke(command.app, ["get", "synthrad2023", "--to", str(tmp_path / "file"), *case])
        assert isinstance(run.exception, InputError), run.output


def test_list_names_every_set_with_its_licence():
    output = CliRunner().invoke(command.app, ["list"]).output
    for name, data in registry.DATASETS.items():
        assert name in output and data.licence in output


def test_registry_is_whole():
    for name, data in registry.DATASETS.items():
        assert bool(data.remotes) != bool(data.by_hand), name
        for item in data.remotes:
            assert item.checksum or item.size, item.url
            assert item.url.startswith("https://") or item.checksum, item.url
            digits = {"md5": 32, "sha256": 64}
            assert item.checksum is None or len(item.checksum.split(":")[1]) == digits[item.checksum.split(":")[0]]
    assert len(registry.dataset("hip-labels").remotes) == 16 and len(registry.dataset("head-labels").remotes) == 20
